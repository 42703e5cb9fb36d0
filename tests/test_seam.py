"""Systems that the package has never heard of go through everything that it can do, without an edit to it."""

import inspect
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from dydiff_jax import build
from dydiff_jax.data.card import DataCard
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.runs import commands, scoring
from dydiff_jax.system import SYSTEMS
from tests import cli, dummy

#: Enough steps, and checkpoints, that a run can be killed among them; figures take longer than all of them.
LONG = {
    "train.steps": 280,
    "train.checkpoint_every": 20,
    "train.log_every": 100,
    "optimizer.learning_rate": 3e-2,
    "evaluation.figures": (),
}
SHORT = {"train.steps": 20, "train.checkpoint_every": 20, "train.log_every": 10, "evaluation.figures": ()}
#: What the speed of a run decides.
TIMED = ("steps_per_second", "goodput", "seconds", "starts")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten recordings x_{t+1} = 0.9 x_t + noise, of 30 frames of 8 x 8 points and two channels."""
    folder, rng = tmp_path_factory.mktemp("ar"), np.random.default_rng(0)
    for number in range(10):
        frames = [rng.normal(size=(8, 8, 2))]
        for _ in range(29):
            frames.append(0.9 * frames[-1] + 0.3 * rng.normal(size=(8, 8, 2)))
        np.save(folder / f"{number}.npy", np.asarray(frames, np.float32))
    return folder


def config(method, data, changes, **more):
    raw = dummy.get_config(method)
    raw.update_from_flattened_dict({"data.path": str(data), **changes})
    raw.stages = more.pop("stages", {})
    raw.update_from_flattened_dict({name.replace("__", "."): value for name, value in more.items()})
    return raw


def command(method, data, workdir, *arguments, changes=LONG):
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    return [
        "dydiff_jax.main", f"--config=tests/dummy.py:{method}", f"--config.data.path={data}",
        f"--workdir={workdir}", *flags, *arguments,
    ]  # fmt: skip


def run(line):
    done = cli.run(line)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def kill_in(stage, line, workdir):
    """Start a command and kill it once the stage has saved; the checkpoints that it leaves are not the last."""
    process = cli.Command(line)
    folder, end = workdir / "checkpoints" / stage, time.monotonic() + 200
    while not saved(folder) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < max(saved(folder)) < 280, "killed among the steps of the stage"


def saved(folder):
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]


def weights(directory):
    """All that a finished run is, as numpy leaves by path."""
    raw = json.loads((directory / "config.json").read_text())
    loaded = build.from_plain(raw)
    made = build.build(loaded, DataCard.read(directory / "statistics.json"))
    found, _ = scoring.load_run(made, make_mesh(loaded.mesh), directory)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }


def lines(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in found]


def scores(folder):
    return json.loads((folder / "metrics.json").read_text())["scores"]


def assert_same_run(found, expected):
    a, b = weights(found), weights(expected)
    assert a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert lines(found) == lines(expected)
    assert scores(found / "eval/step_280") == scores(expected / "eval/step_280")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """method -> an undisturbed run, trained once."""
    made = {}

    def train(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("whole") / method
            commands.train(config(method, data, LONG), made[method])
        return made[method]

    return train


@pytest.fixture(scope="module")
def short(data, tmp_path_factory):
    """A finished run of two stages of 20 steps."""
    directory = tmp_path_factory.mktemp("short") / "run"
    commands.train(config("corrected", data, SHORT), directory)
    return directory


def test_a_system_is_thirty_lines():
    code = [line for line in inspect.getsource(dummy.Dummy).splitlines() if line.strip()]
    assert len(code) <= 30 and {"dummy", "corrected"} <= SYSTEMS.keys()


@pytest.mark.slow
def test_it_learns_what_there_is_to_learn(whole):
    """x' = 0.9 x: the kernel is near 0.9 times the identity in model space too, and forecasts beat persistence."""
    kernel = weights(whole("dummy"))["['step']['dense']['kernel']"]
    np.testing.assert_allclose(kernel, 0.9 * np.eye(2), atol=0.1)
    found = scores(whole("dummy") / "eval/step_280")
    assert found["dummy"]["crps"]["mean"] < found["persistence"]["crps"]["mean"]
    assert len(found["dummy"]["crps"]["per_lead"]) == 5


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits_and_is_evaluated_and_forecasts(data, whole, tmp_path):
    """The whole life of a run of the dummy through the command line."""
    directory = tmp_path / "killed"
    drawn = {key: value for key, value in LONG.items() if key != "evaluation.figures"}
    line = command("dummy", data, directory, changes=drawn)
    kill_in("step", line, directory)
    printed = run(line)
    assert "| dummy |" in printed and "persistence" in printed
    assert_same_run(directory, whole("dummy"))
    assert {"animation.gif", "rank_histogram.png"} <= {
        path.name for path in (directory / "eval/step_280").iterdir()
    }

    printed = run([*line, "--mode=eval", "--split=valid"])
    header = json.loads((directory / "eval/valid_step_280/metrics.json").read_text())
    assert header["split"] == "valid" and "| dummy |" in printed
    assert header["scores"]["dummy"] != scores(directory / "eval/step_280")["dummy"]

    np.save(tmp_path / "context.npy", np.load(data / "0.npy")[:4])
    run([*line, "--mode=forecast", f"--input={tmp_path / 'context.npy'}", "--members=4"])
    with np.load(directory / "forecast/context/forecast.npz") as arrays:
        assert arrays["ensemble"].shape == (4, 1, 5, 8, 8, 2) and np.isfinite(arrays["ensemble"]).all()


