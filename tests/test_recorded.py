"""Short runs of every method on both flows: what they write, and that they give the figures that were recorded.

With the recorded processor and compiler they give the same bits (``python -m tests.recorded``). Others add in another
order: a loss or a norm, a sum over thousands of points after 20 steps of training, moves in its last two or three of
seven digits; a forecast passes its rounding through a dozen evaluations of the network and windows that go on from
their own frames, which carry it further.
"""

import json
import shutil

import numpy as np
import pytest

from dydiff_jax.runs import commands
from tests import recorded

KNOWN = json.loads(recorded.FILE.read_text())
RUNS = [(flow, method) for flow in recorded.FLOWS for method in recorded.METHODS]

#: What the header of metrics.json says beside the scores.
HEADER = {"method", "size", "split", "step", "weights", "seed", "members", "windows", "horizon", "leads", "interval",
          "time_unit", "unit", "fields", "kind", "command", "definitions", "scores", "cost", "calibration"}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded_runs(tmp_path_factory):
    """(flow, method) -> work directory, folder of the evaluation and config of a run, made once."""
    made = {}

    def run(flow, method):
        if (flow, method) not in made:
            raw, directory = recorded.config(flow, method), tmp_path_factory.mktemp("recorded") / method
            made[flow, method] = directory, commands.train(raw, directory), raw
        return made[flow, method]

    return run


def test_every_run_is_recorded():
    assert set(KNOWN) == {f"{flow}/{method}" for flow, method in RUNS}


@pytest.mark.parametrize("flow, method", RUNS)
def test_training_gives_the_recorded_losses_and_norms(flow, method, recorded_runs):
    known, found = KNOWN[f"{flow}/{method}"], measured(flow, method, recorded_runs)
    np.testing.assert_allclose(found["losses"], known["losses"], rtol=2e-4)
    for name in ("params_norm", "ema_norm"):
        assert found[name] == pytest.approx(known[name], rel=2e-4), name


@pytest.mark.parametrize("flow, method", RUNS)
def test_forecasts_have_the_recorded_moments_and_score(flow, method, recorded_runs):
    known, found = KNOWN[f"{flow}/{method}"], measured(flow, method, recorded_runs)
    assert found["forecast_shape"] == known["forecast_shape"]
    assert found["forecast_std"] == pytest.approx(known["forecast_std"], rel=5e-3)
    assert found["forecast_mean"] == pytest.approx(known["forecast_mean"], abs=5e-3 * known["forecast_std"])
    assert found["crps"] == pytest.approx(known["crps"], rel=5e-3)


def measured(flow, method, recorded_runs):
    directory, folder, raw = recorded_runs(flow, method)
    return recorded.measure(raw, directory, folder)


@pytest.mark.parametrize("flow, method", RUNS)
def test_every_method_trains_and_evaluates(flow, method, recorded_runs):
    directory, folder, raw = recorded_runs(flow, method)
    assert folder == directory / "eval/step_20"
    header = json.loads((folder / "metrics.json").read_text())
    assert header.keys() >= HEADER
    horizon, members = (8 if flow == "turbulence" else 6), 1 if method == "regression" else 2
    assert header["leads"] == list(range(1, horizon + 1))
    assert len(header["scores"][method]["crps"]["per_lead"]) == horizon
    cost = header["cost"]
    assert cost["frames"] == members * 4 * horizon
    assert cost["nfe_per_frame"] == (1 if method == "regression" else 6 if flow == "turbulence" else 4)
    p, k = raw.window.num_context, raw.window.num_forecast
    assert cost["network_frames_per_frame"] == pytest.approx(cost["nfe_per_frame"] * (p + k) / k)
    assert cost["networks"] == 1 and cost["training_steps"] == 20
    positive = "training_seconds", "sampling_seconds", "parameters", "gflop_per_frame", "training_gflop"
    assert min(cost[name] for name in positive) > 0
    if method == "rolling_dynamical":
        assert len(header["calibration"]) == 2 and min(header["calibration"]) > 0
    else:
        assert header["calibration"] == []
    assert header["scores"][method]["crps"]["mean"] > 0
    assert header["scores"][method]["crps"]["members"] == members


def test_a_finished_run_is_scored_beside_another(recorded_runs, tmp_path):
    """A copy of the standard run, evaluated beside the regression: both rows, its own scores as they were."""
    beside, _, _ = recorded_runs("turbulence", "regression")
    directory, folder, raw = recorded_runs("turbulence", "standard")
    copy = shutil.copytree(directory, tmp_path / "standard")
    raw = raw.copy_and_resolve_references()
    raw.evaluation.beside = (str(beside),)
    again = commands.evaluate_run(raw, copy)
    assert again == copy / "eval/step_20-2", "the first evaluation stays"
    table = (again / "table.md").read_text()
    assert "| regression |" in table and "| standard |" in table
    own, both = (json.loads((path / "metrics.json").read_text())["scores"] for path in (folder, again))
    assert own["standard"] == both["standard"] and both["regression"]["crps"]["members"] == 1
