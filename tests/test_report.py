"""Scores for JSON: values, what is undefined or missing, which are made, and definitions beside them."""

import dataclasses
import json

import numpy as np
import pytest

from dydiff_jax import metrics
from dydiff_jax.evaluation import scores as scoring

NAMES = {
    "crps",
    "crps_biased",
    "crps_w8_avg",
    "crps_w8_max",
    "crps_w8_avg_nonneg",
    "crps_w8_max_nonneg",
    "rmse",
    "mae",
    "spread",
    "spread_skill",
    "csi_w5",
    "spectrum_error",
}


KINDS = ("field", "video", "series")


def forecast(e=4, shape=(3, 2, 12, 12, 2), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(e, *shape)).astype(np.float32), rng.normal(size=shape).astype(np.float32)


def test_every_score_is_that_of_its_metric():
    ensemble, truth = forecast()
    truth = truth + 2.0  # some places without a negative truth
    scores = scoring.score(ensemble, truth)
    expected = {
        "crps": metrics.crps_per_lead(ensemble, truth),
        "crps_biased": metrics.crps_per_lead(ensemble, truth, fair=False),
        "crps_w8_avg": metrics.pooled_crps(ensemble, truth, 8, 2, "avg"),
        "crps_w8_max": metrics.pooled_crps(ensemble, truth, 8, 2, "max"),
        "crps_w8_avg_nonneg": metrics.pooled_crps(ensemble, truth, 8, 2, "avg", nonneg_mask=True),
        "crps_w8_max_nonneg": metrics.pooled_crps(ensemble, truth, 8, 2, "max", nonneg_mask=True),
        "rmse": metrics.rmse(ensemble, truth),
        "mae": metrics.mae(ensemble, truth),
        "spread": metrics.spread(ensemble, truth),
        "spread_skill": metrics.spread_skill_ratio(ensemble, truth),
        "csi_w5": metrics.csi(ensemble, truth, 0.0, pool=5, stride=2, padding=2),
        "spectrum_error": metrics.spectrum_error(ensemble, truth),
    }
    assert set(scores) == NAMES | {"rank_histogram", "spectrum"} and set(expected) == NAMES
    for name, values in expected.items():
        defined = [None if np.isnan(value) else value for value in values]
        assert scores[name]["per_lead"] == defined, name
        assert scores[name]["mean"] == (
            None if None in defined else pytest.approx(values.mean(), rel=1e-14)
        ), name
        assert scores[name]["members"] == 4


def test_ranks_and_spectrum():
    ensemble, truth = forecast()
    scores = scoring.score(ensemble, truth)
    assert scores["rank_histogram"]["counts"] == metrics.rank_histogram(ensemble, truth).sum(axis=0).tolist()
    wavenumber, spectra = metrics.lead_spectra(ensemble, truth)
    spectrum = scores["spectrum"]
    assert spectrum["wavenumber"] == wavenumber.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([spectrum["forecast"], spectrum["truth"]], spectra[-1], rtol=1e-13)


def test_one_member_has_no_spread_and_its_crps_is_its_mae():
    ensemble, truth = forecast(e=1)
    scores = scoring.score(ensemble, truth)
    for name in ("spread", "spread_skill"):
        assert scores[name]["per_lead"] == [None, None] and scores[name]["mean"] is None
    assert scores["rank_histogram"]["counts"] is None
    for name in ("crps", "crps_biased"):
        assert scores[name]["per_lead"] == pytest.approx(scores["mae"]["per_lead"], rel=1e-12)


def test_a_mask_that_leaves_nothing_is_none_and_counted():
    ensemble, truth = forecast()
    truth[:, 0, 0, 0] = truth[
        :, 0, ::4, ::4
    ] = -1.0  # no 8 x 8 places without a negative truth at the first lead
    entry = scoring.score(ensemble, truth)["crps_w8_avg_nonneg"]
    assert entry["per_lead"] == [None, None] and entry["mean"] is None and entry["windows"] == 0
    scores = scoring.score(ensemble, np.concatenate([truth[:1], np.abs(truth[1:])]))
    assert scores["crps_w8_max_nonneg"]["windows"] == 2 and scores["crps_w8_max"]["windows"] == 3


def test_scores_are_json_without_nan():
    ensemble, truth = forecast()
    text = json.dumps(scoring.score(ensemble, np.minimum(truth, -0.1)), allow_nan=False)
    assert json.loads(text)["csi_w5"]["mean"] == 0.0
    nothing = scoring.score(-np.abs(ensemble) - 1, -np.abs(truth) - 1)
    assert nothing["csi_w5"]["per_lead"] == [None, None]
    json.dumps(nothing, allow_nan=False)