@pytest.mark.slow
def test_a_run_killed_in_each_of_its_stages_ends_with_the_same_bits(data, whole, tmp_path):
    directory = tmp_path / "killed"
    line = command("corrected", data, directory)
    kill_in("step", line, directory)
    assert not (directory / "checkpoints/correction").exists()
    kill_in("correction", line, directory)
    assert max(saved(directory / "checkpoints/step")) == 280
    assert "| corrected |" in run(line)
    assert_same_run(directory, whole("corrected"))
    assert {line["stage"] for line in lines(directory)} == {"step", "correction"}


@pytest.mark.slow
def test_it_is_planned(data, tmp_path):
    changes = {"mesh.data": 2}
    line = command(
        "corrected", data, tmp_path, "--mode=plan", "--devices=2", "--hardware=H100", changes=changes
    )
    printed = run(line)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert list(plan["stages"]) == ["step", "correction"] and plan["method"] == "corrected"
    assert "step" in printed and "correction" in printed


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_replayed(data, tmp_path):
    changes = SHORT | {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 1e30}
    with pytest.raises(FloatingPointError, match="bad_step_step_"):
        commands.train(config("dummy", data, changes), tmp_path)
    (bundle,) = (path.name for path in tmp_path.glob("bad_step_step_*"))
    printed = run(command("dummy", data, tmp_path, "--mode=replay", changes=changes))
    assert bundle in printed and "loss" in printed and ("inf" in printed or "nan" in printed)


@pytest.mark.slow
def test_it_is_compared(data, tmp_path):
    changes = {"data.path": data, "train.steps": 100, "train.checkpoint_every": 100, "evaluation.figures": ()}
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    line = ["dydiff_jax.compare", "--config=tests/dummy.py", "--methods=dummy,corrected"]
    run([*line, "--seeds=0", f"--workdir={tmp_path}", *flags])
    for name in ("report.md", "report.html"):
        report = (tmp_path / name).read_text()
        for method in ("dummy", "corrected"):
            assert method in report and SYSTEMS[method].summary in report, f"{name}: {method}"
    assert (tmp_path / "corrected/seed_0/eval").is_dir()


# Stages from elsewhere


@pytest.mark.slow
def test_a_stage_from_a_finished_run_is_not_trained(data, short, tmp_path):
    """Also where the source has moved since, and though only the second stage's recipe differs."""
    source = shutil.copytree(short, tmp_path / "source")
    stages = {"step": {"source": str(source)}, "correction": {"optimizer": {"learning_rate": 1e-3}}}
    commands.train(config("corrected", data, SHORT, stages=stages), tmp_path / "run")
    assert {line["stage"] for line in lines(tmp_path / "run")} == {"correction"}
    assert not (tmp_path / "run/checkpoints/step").exists()
    expected, found = weights(short), weights(tmp_path / "run")
    for name in expected:
        assert (expected[name].tobytes() == found[name].tobytes()) == name.startswith("['step']"), name

    shutil.move(source, tmp_path / "moved")
    stages["step"]["source"] = str(tmp_path / "moved")
    again = config("corrected", data, SHORT, stages=stages)
    assert commands.train(again, tmp_path / "run") == tmp_path / "run/eval/step_20"

    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="stage step: source .*moved: expected config.json"):
        commands.train(again, tmp_path / "run")


def retrained(source, data, tmp_path):
    """The same stage of another seed takes its place."""
    commands.train(config("corrected", data, SHORT, seed=1), tmp_path / "other")
    shutil.rmtree(source / "checkpoints")
    shutil.copytree(tmp_path / "other/checkpoints", source / "checkpoints")


def damaged(source, data, tmp_path):
    for path in (source / "checkpoints/step/20").rglob("*"):
        if path.is_file() and path.stat().st_size > 100 and "ema" in str(path):
            path.write_bytes(path.read_bytes()[:-3] + b"abc")


def foreign(source, data, tmp_path):
    raw = json.loads((source / "config.json").read_text())
    raw["window"]["num_context"] = 1
    (source / "config.json").write_text(json.dumps(raw))


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil, message",
    [
        (retrained, "stage step: source .*: retrained: expected the weights that this run began with"),
        (damaged, "stage step: source .*: expected a valid checkpoint 20, found damage"),
        (foreign, "stage step: source .*: foreign: window.num_context: expected 2, found 1"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_source_that_is_not_what_it_was_is_refused(spoil, message, data, short, tmp_path):
    source = shutil.copytree(short, tmp_path / "source")
    raw = config("corrected", data, SHORT, stages={"step": {"source": str(source)}})
    commands.train(raw, tmp_path / "run")
    spoil(source, data, tmp_path)
    with pytest.raises(ValueError, match=message):
        commands.train(raw, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        commands.evaluate_run(raw, tmp_path / "run")


@pytest.mark.slow
def test_a_source_without_the_stage_names_what_it_has(data, whole, tmp_path):
    raw = config("corrected", data, SHORT, stages={"correction": {"source": str(whole("dummy"))}})
    with pytest.raises(FileNotFoundError, match=r"stage correction: .* found those of \['step'\]"):
        commands.train(raw, tmp_path / "run")


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(data, short, tmp_path):
    """At a learning rate of nearly 0 it ends with them as well."""
    changes = SHORT | {"optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0, "initial": str(short)}
    commands.train(config("corrected", data, changes, seed=1), tmp_path / "run")
    expected, found = weights(short), weights(tmp_path / "run")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_weights_of_another_shape_are_named(data, short, tmp_path):
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    for path in data.glob("*.npy"):
        np.save(narrow / path.name, np.load(path)[..., :1])
    raw = config("corrected", narrow, SHORT, initial=str(short))
    with pytest.raises(ValueError, match=r"(?s)dense.*kernel.*\[1, ?1\].*\[2, ?2\]"):
        commands.train(raw, tmp_path / "run")
