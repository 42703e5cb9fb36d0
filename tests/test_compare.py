"""The command ``dydiff_jax.compare``: what it runs, in which order, and what it writes."""

import json
import os
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest

from dydiff_jax import compare
from dydiff_jax.comparison import results, schedule
from dydiff_jax.evaluation import scores as scoring
from dydiff_jax.metrics import Diverged
from dydiff_jax.runs import commands
from tests import cli, finished, small

#: By split and network evaluations a frame, the distance from the truth of forecasts that are made up.
ERRORS = {"valid": {6: 0.1, 12: 0.3}, "test": {6: 0.3, 12: 0.1}}

FEW = scoring.ScoreOptions(names=("crps", "rmse"))

ROOT = pathlib.Path(__file__).parents[1]
FILE = str(ROOT / "configs/turbulence.py")


def command(workdir, *arguments):
    return [
        "dydiff_jax.compare", "--config=configs/turbulence.py:size=tiny", f"--workdir={workdir}", *arguments,
    ]  # fmt: skip


def planned(home, methods, seeds, sweeps=()):
    request = schedule.Request.parse(f"{FILE}:size=tiny", methods, seeds, sweeps, (), str(home))
    return schedule.make(request, compare.read)


def nfe(raw):
    """Network evaluations a frame, as the config says them; 1 of a system without a sampler."""
    return raw.system.sampler.nfe if "sampler" in raw.system else 1


@pytest.fixture
def calls(monkeypatch):
    """Runs and evaluations are not made but written down, with results that are made up."""
    made = []

    def pretend(kind):
        def call(raw, directory, said, split):
            method = raw.system.name
            made.append((kind, method, raw.seed, nfe(raw), split, directory))
            assert said.startswith("python -m dydiff_jax.main") and f"--workdir={directory}" in said
            assert ("--split=valid" in said) == (split == "valid")
            variant = directory.with_name(f"{directory.name}_{kind}_{nfe(raw)}_{split}")
            error = ERRORS[split].get(nfe(raw), 0.2)
            folder = finished.run(variant, method, raw.seed, error=error, split=split, options=FEW)
            shutil.copytree(variant, directory, ignore=shutil.ignore_patterns("eval"), dirs_exist_ok=True)
            return folder

        return call

    monkeypatch.setattr(commands, "train", pretend("train"))
    monkeypatch.setattr(commands, "evaluate_run", pretend("evaluate"))
    return made


def keep_numbers(monkeypatch):
    """Reports are not drawn; what they would hold is returned."""
    reports = []
    monkeypatch.setattr(compare, "write", lambda entries, *rest: reports.append(list(entries)))
    return reports


def test_every_run_is_made_once_in_order_and_reported_after_each_seed(tmp_path, calls, monkeypatch, capsys):
    reports = keep_numbers(monkeypatch)
    compare.compare(planned(tmp_path, "standard,rolling", "0,1"), [], tmp_path, "command")
    assert [call[:3] for call in calls] == [
        ("train", "standard", 0), ("train", "rolling", 0), ("train", "standard", 1), ("train", "rolling", 1)
    ]  # fmt: skip
    assert [len(entries) for entries in reports] == [2, 4]
    said = capsys.readouterr().out
    assert (
        f"[3 of 4] standard, seed 1: train and evaluate on the test split, in {tmp_path}/standard/seed_1"
        in said
    )