def test_definitions_stand_beside_the_scores_and_name_the_options():
    ensemble, truth = forecast()
    options = scoring.ScoreOptions(
        pool_window=4, pool_stride=3, csi_threshold=0.25, csi_window=3, csi_stride=1
    )
    scores = scoring.score(ensemble, truth, options, unit="m/s")
    table = scoring.chosen(options, "field", truth.shape[2:])
    sentences = scoring.definitions(table, options, members=4, windows=3, unit="m/s")
    assert {name: entry["definition"] for name, entry in scores.items()} == sentences
    for sentence in sentences.values():
        assert "4 members, 3 windows" in sentence
    for name in ("crps", "crps_w4_avg", "crps_w4_max_nonneg", "rmse", "mae", "spread", "spectrum"):
        assert "m/s" in sentences[name]
    assert "4 x 4 points at stride 3" in sentences["crps_w4_max"] and "maximum" in sentences["crps_w4_max"]
    assert "no mask" in sentences["crps_w4_avg"] and "nowhere negative" in sentences["crps_w4_avg_nonneg"]
    assert ">= 0.25" in sentences["csi_w3"] and "1 points of padding" in sentences["csi_w3"]
    np.testing.assert_array_equal(scores["csi_w3"]["per_lead"], metrics.csi(ensemble, truth, 0.25, 3, 1, 1))


def test_the_scores_of_dyffusion_are_made_where_they_are_asked_for():
    ensemble, truth = forecast()
    full, scores = (scoring.score(ensemble, truth, scoring.ScoreOptions(biased=on)) for on in (False, True))
    expected = {
        "mse_mean": metrics.mse_mean(ensemble, truth),
        "ssr_biased": metrics.ssr_biased(ensemble, truth),
        "ssr_biased_window": metrics.ssr_biased(ensemble, truth, per="window"),
    }
    assert set(scores) - set(full) == set(expected)
    for name, values in expected.items():
        assert scores[name]["per_lead"] == values.tolist(), name
        assert "DYffusion" in scores[name]["definition"]
    assert len({scores[name]["definition"] for name in expected}) == 3
    lone = scoring.score(ensemble[:1], truth, scoring.ScoreOptions(biased=True))
    assert lone["ssr_biased"]["mean"] is None and lone["mse_mean"]["members"] == 1


def test_a_grid_smaller_than_the_window_has_no_pooled_score():
    ensemble, truth = forecast(shape=(2, 2, 6, 12, 1))
    full = scoring.score(ensemble, truth, scoring.ScoreOptions(pool_window=6))
    names = ("crps", "crps_w8_avg")
    assert list(scoring.score(ensemble, truth)) == [name for name in full if "_w6_" not in name]
    ensemble[:, 0, 0, 0, 0, 0] = np.nan  # which any metric would refuse
    with pytest.raises(
        ValueError, match="no crps_w8_avg .*: pool_window: .* side of the grid of 6 x 12, found 8"
    ):
        scoring.score(ensemble, truth, scoring.ScoreOptions(names=names))


def test_a_series_has_the_scores_of_points_alone():
    ensemble, truth = forecast(shape=(3, 2, 1, 1, 5))
    scores = scoring.score(ensemble, truth, kind="series")
    points = ["crps", "crps_biased", "rmse", "mae", "spread", "spread_skill", "rank_histogram"]
    assert list(scores) == points
    assert scores["crps"]["per_lead"] == pytest.approx(metrics.crps_per_lead(ensemble, truth), rel=1e-14)
    for name in ("spectrum", "spectrum_error", "csi_w5", "crps_w8_max_nonneg"):
        with pytest.raises(ValueError, match=f"names: no {name} for these data: .* 1 x 1"):
            scoring.chosen(scoring.ScoreOptions(names=(name,)), "series", (1, 1, 5))
    for options in ({"fsd_samples": 3}, {"flow": True}):
        with pytest.raises(ValueError, match="expected"):
            scoring.chosen(scoring.ScoreOptions(**options), "series", (1, 1, 2))


