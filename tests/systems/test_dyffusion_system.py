"""DYffusion and its rivals behind the seam: what is read, drawn and refused, and what they learn."""

import json

import jax
import numpy as np
import pytest

from configs import base
from dydiff_jax import build
from dydiff_jax.config import ConfigError
from dydiff_jax.data.batches import TrainBatches
from dydiff_jax.diffusion.interpolation import INTERPOLATORS
from dydiff_jax.distributed.mesh import make_mesh
from dydiff_jax.evaluation.forecast import Ensemble, gather
from dydiff_jax.runs import commands, scoring
from dydiff_jax.types import Batch

A, H = 0.9, 4
NETWORK = dict(name="cnn", size="tiny", features=16, kernels=(3, 1), groups=4, dropout=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Recordings of an independent AR(1) process of unit variance at each of 6 x 6 points."""
    folder, rng = tmp_path_factory.mktemp("ar"), np.random.default_rng(0)
    for number in range(8):
        frames = [rng.normal(size=(6, 6, 1))]
        for _ in range(99):
            frames.append(A * frames[-1] + np.sqrt(1 - A**2) * rng.normal(size=(6, 6, 1)))
        np.save(folder / f"{number}.npy", np.asarray(frames, np.float32))
    return folder


def config(data, method, **changes):
    raw = base.get_config(method, "tiny", "cosine")
    base.miniature(raw)
    raw.networks = {role: dict(NETWORK) for role in raw.networks}
    raw.data = dict(name="folder", path=str(data))
    raw.codec.name = "identity"
    raw.window.update(num_context=1, num_forecast=H)
    raw.dataset.update(crop=None, random_crop=False, split="trajectory")
    raw.conditions.copy_path = False
    raw.mesh.data = 1
    raw.train.update(steps=4, batch_size=16, log_every=2, checkpoint_every=1000)
    raw.optimizer.update(learning_rate=5e-3, warmup_steps=2)
    raw.evaluation.update(members=4, windows=8, horizon=2 * H, saved=2, figures=())
    raw.scores.update(names=("crps", "spread_skill"))
    raw.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return raw


def built(raw):
    loaded = build.load(raw)
    return build.build(loaded, build.spec_card(loaded))


def trained_weights(run, seed=0):
    """Fresh weights of every stage, moved away from zero, as a system of no use but of every part."""
    weights = {}
    for number, stage in enumerate(run.stages):
        params = stage.objective.init(jax.random.key(seed + number))
        weights[stage.name] = jax.tree.map(lambda leaf: leaf + 0.01, params)
    return weights | {"calibration": ()}


# What is read


@pytest.mark.parametrize(
    "method, stage, possible",
    [("dyffusion", 0, range(2, 1 + H)), ("dyffusion", 1, [1 + H]), ("dropout", 0, range(2, 2 + H))],
    ids=["interpolator", "forecaster", "direct"],
)
def test_a_stage_reads_its_frames_of_the_window_and_no_others(method, stage, possible, data):
    raw = config(data, method, window__num_context=2)
    windows, frames = commands.open_data(build.load(raw)).train, built(raw).stages[stage].frames
    whole, some = TrainBatches(windows, 32, seed=3), TrainBatches(windows, 32, seed=3, frames=frames)
    seen = set()
    for step in range(4):
        found, expected = some.rows(step, range(32)), whole.rows(step, range(32))
        assert found.frames.shape[1] == found.at.shape[1] == frames.count and expected.at is None
        np.testing.assert_array_equal(found.at[:, :2], [[0, 1]] * 32)
        rows = np.arange(32)[:, None]
        np.testing.assert_array_equal(found.frames, expected.frames[rows, found.at])
        seen |= set(found.at[:, 2].tolist())
        np.testing.assert_array_equal(some.rows(step, [5]).at, found.at[5:6])
    assert seen == set(possible), "each of the leads, and each by its own example"


# What is drawn


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dyffusion", "dropout", "perturbation"])
def test_a_member_is_the_same_whatever_chunk_it_is_drawn_in(method, data):
    """Dropout and noise are drawn from the key of a row; a convolution of another batch rounds in another order."""
    run = built(config(data, method))
    weights, frames = trained_weights(run), np.load(data / "0.npy")[None, :3].swapaxes(0, 1)
    found = []
    for chunk in (2, 3):
        driver = Ensemble(run.system.forecaster(), 2 * H, chunk)
        found.append(gather(driver.pieces(weights, jax.random.key(0), Batch(frames), 2), 2, 3, 2 * H))
    np.testing.assert_allclose(*found, rtol=0, atol=2e-5)
    assert np.isfinite(found[0]).all() and np.abs(found[0][0] - found[0][1]).max() > 1e-3


def test_the_next_block_begins_with_the_last_frame_of_the_one_before(data):
    run = built(config(data, "dyffusion", **{"system__interpolator__name": "none"}))
    weights, first = trained_weights(run), np.load(data / "1.npy")[None, :1]

    def drawn(frames, horizon):
        driver = Ensemble(run.system.forecaster(), horizon, 1)
        return gather(driver.pieces(weights, jax.random.key(0), Batch(frames), 1), 1, 1, horizon)[0]

    rolled = drawn(first, 2 * H)
    again = drawn(rolled[:, H - 1 : H], H)
    np.testing.assert_allclose(again, rolled[:, H:], rtol=1e-5, atol=1e-6)


# What is learnt


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "noise"])
def test_an_interpolator_learns_the_spread_of_the_bridge(name, data, tmp_path):
    """Within 5 % at every lead, of an AR(1) process at every point."""
    changes = {
        "system__interpolator__name": name,
        "train__steps": 600,
        "train__batch_size": 64,
        "train__log_every": 200,
    }
    raw = config(data, "dyffusion", **changes, stages={"forecaster": {"train": {"steps": 3}}})
    commands.train(raw, tmp_path / "run")
    run = built(raw)
    weights, _ = scoring.load_run(run, make_mesh(run.config.mesh), tmp_path / "run")
    functions = run.system.functions
    rng = np.random.default_rng(5)
    x0 = rng.normal(size=(64, 6, 6, 1)).astype(np.float32)
    xh = (A**H * x0 + np.sqrt(1 - A ** (2 * H)) * rng.normal(size=x0.shape)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 64)
    bound = functions.interpolate(weights["interpolator"], x0[:, None], None, keys)
    draws = jax.jit(lambda lead: jax.vmap(lambda draw: bound.draw(draw, x0, xh, lead))(np.arange(256)))
    for lead in range(1, H):
        own, left = 1 - A ** (2 * lead), 1 - A ** (2 * (H - lead))
        expected = np.sqrt(own * left / (1 - A ** (2 * H)))
        found = np.asarray(draws(float(lead)))
        assert np.sqrt(found.var(axis=0, ddof=1).mean()) == pytest.approx(expected, rel=0.05), lead
        mean = (A**lead * left * x0 + A ** (H - lead) * own * xh) / (1 - A ** (2 * H))
        assert np.sqrt(((found.mean(axis=0) - mean) ** 2).mean()) < 0.25 * expected


@pytest.mark.slow
def test_both_stages_through_the_commands_and_again(data, tmp_path, monkeypatch):
    """Lines and checkpoints of each; a second start trains nothing and forecasts the same, between the leads too."""
    raw = config(data, "dyffusion", train__steps=60, train__log_every=20)
    folder = commands.train(raw, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == 3 * ["interpolator"] + 3 * ["forecaster"]
    assert {"loss_forecast", "loss_look_ahead"} <= lines[-1].keys()
    scores = json.loads((folder / "metrics.json").read_text())
    cost = scores["cost"]
    assert cost["nfe_per_frame"] == cost["network_frames_per_frame"] == (H + 2 * H - 3) / H
    assert cost["networks"] == 2 and cost["training_steps"] == 120
    assert {name: stage["steps"] for name, stage in cost["stages"].items()} == dict(
        interpolator=60, forecaster=60
    )
    for name in ("steps", "seconds", "gflop"):
        parts = [stage[name] for stage in cost["stages"].values()]
        assert min(parts) > 0 and cost[f"training_{name}"] == pytest.approx(sum(parts))
    assert scores["scores"]["dyffusion"]["crps"]["mean"] < scores["scores"]["persistence"]["crps"]["mean"]
    assert commands.train(raw, tmp_path / "run") == folder
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == len(lines)
    np.save(tmp_path / "now.npy", np.load(data / "0.npy")[:1])
    monkeypatch.setattr(commands.plots, "animate", lambda folder: None)
    raw.evaluation.horizon = H + 1
    for substeps in (1, 4):
        commands.forecast(raw, tmp_path / "run", tmp_path / "now.npy", 2, substeps)
    found = [np.load(tmp_path / f"run/forecast/now{end}/forecast.npz") for end in ("", "_substeps_4")]
    np.testing.assert_array_equal(found[0]["leads"], np.arange(1, H + 2))
    np.testing.assert_array_equal(found[1]["leads"], np.arange(1, 4 * H + 5) / 4)
    np.testing.assert_array_equal(found[1]["ensemble"][:, :, 3::4], found[0]["ensemble"])


# What is refused


@pytest.mark.parametrize(
    "method, changes, message",
    [
        ("dyffusion", dict(window__num_forecast=1), "system.leads.horizon: expected 2 forecast frames or more"),
        ("dyffusion", dict(window__num_context=0), "window.num_context: expected 1 context frame"),
        ("dropout", dict(window__num_context=0), "window.num_context: expected 1 context frame"),
        ("dyffusion", dict(networks__interpolator__dropout=0.0), "interpolator.dropout: expected a rate above 0"),
        ("dropout", dict(networks__forecaster__dropout=0.0), "forecaster.dropout: expected a rate above 0"),
        ("dyffusion", dict(system__sampler__name="ancestral"), "sampler.name: 'ancestral' needs an interpolator"),
        ("dyffusion", dict(system__leads__factor=2), "leads.factor: belongs to the schedules"),
        ("dyffusion", dict(system__degrade=-1.0), "system.degrade: expected 0 or more"),
        ("perturbation", dict(system__scale=0.0), "system.scale: expected a standard deviation above 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_data_is_read(method, changes, message, data):
    with pytest.raises(ConfigError, match=message):
        built(config(data, method, **changes))


def test_every_kind_of_interpolator_is_named():
    assert set(INTERPOLATORS) == {"dropout", "gaussian", "noise", "none"}