def test_the_value_that_is_best_on_the_validation_split_is_the_one_reported(tmp_path, calls, monkeypatch):
    """6 evaluations a frame are best on validation, 12 on the test split, which is scored for 6 alone."""
    reports = []
    monkeypatch.setattr(
        compare,
        "write",
        lambda entries, home, said, notes, validation: reports.append((list(entries), validation)),
    )
    swept = planned(tmp_path, "dynamical,regression", "0,1", ["system.sampler.nfe=6,12"])
    other = finished.run(tmp_path / "old", "standard", 3).parents[1]
    compare.compare(swept, results.elsewhere([str(other)]), tmp_path, "command")
    default = nfe(swept.runs[0].raw)
    assert [call[:-1] for call in calls] == [
        *(
            (kind, "dynamical", seed, steps, "valid")
            for seed in (0, 1)
            for kind, steps in (("train", default), ("evaluate", 6), ("evaluate", 12))
        ),
        ("evaluate", "dynamical", 0, 6, "test"), ("train", "regression", 0, 1, "test"),
        ("evaluate", "dynamical", 1, 6, "test"), ("train", "regression", 1, 1, "test"),
    ]  # fmt: skip
    assert {call[-1] for call in calls[:3]} == {tmp_path / "dynamical/seed_0"}
    assert [len(entries) for entries, _ in reports] == [3, 5]
    entries, validation = reports[-1]
    labels = ["dynamical, nfe 6", "regression", "dynamical, nfe 6", "regression", f"standard ({other})"]
    assert [entry.label for entry in entries] == labels
    assert {entry.info()["split"] for entry in entries} == {"test"}
    points = {group["label"]: group for group in validation["groups"]}
    assert {label: group["chosen"] for label, group in points.items()} == {
        "dynamical, nfe 6": True, "dynamical, nfe 12": False
    }  # fmt: skip
    better = finished.run(tmp_path / "t", "dynamical", 0, error=ERRORS["test"][12], options=FEW)
    found = [json.loads((folder / "metrics.json").read_text()) for folder in (better, entries[0].folder)]
    of_12, of_6 = (info["scores"]["dynamical"]["crps"]["mean"] for info in found)
    assert of_12 < of_6, "the value that was not chosen would have been better on the test split"


def test_a_value_that_needs_training_is_trained_and_scored_on_validation_first(tmp_path, calls, monkeypatch):
    keep_numbers(monkeypatch)
    swept = planned(tmp_path, "standard,rolling", "0", ["train.batch_size=2,4"])
    compare.compare(swept, [], tmp_path, "command")
    assert [(kind, method, split, folder.parent.name) for kind, method, _, _, split, folder in calls] == [
        *(
            ("train", method, "valid", f"train.batch_size={size}")
            for method in ("standard", "rolling")
            for size in (2, 4)
        ),
        ("train", "standard", "test", "train.batch_size=2"), ("train", "rolling", "test", "train.batch_size=2"),
    ]  # fmt: skip


def test_a_run_that_diverges_is_left_out_with_its_variants_and_the_report_says_so(
    tmp_path, calls, monkeypatch
):
    train, evaluate_run, reports = commands.train, commands.evaluate_run, []
    monkeypatch.setattr(
        compare,
        "write",
        lambda entries, home, said, notes, validation: reports.append((list(entries), notes)),
    )

    def diverging(raw, directory, said, split):
        if raw.system.name == "dynamical" and raw.seed == 0:
            raise FloatingPointError("step 7: loss nan")
        return train(raw, directory, said, split)

    def scattering(raw, directory, said, split):
        if nfe(raw) == 6 and raw.system.name == "standard" and raw.seed == 1:
            raise Diverged("a forecast that diverged has no score")
        return evaluate_run(raw, directory, said, split)

    monkeypatch.setattr(commands, "train", diverging)
    monkeypatch.setattr(commands, "evaluate_run", scattering)
    swept = planned(tmp_path, "dynamical,standard", "0,1", ["system.sampler.nfe=6,12"])
    with pytest.raises(
        FloatingPointError, match="dynamical, seed 0 diverged and is left out: step 7: loss nan"
    ):
        compare.compare(swept, [], tmp_path, "command")
    assert [call[:-1] for call in calls if call[0] == "evaluate"] == [
        ("evaluate", "standard", 0, 6, "valid"), ("evaluate", "standard", 0, 12, "valid"),
        ("evaluate", "dynamical", 1, 6, "valid"), ("evaluate", "dynamical", 1, 12, "valid"),
        ("evaluate", "standard", 1, 12, "valid"), ("evaluate", "standard", 0, 12, "test"),
        ("evaluate", "dynamical", 1, 6, "test"), ("evaluate", "standard", 1, 12, "test"),
    ], "a value that diverged for one seed is not chosen, the other one is evaluated"  # fmt: skip
    assert [len(entries) for entries, _ in reports] == [1, 3]
    assert [len(notes) for _, notes in reports] == [2, 2]