def test_the_kind_of_the_data_decides_which_scores_are_made():
    made = {kind: set(scoring.chosen(scoring.ScoreOptions(), kind, (12, 12, 2))) for kind in KINDS}
    assert made["field"] == NAMES | {"rank_histogram", "spectrum"}
    assert made["video"] == made["field"] - {"csi_w5", "crps_w8_avg_nonneg", "crps_w8_max_nonneg"}
    assert made["series"] < made["video"]


def test_listed_scores_alone_are_made_in_the_order_of_the_table():
    ensemble, truth, reference = flow()
    options = scoring.ScoreOptions(fsd_samples=4, mse_scale=7.0, flow=True)
    full = scoring.score(ensemble, truth, options, "m/s", reference)
    for names in [("spectrum", "mse", "csi_w5", "crps"), ("fsd", "rank_histogram", "crps_w8_max")]:
        found = scoring.score(
            ensemble, truth, dataclasses.replace(options, names=names), "m/s", reference, kind="video"
        )
        assert list(found) == [name for name in full if name in names]
        assert found == {name: full[name] for name in found}
    assert set(scoring.score(ensemble, truth, scoring.ScoreOptions(names=("mse",)))) == {"mse"}
    no_distance = dataclasses.replace(options, names=("crps",), fsd_samples=99)
    assert set(scoring.score(ensemble, truth, no_distance)) == {"crps"}  # which needs no 99 samples


def test_a_listed_score_without_meaning_or_name_is_refused_with_the_reason():
    def chosen(name, members=None, **options):
        return scoring.chosen(scoring.ScoreOptions(names=(name,), **options), "field", (12, 12, 3), members)

    with pytest.raises(ValueError, match=r"names: expected scores among \['crps', .*, found \['crsp'\]"):
        chosen("crsp")
    with pytest.raises(ValueError, match=r"found \['crps_w8_avg'\]"):
        chosen("crps_w8_avg", pool_window=4)
    for name, reason in {
        "fsd": "fsd_samples: expected a number of frames, found None",
        "mse_sum": "mse_scale: expected a number, found None",
        "energy_spectrum": "flow: expected True",
    }.items():
        with pytest.raises(ValueError, match=f"names: no {name} for these data: {reason}"):
            chosen(name)
    with pytest.raises(ValueError, match="flow: expected the two channels u and v, found 3"):
        chosen("enstrophy_spectrum", flow=True)
    for name in ("spread", "spread_skill", "ssr_biased", "ssr_biased_window", "rank_histogram"):
        with pytest.raises(
            ValueError, match=f"no {name} for these data: members: expected 2 or more, found 1"
        ):
            chosen(name, members=1)
        assert list(chosen(name, members=2)) == [name]


def test_every_score_of_the_table_has_its_words_and_a_kind_or_an_option():
    for name, score in scoring.SCORES.items():
        assert score.title and score.plain.format(unit="m") and score.definition, name
        assert bool(score.kinds) != bool(score.asked), name
        assert score.over_leads or name in scoring.ARRAYS


def test_better_is_the_direction_of_a_calibrated_ensemble():
    """Truth and members from one law against members far off, whose spread is too small."""
    ensemble, truth, reference = flow(e=6, shape=(20, 2, 12, 12, 2), reference=20)
    signal = np.random.default_rng(3).normal(size=truth.shape) + 3.0
    truth, ensemble = signal + 0.2 * truth, signal + 0.2 * ensemble
    options = scoring.ScoreOptions(csi_threshold=5.0, fsd_samples=20, mse_scale=7.0, flow=True, biased=True)
    poor = 1.5 * ensemble[:, ::-1] + 0.001 * ensemble
    poor = poor.mean(axis=0) + 0.1 * (poor - poor.mean(axis=0))
    good, bad = (scoring.score(x, truth, options, "", reference) for x in (ensemble, poor))
    better = {
        "low": lambda a, b: a < b,
        "high": lambda a, b: a > b,
        "one": lambda a, b: abs(a - 1) < 0.1 < abs(b - 1),
        "none": lambda a, b: True,
    }
    for name, score in scoring.named(options).items():
        if score.over_leads:
            assert good[name]["better"] == score.better
            assert better[score.better](good[name]["mean"], bad[name]["mean"]), name
    undirected = [name for name, score in scoring.SCORES.items() if score.better == "none"]
    assert undirected == ["spread", "ssr_biased", "ssr_biased_window", "fsd_floor", *scoring.ARRAYS]


