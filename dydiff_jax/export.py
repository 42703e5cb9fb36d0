"""The data of a config as shards: ``python -m dydiff_jax.export --config=FILE --out=DIR --format=zarr|array_record``.

    python -m dydiff_jax.export --config=configs/turbulence.py --out=shards/turbulence --format=zarr
    python -m dydiff_jax.main --config=configs/shards.py --config.data.path=shards/turbulence --workdir=runs/turbulence

Trajectories are made or opened as a run would, and written in the precision that they are kept in. zarr goes to a local
folder, gs:// or s3://; ArrayRecord to a local folder.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from dydiff_jax.data.formats import sidecar
from dydiff_jax.distributed import collectives
from dydiff_jax.runs import commands

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/, with its argument; its data are exported."
)
_OUT = flags.DEFINE_string("out", None, "A folder that is not there yet, gs:// or s3://.")
_FORMAT = flags.DEFINE_enum("format", "zarr", sidecar.FORMATS, "Of the shards.")


def main(argv: list[str]) -> None:
    """Checks the arguments and writes the shards."""
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; options are given as --config.key=value")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the libraries beneath report every file at INFO
    with collectives.exit_on_user_error():
        commands.export(_CONFIG.value, _OUT.value, _FORMAT.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    app.run(main)