def test_a_place_that_is_taken_is_found_before_the_first_run(tmp_path, calls, monkeypatch):
    keep_numbers(monkeypatch)
    made = planned(tmp_path, "standard,rolling", "0,1")
    last = made.runs[-1]
    last.directory.mkdir(parents=True)
    values = last.raw.to_dict()
    other = values | {"train": {**values["train"], "steps": 7}}
    (last.directory / "config.json").write_text(json.dumps(other))
    with pytest.raises(
        ValueError, match=r"rolling/seed_1/config.json holds another(.|\n)*train.steps: 7 there"
    ):
        compare.compare(made, [], tmp_path, "command")
    assert calls == []
    (last.directory / "config.json").write_text(json.dumps(values))
    compare.compare(made, [], tmp_path, "command")
    assert len(calls) == 4


def test_overrides_are_told_from_other_arguments():
    assert compare.overrides(["--config.train.steps=5"]) == ["train.steps=5"]
    for stray in (["stray"], ["--config.train.steps", "5"], ["-config.train.steps=5"]):
        with pytest.raises(ValueError, match="expected --config.key=value, found"):
            compare.overrides(stray)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--methods=standard,dinamical"], "did you mean 'dynamical'"),
        (["--methods=standard", "--seeds=a"], "--seeds: expected integers"),
        (["--methods=standard", "--also=nowhere"], "--also: nowhere/config.json is not there"),
        (
            ["--methods=standard,dynamical", "--config.system.process.etta=0.5"],
            "did you mean 'system.process.eta'",
        ),
        ([], "methods"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else "",
)
def test_the_command_line_says_what_is_wrong(arguments, message, tmp_path):
    started = time.monotonic()
    done = cli.run(command(tmp_path / "run", *arguments), timeout=120)
    assert done.returncode not in (0, 75)
    assert message in done.stderr + done.stdout and "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def environment():
    """One device."""
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Two systems that only the config file knows, on ten trajectories of travelling waves; two lengths of training."""
    folder = tmp_path_factory.mktemp("data")
    t, x = np.arange(24)[:, None, None], 2 * np.pi * np.arange(8) / 8
    for i, phase in enumerate(np.random.default_rng(0).uniform(0, 6, 10)):
        wave = np.sin(t / 2 + x + phase) + np.cos(t / 3 + x[:, None] + phase)
        np.save(folder / f"{i}.npy", wave[..., None].astype(np.float32))
    return [
        "--config=tests/dummy.py", "--methods=dummy,corrected", "--seeds=0", "--sweep=train.steps=4,8",
        f"--config.data.path={folder}", "--config.optimizer.warmup_steps=1", "--config.train.log_every=2",
        "--config.train.checkpoint_every=2", "--config.evaluation.figures=('error_over_lead',)",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory, environment, flags):
    """A comparison stopped by SIGTERM once the first point is scored, then run again."""
    home = tmp_path_factory.mktemp("comparison") / "home"
    stopped = cli.Command(command(home, *flags), environment)
    while not (home / "dummy/train.steps=8/seed_0/config.json").exists() and stopped.poll() is None:
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    status = stopped.wait(timeout=120)
    scored = home / "dummy/train.steps=4/seed_0/eval/valid_step_4/metrics.json"
    first = scored.read_bytes()
    assert not (home / "report.html").exists()
    done = cli.run(command(home, *flags), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert scored.read_bytes() == first
    return home, status, done


@pytest.mark.slow
def test_sigterm_stops_with_the_documented_status(compared):
    assert compared[1] == 75


@pytest.mark.slow
def test_one_command_trains_chooses_on_validation_and_compares_on_test(compared):
    """Systems that the package does not know go through all of it, and into the report."""
    home, _, done = compared
    found = json.loads((home / "comparison.json").read_text())
    assert [group["method"] for group in found["groups"]] == ["dummy", "corrected"]
    assert found["differences"] == []
    points = found["validation"]["groups"]
    assert len(points) == 4 and sum(point["chosen"] for point in points) == 2
    tested = {str(path.parents[3].relative_to(home)) for path in home.glob("*/*/*/eval/step_*/table.md")}
    for group in found["groups"]:
        own = [point for point in points if point["method"] == group["method"]]
        best = min(own, key=lambda point: point["scores"]["crps"]["all"]["mean"])
        assert best["chosen"] and best["label"] == group["label"]
        assert f"{group['method']}/train.steps={group['swept']['train.steps']}" in tested
        (folder,) = group["folders"]
        info = json.loads((home / folder / "metrics.json").read_text())
        assert info["split"] == "test"
        assert group["scores"]["crps"]["all"]["mean"] == info["scores"][group["method"]]["crps"]["mean"]
        assert info["command"] == group["commands"][0] and "--split" not in info["command"]
    assert len(tested) == 2, "the test split is scored for the chosen points alone"
    assert "[6 of 6] corrected, steps" in done.stdout
    report = (home / "report.md").read_text()
    assert "Yes: same data" in report and "## What was swept" in report
    assert "- **dummy**: each frame is a linear map of the one before. `x' = W x + b`" in report
    assert (
        f"| {found['groups'][1]['label']} | 2 (correction: pointwise only, step: pointwise only) |" in report
    )


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_writes_the_same_report(compared, environment, flags):
    home = compared[0]
    files = [home / "comparison.json", home / "report.md", home / "report.html"]
    before = [path.read_bytes() for path in files]
    trained = {path: path.stat().st_mtime_ns for path in home.glob("*/*/seed_0/checkpoints/*/*")}
    assert len(trained) >= 6
    again = cli.run(command(home, *flags), environment)
    assert again.returncode == 0, again.stderr[-3000:]
    assert [path.read_bytes() for path in files] == before
    assert {path: path.stat().st_mtime_ns for path in home.glob("*/*/seed_0/checkpoints/*/*")} == trained


@pytest.mark.slow
def test_the_systems_of_the_package_are_compared(tmp_path, environment):
    flags = small.flags(
        train__steps=4, train__batch_size=2, train__checkpoint_every=2, train__log_every=2, optimizer__warmup_steps=1,
        evaluation__members=2, evaluation__windows=4, evaluation__saved=1, mesh__data=1,
        evaluation__figures=(), **small.NETWORK,
    )  # fmt: skip
    asked = [*flags, "--methods=standard,rolling,regression", "--seeds=0"]
    done = cli.run(command(tmp_path / "home", *asked), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "home/comparison.json").read_text())
    assert [group["label"] for group in found["groups"]] == ["standard", "rolling", "regression"]
    assert [group["cost"]["nfe_per_frame"] for group in found["groups"]] == [6, 6, 1]
    assert [group["deterministic"] for group in found["groups"]] == [False, False, True]
    assert found["differences"] == []
    assert "Yes: same data" in (tmp_path / "home/report.md").read_text()


@pytest.mark.slow
def test_another_config_in_the_same_place_is_refused_with_the_difference(compared, environment, flags):
    home = compared[0]
    other = [*flags, "--config.train.batch_size=2"]
    done = cli.run(command(home, *other), environment, timeout=120)
    assert done.returncode not in (0, 75)
    assert "train.batch_size: 4 there, 2 asked for" in done.stderr