def incomplete():
    """A forecast in which some windows are whole, and a mask [b, k, h, w, 1] that has holes in the others."""
    ensemble, truth, reference = flow(shape=(9, 3, 12, 12, 2), reference=9)
    ensemble, truth = ensemble + 3.0, truth + 3.0  # most places without a negative truth
    observed = np.ones((9, 3, 12, 12, 1), bool)
    observed[0, 0, 2, 3] = observed[1, 1, :3] = observed[2, 2] = observed[3, :, 11, 11] = False
    asked = dict(fsd_samples=4, mse_scale=7.0, flow=True, biased=True)
    options = scoring.ScoreOptions(pool_window=4, csi_threshold=5.0, **asked)
    return ensemble, truth, options, reference, observed


def test_what_stands_at_a_missing_point_changes_no_score():
    ensemble, truth, options, reference, observed = incomplete()
    texts = set()
    for filled in (0.0, np.nan, np.inf, -1e30, ensemble[0]):  # ties with a member among them
        values = np.where(observed, truth, filled).astype(np.float32)
        scores = scoring.score(ensemble, values, options, "m/s", reference, observed)
        assert list(scores) == list(scoring.score(ensemble, truth, options, "m/s", reference))
        texts.add(json.dumps(scores, allow_nan=False))
    assert len(texts) == 1
    with pytest.raises(ValueError, match="NaN or infinite in the truth"):
        scoring.score(ensemble, np.where(observed, truth, np.nan), options, "m/s", reference)


def test_a_mask_changes_every_score_and_says_so_and_one_without_holes_none():
    ensemble, truth, options, reference, observed = incomplete()
    full = scoring.score(ensemble, truth, options, "m/s", reference)
    for whole in (np.ones(truth.shape, bool), np.ones((1, 1, 1, 1, 1), bool), None):
        assert scoring.score(ensemble, truth, options, "m/s", reference, whole) == full
    masked = scoring.score(ensemble, truth, options, "m/s", reference, observed)
    for name, entry in masked.items():
        numbers = {key: value for key, value in entry.items() if key != "definition"}
        assert any(numbers[key] != full[name][key] for key in numbers), name
        assert f"; only {scoring.named(options)[name].counted}" in entry["definition"]


def test_spectra_and_distances_use_windows_that_are_wholly_observed():
    ensemble, truth, options, reference, observed = incomplete()
    found = scoring.score(ensemble, truth, options, "m/s", reference, observed)
    for lead in range(3):
        whole = observed[:, lead].all(axis=(1, 2, 3))
        assert 5 <= whole.sum() < 9
        alone = scoring.score(
            ensemble[:, whole, lead : lead + 1], truth[whole, lead : lead + 1], options, "m/s", reference
        )
        for name in ("fsd", "fsd_floor", "spectrum_error"):
            assert found[name]["per_lead"][lead] == alone[name]["per_lead"][0], name
    for name in ("spectrum", "energy_spectrum", "enstrophy_spectrum"):
        assert {**found[name], "definition": ""} == {**alone[name], "definition": ""}


def test_a_distance_looks_at_holes_in_its_own_field_alone():
    ensemble, truth, options, reference, _ = incomplete()
    observed = np.ones(truth.shape, bool)
    observed[::2, :, 4, 4, 1] = False
    full, found = (scoring.score(ensemble, truth, options, "m/s", reference, o) for o in (None, observed))
    assert found["fsd"]["per_lead"] == full["fsd"]["per_lead"]
    other = scoring.score(
        ensemble, truth, dataclasses.replace(options, fsd_field=1), "m/s", reference, observed
    )
    alone = scoring.score(
        ensemble[:, 1::2], truth[1::2], dataclasses.replace(options, fsd_field=1), "m/s", reference
    )
    assert other["fsd"]["per_lead"] == alone["fsd"]["per_lead"]


def test_without_enough_whole_windows_there_is_no_distance_and_no_spectrum():
    ensemble, truth, options, reference, observed = incomplete()
    observed[:6, 2, 5, 5] = False  # 3 of 9 windows are whole at the last lead
    scores = scoring.score(ensemble, truth, options, "m/s", reference, observed)
    for name in ("fsd", "fsd_floor"):
        assert scores[name]["per_lead"][2] is None and None not in scores[name]["per_lead"][:2]
    observed[:, 2, 5, 5] = False
    scores = scoring.score(ensemble, truth, options, "m/s", reference, observed)
    for name in ("spectrum", "energy_spectrum", "enstrophy_spectrum"):
        assert scores[name]["forecast"] == scores[name]["truth"] == [None] * 6
        assert scores[name]["wavenumber"] == [1, 2, 3, 4, 5, 6]
    assert scores["spectrum_error"]["per_lead"][2] is None
    assert scores["crps"]["per_lead"][2] is not None


