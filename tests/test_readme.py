"""What the README says of the systems is what their registry says."""

import pathlib
import re

from dydiff_jax.systems import SYSTEMS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shipped():
    """The systems of the package, without those that tests register."""
    return {
        name: entry for name, entry in SYSTEMS.items() if entry.options.__module__.startswith("dydiff_jax.")
    }


def test_every_system_has_a_row_with_its_equation():
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| `[^`]+` \| (.*) \|$", README, re.MULTILINE))
    assert {name: rows.get(name) for name in shipped()} == {
        name: entry.equation for name, entry in shipped().items()
    }


def test_every_file_that_the_tables_name_is_there():
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", README))
    missing = [
        name for name in named if not any((ROOT / place / name).exists() for place in (".", "dydiff_jax"))
    ]
    assert not missing


def test_colours_tell_systems_apart():
    colours = [entry.colour for entry in shipped().values()]
    assert len(set(colours)) == len(colours)
