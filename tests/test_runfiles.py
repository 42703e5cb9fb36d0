"""A run knows its own data and its own configuration again."""

import dataclasses

import pytest

from dydiff_jax import build
from dydiff_jax.config import plain
from dydiff_jax.runs import directory as run_directory
from tests import small

CARD = build.DataCard(("u", "v"), "m/s", 0.25, "s", (0.5, -3.0), (2.0, 0.1), (16, 16))


def test_the_first_statistics_hold_for_the_whole_run(tmp_path):
    """Also where another computer adds the same numbers up to other last digits: the file's are compiled in."""
    assert run_directory.claim_card(tmp_path, CARD) == CARD
    text = (tmp_path / "statistics.json").read_text()
    rounded = dataclasses.replace(CARD, mean=(0.5 + 1e-9, -3.0), std=(2.0, 0.1 - 1e-9))
    assert rounded != CARD
    assert run_directory.claim_card(tmp_path, rounded) == CARD
    assert (tmp_path / "statistics.json").read_text() == text


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (0.5, -3.00001)},
        {"std": (2.00001, 0.1)},
        {"mean": (0.5,)},
        {"unit": "km/h"},
        {"grid": (16, 32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_data_are_refused(tmp_path, changes):
    run_directory.claim_card(tmp_path, CARD)
    with pytest.raises(ValueError, match=f"not the data that the run began with:\n  {next(iter(changes))}: "):
        run_directory.claim_card(tmp_path, dataclasses.replace(CARD, **changes))


def test_the_fingerprint_follows_what_is_learnt_and_not_where():
    made = small.config("dynamical,size=tiny")
    same = small.config("dynamical,size=tiny", mesh__fsdp=8, input__threads=2, sampler__steps=12)
    other = small.config("dynamical,size=tiny", optimizer__learning_rate=1e-4)
    assert run_directory.fingerprint(plain(made)) == run_directory.fingerprint(plain(same))
    assert run_directory.fingerprint(plain(made)) != run_directory.fingerprint(plain(other))