def test_shapes_and_values_are_checked():
    ensemble, truth = forecast()
    with pytest.raises(ValueError, match=r"found shapes \(4, 3, 2, 12, 12, 2\) and \(2, 2, 12, 12, 2\)"):
        scoring.score(ensemble, truth[:2])
    ensemble[0, 0, 1, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="1 of 3456 NaN or infinite in the ensemble at frame 2"):
        scoring.score(ensemble, truth)


@pytest.mark.parametrize(
    "name, value",
    [
        ("pool_window", 0),
        ("csi_stride", 0),
        ("csi_threshold", np.nan),
        ("rank_seed", -1),
        ("names", ()),
        ("names", ("crps", "crps")),
        ("leads", ()),
        ("leads", (0, 1)),
        ("leads", (2, 1)),
        ("leads", (1, 1)),
        ("fsd_samples", 1),
        ("fsd_field", -1),
        ("mse_scale", 0.0),
        ("mse_scale", np.inf),
    ],
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        scoring.ScoreOptions(**{name: value})


def flow(e=3, shape=(5, 4, 12, 12, 2), reference=7):
    rng = np.random.default_rng(1)
    ensemble, truth = forecast(e, shape)
    return ensemble, truth, rng.normal(size=(reference, *shape[2:])).astype(np.float32)


def test_spectral_distance_of_each_member_in_turn_beside_its_floor():
    ensemble, truth, reference = flow()
    options = scoring.ScoreOptions(leads=(1, 3, 24), fsd_samples=4, fsd_field=1, fsd_norm="ortho")
    scores = scoring.score(ensemble, truth, options, "m/s", reference)
    windows, frames = [0, 1, 2, 3], [0, 1, 3, 5]  # 4 of 5 and 4 of 7, evenly spaced
    assert scores["fsd"]["windows"] == scores["fsd_floor"]["windows"] == 4
    assert scores["fsd"]["better"] == "low" and scores["fsd_floor"]["better"] == "none"
    assert scores["fsd"]["members"] == 3 and scores["fsd_floor"]["members"] == 1

    def distance(a, b):
        return metrics.frechet_spectral_distance(a[..., 1], b[..., 1], norm="ortho")

    members = [[distance(x[windows, lead], truth[windows, lead]) for x in ensemble] for lead in (0, 2)]
    floor = [distance(reference[frames], truth[windows, lead]) for lead in (0, 2)]
    for name, key, (first, third) in (
        ("fsd", "per_lead", np.mean(members, axis=1)),
        ("fsd", "std", np.std(members, axis=1, ddof=1)),
        ("fsd_floor", "per_lead", floor),
    ):
        found = scores[name][key]
        assert found == [pytest.approx(first), None, pytest.approx(third), None]
    assert scores["fsd"]["mean"] == pytest.approx(np.mean(members))
    assert scores["fsd_floor"]["mean"] == pytest.approx(np.mean(floor))
    json.dumps(scores, allow_nan=False)
    rows = scoring.score(ensemble, truth, dataclasses.replace(options, fsd_transform="rfft2"), "", reference)
    assert rows["fsd"]["mean"] < scores["fsd"]["mean"]


def test_spectral_distance_at_every_lead_and_at_none():
    ensemble, truth, reference = flow(e=1)
    scores = scoring.score(ensemble, truth, scoring.ScoreOptions(fsd_samples=5), reference=reference)
    assert scores["fsd"]["std"] == [None] * 4 and None not in scores["fsd"]["per_lead"]
    assert scores["fsd"]["mean"] == pytest.approx(np.mean(scores["fsd"]["per_lead"]))
    options = scoring.ScoreOptions(leads=(5, 6), fsd_samples=5)
    scores = scoring.score(ensemble, truth, options, reference=reference)
    assert scores["fsd"]["per_lead"] == [None] * 4 and scores["fsd"]["mean"] is None


def test_a_perfect_forecast_is_at_no_distance():
    _, truth, reference = flow()
    scores = scoring.score(truth[None], truth, scoring.ScoreOptions(fsd_samples=5), reference=reference)
    floor = scores["fsd_floor"]["mean"]
    assert abs(scores["fsd"]["mean"]) < 1e-12 * floor


def test_definitions_name_the_convention_of_every_optional_score():
    ensemble, truth, reference = flow()
    options = scoring.ScoreOptions(
        leads=(1, 2, 8), fsd_samples=4, fsd_field=1, fsd_transform="rfft2", mse_scale=7.0, flow=True
    )
    scores = scoring.score(ensemble, truth, options, "m/s", reference)
    table = scoring.chosen(options, "field", truth.shape[2:])
    sentences = scoring.definitions(table, options, members=3, windows=5, unit="m/s")
    assert {name: entry["definition"] for name, entry in scores.items()} == sentences
    assert set(scoring.ARRAYS) < set(scores)
    for name in ("fsd", "fsd_floor"):
        for words in ("rfft2", "'backward'", "field 1", "N = 4", "leads 1, 2, 8", "square of m/s"):
            assert words in sentences[name]
    assert sentences["mse"].endswith("unit: square of m/s.")
    assert "((x - y) / 7)^2" in sentences["mse_sum"] and sentences["mse_sum"].endswith("square of 7 m/s.")
    assert "square of (m/s per unit of length)" in sentences["enstrophy_spectrum"]
    assert scores["mse_sum"]["per_lead"] == pytest.approx(metrics.mse_sum(ensemble, truth, 7.0))
    assert scores["mse"]["per_lead"] == pytest.approx(metrics.mse(ensemble, truth))
    assert scores["mse"]["better"] == scores["mse_sum"]["better"] == "low"


def test_spectra_of_a_flow_are_those_of_the_last_lead():
    ensemble, truth, _ = flow()
    scores = scoring.score(ensemble, truth, scoring.ScoreOptions(flow=True))
    for name, spectrum in (("energy", metrics.energy_spectrum), ("enstrophy", metrics.enstrophy_spectrum)):
        entry = scores[f"{name}_spectrum"]
        assert entry["wavenumber"] == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose(entry["truth"], spectrum(truth[:, -1])[1].mean(0)[1:7], rtol=1e-12)
        expected = spectrum(ensemble[:, :, -1])[1].mean(axis=(0, 1))[1:7]
        np.testing.assert_allclose(entry["forecast"], expected, rtol=1e-12)


def test_too_few_samples_are_refused_before_any_work():
    ensemble, truth, reference = flow()
    options = scoring.ScoreOptions(fsd_samples=5)
    scoring.check_samples(options, 5)
    scoring.check_samples(scoring.ScoreOptions(), 1)
    message = "too few samples for the distance asked: expected at least 5 {} windows, found 4"
    with pytest.raises(ValueError, match=message.format("test")):
        scoring.check_samples(options, 4)
    ensemble[:, 0, 0, 0, 0, 0] = np.nan  # which any metric would refuse
    with pytest.raises(ValueError, match=message.format("test")):
        scoring.score(ensemble[:, :4], truth[:4], options, reference=reference)
    with pytest.raises(ValueError, match=message.format("training")):
        scoring.score(ensemble, truth, options, reference=reference[:4])


def test_what_does_not_fit_the_data_is_refused_before_any_work():
    ensemble, truth, reference = flow(shape=(5, 2, 12, 12, 3))
    ensemble[:, 0, 0, 0, 0, 0] = np.nan  # which any metric would refuse
    options = scoring.ScoreOptions(fsd_samples=5, fsd_field=3)
    with pytest.raises(ValueError, match="fsd_field: expected a channel below 3, found 3"):
        scoring.score(ensemble, truth, options, reference=reference)
    with pytest.raises(ValueError, match="reference: expected frames .* found None"):
        scoring.score(ensemble, truth, options)
    with pytest.raises(ValueError, match=r"reference: expected .*, found \(7, 12, 11, 3\)"):
        scoring.score(ensemble, truth, options, reference=reference[:, :, 1:])
    with pytest.raises(ValueError, match="flow: expected the two channels u and v, found 3"):
        scoring.score(ensemble, truth, scoring.ScoreOptions(flow=True))


def test_metrics_file(tmp_path):
    ensemble, truth = forecast()
    scores = {"model": scoring.score(ensemble, truth), "one": scoring.score(ensemble[:1], truth)}
    path = tmp_path / "metrics.json"
    scoring.write_metrics(path, {"method": "model", "step": 3}, scores)
    found = json.loads(path.read_text())
    assert found["method"] == "model" and found["step"] == 3 and found["scores"] == scores
    assert found["definitions"]["crps"] == scores["model"]["crps"]["definition"]
    assert list(tmp_path.iterdir()) == [path]
