"""The command line: ``python -m dydiff_jax.main --config=configs/turbulence.py --workdir=DIR``.

Kept short on purpose: what it starts is in ``runs.py``, where tests and notebooks can import it.
"""

import pathlib
import shlex
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from dydiff_jax import runs
from dydiff_jax.data import cache

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/, with its argument: configs/turbulence.py:dynamical,size=tiny."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, results.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "forecast"],
    "train, then evaluate; eval the newest checkpoint; forecast from the context frames of --input.",
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "forecast: an .npy or .npz file of context frames [p, h, w, c] or [n, p, h, w, c], physical units.",
)
_MEMBERS = flags.DEFINE_integer(
    "members", None, "forecast: ensemble size; that of the evaluation by default.", 1
)


def main(argv: list[str]) -> None:
    """Checks the arguments and starts the mode."""
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; options are given as --config.key=value")
    if (_INPUT.value is not None) != (_MODE.value == "forecast"):
        raise app.UsageError("--input=FILE belongs to --mode=forecast, which needs it")
    jax.config.update("jax_compilation_cache_dir", str(cache.cache_root(None) / "compiled"))
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the libraries beneath report every file at INFO
    workdir = pathlib.Path(_WORKDIR.value)
    command = shlex.join(["python", "-m", "dydiff_jax.main", *sys.argv[1:]])
    try:
        if _MODE.value == "train":
            runs.train(_CONFIG.value, workdir, command)
        elif _MODE.value == "eval":
            runs.evaluate_run(_CONFIG.value, workdir, command)
        else:
            runs.forecast(_CONFIG.value, workdir, pathlib.Path(_INPUT.value), _MEMBERS.value)
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError) as error:
        logging.debug("where the error arose", exc_info=True)
        sys.exit(f"{type(error).__name__}: {error}\n(--verbosity=1 shows where it arose)")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
