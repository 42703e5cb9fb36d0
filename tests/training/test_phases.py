"""Every second of a run is counted once, and a run that hangs ends itself and says where."""

import subprocess
import sys
import time

import pytest
from running import ENVIRONMENT

from dydiff_jax.runs import exit_codes
from dydiff_jax.training import phases

HANG = """
import sys, time
from dydiff_jax.training.phases import Phases

def read_a_file_that_never_comes():
    time.sleep(60)

with Phases(limit=0.5) as run:
    with run.phase("step"):
        for _ in range(6):  # slow, but it makes progress: longer in all than the limit
            time.sleep(0.2)
            run.heartbeat()
    with run.phase("input"):
        run.heartbeat("batch 7")
        read_a_file_that_never_comes()
"""


def test_the_phases_add_up_to_the_time_that_passed():
    began = time.monotonic()
    run = phases.Phases(began=began - 2.0)
    with run.phase("step"):
        time.sleep(0.02)
        with run.phase("input") as waited:
            time.sleep(0.03)
        assert 0.03 <= waited() < 0.2
    with pytest.raises(KeyError), run.phase("save"):
        raise KeyError
    seconds = run.seconds()
    assert set(seconds) == {"start", "step", "input", "save"}
    assert sum(seconds.values()) == pytest.approx(time.monotonic() - began + 2.0, abs=2e-3)
    assert seconds["start"] >= 2.0 and seconds["step"] >= 0.02 and seconds["input"] >= 0.03
    run.move("input", "step", seconds["input"])
    moved = run.seconds()
    assert moved["step"] >= seconds["step"] + seconds["input"] - 1e-9
    assert sum(moved.values()) >= sum(seconds.values())


def test_what_an_earlier_process_did_after_its_last_checkpoint_is_lost():
    run = phases.Phases()
    saved = {"start": 5.0, "step": 30.0, "lost": 2.0}
    logged = {"start": 5.0, "step": 41.0, "save": 1.0, "lost": 2.0}
    run.resume(saved, logged, starts=3)
    seconds = run.seconds()
    assert (seconds["step"], seconds["lost"], run.starts) == (30.0, 2.0 + 12.0, 4)
    assert phases.goodput(seconds) == pytest.approx(30 / 49, rel=1e-3)


def test_a_first_process_lost_nothing():
    run = phases.Phases()
    run.resume({}, {}, starts=0)
    assert run.starts == 1 and phases.LOST not in run.seconds()


def test_the_watchdog_names_the_phase_and_ends_the_process():
    """Work that makes progress is left alone, however long it takes."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANG], capture_output=True, text=True, timeout=50, env=ENVIRONMENT
    )
    assert done.returncode == exit_codes.STUCK == 76, done.stderr
    assert 1.7 < time.monotonic() - began < 30
    assert "stuck: no progress of process" in done.stderr and "in phase 'input' (batch 7) for" in done.stderr
    assert "read_a_file_that_never_comes" in done.stderr


def test_without_a_limit_there_is_no_watchdog():
    with phases.Phases() as run, run.phase("step"):
        time.sleep(0.05)
    assert run.seconds()["step"] >= 0.05
