"""launch/sweep.py: a grid of runs, printed, made one by one, or submitted."""

import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import signal
import sys
import time

import pytest
from launching import LAUNCH, ROOT, check_command

from dydiff_jax import compare
from dydiff_jax.comparison import schedule
from dydiff_jax.evaluation import scores as scoring
from dydiff_jax.runs import exit_codes
from tests import finished

spec = importlib.util.spec_from_file_location("sweep", LAUNCH / "sweep.py")
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])


def grid(tmp_path: pathlib.Path, *more: str) -> list[str]:
    return [
        "--config=configs/turbulence.py:size=tiny",
        "--methods=dynamical",
        "--seeds=0,1",
        "--sweep=system.process.eta=0.2,0.5",
        f"--workdir={tmp_path}",
        "--config.train.steps=3000",
        *more,
    ]


def commands(tmp_path: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    """The flags of each run of `grid`, by directory, in order."""
    found = {}
    for seed in (0, 1):
        for eta in (0.2, 0.5):
            folder = tmp_path / f"dynamical/system.process.eta={eta}/seed_{seed}"
            found[folder] = ["--config=configs/turbulence.py:dynamical,size=tiny", f"--workdir={folder}"]
            found[folder] += [
                "--config.train.steps=3000",
                f"--config.seed={seed}",
                f"--config.system.process.eta={eta}",
                "--split=valid",
            ]
    return found


def test_sweep_prints_what_is_not_done(tmp_path, capsys):
    expected = commands(tmp_path)
    assert sweep.main(grid(tmp_path, "--dry-run")) == 0
    out, error = capsys.readouterr()
    lines = [shlex.split(line) for line in out.splitlines()]
    assert lines == [["python", "-m", "dydiff_jax.main", *flags] for flags in expected.values()]
    for line in lines:
        check_command(line)
    assert "run again once all swept values are scored" in error
    folder = next(iter(expected))
    finish(tmp_path, folder, table=False)
    sweep.main(grid(tmp_path, "--dry-run"))
    assert len(capsys.readouterr().out.splitlines()) == 4, "an evaluation without its table is not finished"
    (folder / "eval/valid_step_3000/table.md").touch()
    sweep.main(grid(tmp_path, "--dry-run"))
    out, error = capsys.readouterr()
    assert [shlex.split(line) for line in out.splitlines()] == lines[1:] and "4 runs, 1 done" in error


def test_the_value_that_is_chosen_on_validation_is_what_is_made_next(tmp_path, capsys):
    """All points are scored on validation: what is left is the test split, of the best eta."""
    for folder in commands(tmp_path):
        finish(tmp_path, folder, error=0.3 if "eta=0.2" in str(folder) else 0.1)
    assert sweep.main(grid(tmp_path, "--dry-run")) == 0
    out, error = capsys.readouterr()
    expected = [flags[:-1] for folder, flags in commands(tmp_path).items() if "eta=0.5" in str(folder)]
    assert [shlex.split(line)[3:] for line in out.splitlines()] == expected
    assert "chosen on the validation split: dynamical, eta 0.5" in error
    finish(tmp_path, tmp_path / "dynamical/system.process.eta=0.5/seed_0", split="test")
    sweep.main(grid(tmp_path, "--dry-run"))
    out, error = capsys.readouterr()
    assert [shlex.split(line)[3:] for line in out.splitlines()] == expected[1:]


def finish(tmp_path: pathlib.Path, directory: pathlib.Path, error=0.2, split="valid", table=True) -> None:
    """The evaluation of a run of `grid`, made up, in the directory of the run."""
    request = schedule.Request.parse(
        "configs/turbulence.py:size=tiny", "dynamical", "0,1", ["system.process.eta=0.2,0.5"],
        ["train.steps=3000"], str(tmp_path),
    )  # fmt: skip
    (run,) = (run for run in schedule.make(request, compare.read).runs if run.directory == directory)
    few = scoring.ScoreOptions(names=("crps",))
    made = tmp_path / "made" / directory.relative_to(tmp_path)
    folder = finished.run(made, "dynamical", run.seed, error=error, split=split, step=3000, options=few)
    config = json.loads(json.dumps(run.raw.to_dict()))
    info = json.loads((folder / "metrics.json").read_text())
    info |= {
        "system": {"sampler": config["system"]["sampler"]},
        "evaluation": config["evaluation"],
        "score_options": config["scores"],
    }
    (folder / "metrics.json").write_text(json.dumps(info))
    (made / "config.json").write_text(json.dumps(config))
    if not table:
        (folder / "table.md").unlink()
    shutil.copytree(made, directory, dirs_exist_ok=True)
    shutil.rmtree(made)


def test_sweep_through_slurm(monkeypatch, tmp_path, capsys):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(f"#!/usr/bin/env bash\necho sbatch ${{@@Q}} >>{tmp_path}/calls\n")
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    more = ["--via=slurm", "--sbatch=--nodes=2 --gpus-per-node=8", "--sweep=system.sampler.nfe=6"]
    script = str(LAUNCH / "slurm.sh")
    expected = [
        [
            "sbatch",
            f"--job-name={folder}",
            "--dependency=singleton",
            "--nodes=2",
            "--gpus-per-node=8",
            script,
            *flags,
        ]
        for folder, flags in commands(tmp_path).items()
    ]
    assert sweep.main(grid(tmp_path, *more, "--dry-run")) == 0
    out, error = capsys.readouterr()
    assert [shlex.split(line) for line in out.splitlines()] == expected
    assert error.count("submit again once") == 4, "evaluations wait for their runs"
    assert not (tmp_path / "calls").exists()
    sweep.main(grid(tmp_path, *more))
    assert [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()] == expected


@pytest.mark.parametrize(
    "more, named",
    [
        (["--sweep=system.process.etaa=1"], "etaa.*did you mean 'system.process.eta'"),
        (["--config.train.step=1"], "train.step"),
        (["--sweep=train.batch_size=0,4"], "batch_size"),
        (["--unknown"], "--unknown"),
        (["--sweep=system.process.eta=0.1"], "system.process.eta once"),
    ],
)
def test_sweep_refuses_before_anything_runs(tmp_path, more, named):
    with pytest.raises(SystemExit, match=named):
        sweep.main(grid(tmp_path, *more, "--dry-run"))


def point(tmp_path: pathlib.Path, program: str) -> schedule.Run:
    return schedule.Run("m", {}, 0, tmp_path, None, ("python", "-c", program), trains=True, reported=True)


def test_sweep_goes_on_after_a_failure_and_stops_on_request(tmp_path, capsys):
    ok, bad = (point(tmp_path, f"raise SystemExit({status})") for status in (0, 3))
    asked = point(tmp_path, f"raise SystemExit({exit_codes.STOPPED})")
    mark = point(tmp_path, f"open({str(tmp_path / 'reached')!r}, 'w')")
    assert sweep.run_all([ok, ok]) == 0
    assert sweep.run_all([bad, mark]) == 1 and (tmp_path / "reached").exists()
    assert "status 3: python -c" in capsys.readouterr().err
    (tmp_path / "reached").unlink()
    assert sweep.run_all([asked, mark]) == exit_codes.STOPPED and not (tmp_path / "reached").exists()


def test_sweep_passes_sigterm_on(tmp_path):
    """The run that is on saves and leaves, and the sweep with it."""
    saves = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(30)"""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        began = time.monotonic()
        assert sweep.run_all([point(tmp_path, saves)]) == exit_codes.STOPPED
        assert time.monotonic() - began < 20
    finally:
        signal.signal(signal.SIGTERM, previous)
