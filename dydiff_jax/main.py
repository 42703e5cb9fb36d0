"""The command line: ``python -m dydiff_jax.main --config=configs/turbulence.py --workdir=DIR``.

Kept short on purpose: what it starts is in ``runs.commands``, where tests and notebooks can import it.
"""

import pathlib
import shlex
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import dydiff_jax
from dydiff_jax.cost_model import plan
from dydiff_jax.cost_model.devices import DEVICES
from dydiff_jax.data import cache
from dydiff_jax.distributed import cluster, collectives
from dydiff_jax.runs import commands

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/, with its argument: configs/turbulence.py:dynamical,size=tiny."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, results.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "forecast", "plan", "replay"],
    "train, then evaluate; eval the newest checkpoint; forecast from the context frames of --input; plan the memory "
    "and time of a step on --devices; replay the step on which a run stopped.",
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "forecast: an .npy or .npz file of context frames [p, h, w, c] or [n, p, h, w, c], physical units.",
)
_MEMBERS = flags.DEFINE_integer(
    "members", None, "forecast: ensemble size; that of the evaluation by default.", 1
)
_SUBSTEPS = flags.DEFINE_integer(
    "substeps",
    None,
    "forecast: frames for each lead, at 1/8, 2/8 ... of a lead for 8; for a system that interpolates. 1 by default.",
    1,
)
_SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "train, eval: which windows are scored.")
_DEVICES = flags.DEFINE_integer("devices", None, "plan: how many devices.", 1)
_HARDWARE = flags.DEFINE_enum(
    "hardware", None, sorted(DEVICES), "plan: for which of these; for all of them by default."
)


def main(argv: list[str]) -> None:
    """Checks the arguments and starts the mode."""
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; options are given as --config.key=value")
    if (_INPUT.value is not None) != (_MODE.value == "forecast"):
        raise app.UsageError("--input=FILE belongs to --mode=forecast, which needs it")
    if _SUBSTEPS.value is not None and _MODE.value != "forecast":
        raise app.UsageError("--substeps=N belongs to --mode=forecast")
    if _SPLIT.value != "test" and _MODE.value not in ("train", "eval"):
        raise app.UsageError("--split=valid belongs to --mode=train and --mode=eval")
    if (_DEVICES.value is not None) != (_MODE.value == "plan"):
        raise app.UsageError("--devices=N belongs to --mode=plan, which needs it")
    if (_WORKDIR.value is None) and (_MODE.value != "plan"):
        raise app.UsageError("--workdir=DIR is needed: the directory of the run")
    jax.config.update("jax_compilation_cache_dir", str(cache.cache_root(None) / "compiled"))
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the libraries beneath report every file at INFO
    with collectives.exit_on_user_error():
        if _MODE.value == "plan":
            plan.prepare(_DEVICES.value)
            plan.plan(
                _CONFIG.value,
                _DEVICES.value,
                _HARDWARE.value,
                _WORKDIR.value and pathlib.Path(_WORKDIR.value),
            )
            return
        cluster.start()
        start(pathlib.Path(_WORKDIR.value), shlex.join(["python", "-m", "dydiff_jax.main", *sys.argv[1:]]))


def start(workdir: pathlib.Path, command: str) -> None:
    """Starts a mode that has a work directory."""
    if _MODE.value == "train":
        commands.train(_CONFIG.value, workdir, command, dydiff_jax.BEGAN, _SPLIT.value)
    elif _MODE.value == "eval":
        commands.evaluate_run(_CONFIG.value, workdir, command, _SPLIT.value)
    elif _MODE.value == "replay":
        commands.replay(_CONFIG.value, workdir)
    else:
        source, substeps = pathlib.Path(_INPUT.value), _SUBSTEPS.value or 1
        commands.forecast(_CONFIG.value, workdir, source, _MEMBERS.value, substeps)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
