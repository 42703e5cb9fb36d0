"""What the tests of launch/ share."""

import contextlib
import pathlib
import re
import signal

from dydiff_jax import build, compare
from dydiff_jax.runs import exit_codes

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"

#: Arguments of a run.
FLAGS = [
    "--config=configs/turbulence.py:dynamical,size=tiny",
    "--workdir=runs/a b",
    "--config.train.steps=2000",
]

#: What a run may end with, by what is to follow.
AGAIN = {exit_codes.STOPPED, 128 + signal.SIGTERM}
A_FEW_TIMES = {exit_codes.STUCK, 128 + signal.SIGABRT, 128 + signal.SIGKILL}
NEVER = {1, 2, 139}


def check_command(command: list[str]) -> None:
    """A command of dydiff_jax.main has flags that exist, and a config that can be built."""
    arguments = command[command.index("dydiff_jax.main") + 1 :]
    known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (ROOT / "dydiff_jax/main.py").read_text()))
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    overrides = [f"--{name}={value}" for name, value in given.items() if name.startswith("config.")]
    assert {name for name in given if not name.startswith("config.")} <= known
    assert {"config", "workdir"} <= given.keys()
    with contextlib.chdir(ROOT):
        build.load(compare.read(given["config"], overrides))
