"""The exact law as a baseline: what it scores is known, it is the same for a seed, and nothing honest is below it."""

import dataclasses
import json

import numpy as np
import pytest

from dydiff_jax import metrics
from dydiff_jax.data.simulators import ensemble as simulators
from dydiff_jax.data.sources.hasselmann import Hasselmann
from dydiff_jax.data.splits import DatasetOptions, make_splits, reference_windows
from dydiff_jax.data.windows import select
from dydiff_jax.evaluation import evaluate
from dydiff_jax.evaluation.baselines import BASELINES, EXACT_LAW
from dydiff_jax.evaluation.scores import ScoreOptions

K, MEMBERS = 4, 10
#: A field that forgets within three frames, so that windows six frames apart are nearly independent.
OPTIONS = dict(grid=(8, 10), velocity=(0.7, -0.4), damping=0.35, diffusion=0.1, slope=1.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    made = Hasselmann(
        **OPTIONS, duration=240.0, trajectories=3, cache_dir=str(tmp_path_factory.mktemp("cache"))
    )
    made.folder.mkdir(parents=True)
    simulators.simulate(made, [0, 1, 2], lambda frames: None)
    return made


def evaluation(source, crop=None, **changes):
    """All windows of the test split, and the training split."""
    options = DatasetOptions(2, K, stride=6, fractions=(0.4, 0.0, 0.6), crop=crop, random_crop=False)
    data = source.load()
    scored, training = make_splits(data, options).test, reference_windows(data, options, K)
    law, without = evaluate.exact_law(scored)
    made = evaluate.Evaluation(
        scored=evaluate.Sample(scored.batch(), scored.crops),
        training=evaluate.Sample(training.batch(), training.crops),
        spec=source.spec(),
        num_context=2,
        members=MEMBERS,
        seed=0,
        scores=ScoreOptions(pool_window=4, csi_window=3),
        law=law,
        without=without,
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def known(source):
    return evaluation(source)


@pytest.fixture(scope="module")
def ensembles(known):
    return dict(evaluate.baseline_ensembles(known))


def standard_errors_below(ensemble, law, truth):
    """By how many standard errors the fair CRPS of an ensemble is below that of draws of the exact law, [k]."""
    mean, error = metrics.crps_difference(ensemble, law, truth)
    return -mean / error


def test_it_scores_what_the_law_says(source, known, ensembles):
    """Fair CRPS s / sqrt(pi) at each lead within three standard errors over windows; spread as large as the error."""
    drawn, truth = ensembles[EXACT_LAW], known.truth
    assert drawn.shape == (MEMBERS, *truth.shape) and drawn.dtype == np.float32 and len(truth) > 60
    expected = np.sqrt(source.variance(K) / np.pi)
    points = metrics.crps_ensemble(drawn, truth).mean(axis=(2, 3, 4))
    error = points.std(axis=0, ddof=1) / np.sqrt(len(points))
    assert np.all(error < 0.04 * expected), "the bound means something"
    np.testing.assert_array_less(np.abs(points.mean(axis=0) - expected), 3 * error)
    np.testing.assert_allclose(metrics.spread_skill_ratio(drawn, truth), 1, atol=0.05)
    mean, spread = metrics.crps_difference(drawn, truth[None], truth)
    np.testing.assert_allclose(mean, points.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(spread, error, rtol=1e-6)


def test_nothing_that_needs_no_truth_is_below_it_and_what_has_seen_it_is(known, ensembles):
    law, truth = ensembles[EXACT_LAW], known.truth
    assert [name for name in ensembles if name != EXACT_LAW] == list(BASELINES)[:-1]
    for name in list(BASELINES)[:-1]:
        below = standard_errors_below(ensembles[name], law, truth)
        assert np.all(below < 3) and below[0] < -10, (
            name
        )  # climatology is nearly as good once the field has forgotten
        assert np.all(below < -15) or "climatology" in name
    again = dict(evaluate.baseline_ensembles(dataclasses.replace(known, seed=1)))[EXACT_LAW]
    assert np.all(np.abs(standard_errors_below(again, law, truth)) < 3), "other draws of the same law"
    leak = law + 0.2 * (truth - law)
    assert np.all(standard_errors_below(leak, law, truth) > 5)


def test_the_seed_decides_its_draws_and_a_window_is_the_same_beside_others(known, ensembles):
    drawn = ensembles[EXACT_LAW]
    again = dict(evaluate.baseline_ensembles(known))
    for name, ensemble in again.items():
        np.testing.assert_array_equal(ensemble, ensembles[name])
    values = drawn.reshape(MEMBERS * drawn.shape[1], -1)
    assert len(np.unique(values[:, 0])) == len(values), "members and windows are draws of their own"
    first = known.scored.batch._replace(frames=known.scored.batch.frames[:2])
    few = dataclasses.replace(known, scored=evaluate.Sample(first, known.scored.crops[:2]))
    for (name, ensemble), other in zip(evaluate.baseline_ensembles(few), BASELINES, strict=True):
        assert name == other and ensemble.shape[1] == 2


def test_other_baselines_draw_what_they_draw_without_it(known, ensembles):
    without = dict(evaluate.baseline_ensembles(dataclasses.replace(known, law=None)))
    assert list(without) == list(BASELINES)[:-1]
    for name, ensemble in without.items():
        np.testing.assert_array_equal(ensemble, ensembles[name])


def test_it_is_left_out_of_crops_and_of_data_with_holes_with_the_reason(source, tmp_path):
    cropped = evaluation(source, crop=8)
    assert cropped.law is None and cropped.truth.shape[2:4] == (8, 8)
    message = (
        "expected windows of the whole field, 8 x 10, whose law is known, found crops of 8 x 8; use "
        "--config.dataset.crop=None"
    )
    assert cropped.without == {EXACT_LAW: message}
    header = dict(
        method="persistence", windows=4, weights="EMA", step=1, members=1, leads=[1, 2, 3, 4], interval=1.0
    )
    header |= dict(time_unit="day", unit="K", fields=["temperature"], kind="field", command="")
    header |= dict(score_options={}, evaluation={"saved": 1, "figures": ["error_over_lead"]})
    still = dict(evaluate.baseline_ensembles(cropped))["persistence"]
    evaluate.write_scores(tmp_path, header, {"persistence": still}, cropped)
    assert f"Without {EXACT_LAW}: {message}." in (tmp_path / "table.md").read_text()
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["left_out"] == {EXACT_LAW: message} and EXACT_LAW not in found["scores"]
    data = source.load()
    windows = select(make_splits(data, DatasetOptions(2, K)).test, 2)
    mask = tuple(np.ones((1, 1, 1, 1), bool) for _ in data.arrays)
    holes = dataclasses.replace(windows, trajectories=dataclasses.replace(data, observed=mask))
    assert evaluate.exact_law(holes)[1][EXACT_LAW].startswith("expected context frames without missing")
    other = dataclasses.replace(windows, trajectories=dataclasses.replace(data, law=None))
    assert evaluate.exact_law(other) == (None, {})
