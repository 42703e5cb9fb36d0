"""Short runs of every method on both flows still give the figures that were recorded.

With the recorded processor and compiler they give the same bits (``python -m tests.recorded``). Others add in another
order: a loss or a norm, a sum over thousands of points after 20 steps of training, moves in its last two or three of
seven digits; a forecast passes its rounding through a dozen evaluations of the network and windows that go on from
their own frames, which carry it further.
"""

import json

import numpy as np
import pytest

from tests import recorded

KNOWN = json.loads(recorded.FILE.read_text())
RUNS = [(flow, method) for flow in recorded.FLOWS for method in recorded.METHODS]

pytestmark = pytest.mark.slow


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
