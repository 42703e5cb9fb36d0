"""Scores for JSON: values, what is undefined, definitions beside them, and tables."""

import json

import numpy as np
import pytest

from dydiff_jax import metrics, report

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


def forecast(e=4, shape=(3, 2, 12, 12, 2), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(e, *shape)).astype(np.float32), rng.normal(size=shape).astype(np.float32)


def test_every_score_is_that_of_its_metric():
    ensemble, truth = forecast()
    truth = truth + 2.0  # some places without a negative truth
    scores = report.score(ensemble, truth)
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
    assert set(scores) == NAMES | {"rank_histogram", "spectrum"} == set(expected) | set(report.ARRAYS)
    for name, values in expected.items():
        defined = [None if np.isnan(value) else value for value in values]
        assert scores[name]["per_lead"] == defined, name
        assert scores[name]["mean"] == (
            None if None in defined else pytest.approx(values.mean(), rel=1e-14)
        ), name
        assert scores[name]["members"] == 4


def test_ranks_and_spectrum():
    ensemble, truth = forecast()
    scores = report.score(ensemble, truth)
    assert scores["rank_histogram"]["counts"] == metrics.rank_histogram(ensemble, truth).sum(axis=0).tolist()
    wavenumber, spectra = metrics.lead_spectra(ensemble, truth)
    spectrum = scores["spectrum"]
    assert spectrum["wavenumber"] == wavenumber.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([spectrum["forecast"], spectrum["truth"]], spectra[-1], rtol=1e-13)


def test_one_member_has_no_spread_and_its_crps_is_its_mae():
    ensemble, truth = forecast(e=1)
    scores = report.score(ensemble, truth)
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
    entry = report.score(ensemble, truth)["crps_w8_avg_nonneg"]
    assert entry["per_lead"] == [None, None] and entry["mean"] is None and entry["windows"] == 0
    scores = report.score(ensemble, np.concatenate([truth[:1], np.abs(truth[1:])]))
    assert scores["crps_w8_max_nonneg"]["windows"] == 2 and scores["crps_w8_max"]["windows"] == 3


def test_scores_are_json_without_nan():
    ensemble, truth = forecast()
    text = json.dumps(report.score(ensemble, np.minimum(truth, -0.1)), allow_nan=False)
    assert json.loads(text)["csi_w5"]["mean"] == 0.0
    nothing = report.score(-np.abs(ensemble) - 1, -np.abs(truth) - 1)
    assert nothing["csi_w5"]["per_lead"] == [None, None]
    json.dumps(nothing, allow_nan=False)


def test_definitions_stand_beside_the_scores_and_name_the_options():
    ensemble, truth = forecast()
    options = report.ScoreOptions(
        pool_window=4, pool_stride=3, csi_threshold=0.25, csi_window=3, csi_stride=1
    )
    scores = report.score(ensemble, truth, options, unit="m/s")
    sentences = report.definitions(options, members=4, windows=3, unit="m/s")
    assert {name: entry["definition"] for name, entry in scores.items()} == sentences
    for sentence in sentences.values():
        assert "4 members, 3 windows" in sentence
    for name in ("crps", "crps_w4_avg", "crps_w4_max_nonneg", "rmse", "mae", "spread", "spectrum"):
        assert "m/s" in sentences[name]
    assert "4 x 4 points at stride 3" in sentences["crps_w4_max"] and "maximum" in sentences["crps_w4_max"]
    assert "no mask" in sentences["crps_w4_avg"] and "nowhere negative" in sentences["crps_w4_avg_nonneg"]
    assert ">= 0.25" in sentences["csi_w3"] and "1 points of padding" in sentences["csi_w3"]
    np.testing.assert_array_equal(scores["csi_w3"]["per_lead"], metrics.csi(ensemble, truth, 0.25, 3, 1, 1))


def test_a_grid_smaller_than_the_window_is_refused():
    ensemble, truth = forecast(shape=(2, 2, 6, 12, 1))
    with pytest.raises(ValueError, match="window of 8 on a grid of 6 x 12"):
        report.score(ensemble, truth)


def test_shapes_and_values_are_checked():
    ensemble, truth = forecast()
    with pytest.raises(ValueError, match=r"found shapes \(4, 3, 2, 12, 12, 2\) and \(2, 2, 12, 12, 2\)"):
        report.score(ensemble, truth[:2])
    ensemble[0, 0, 1, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="1 of 3456 NaN or infinite in the ensemble at frame 2"):
        report.score(ensemble, truth)


@pytest.mark.parametrize(
    "name, value", [("pool_window", 0), ("csi_stride", 0), ("csi_threshold", np.nan), ("rank_seed", -1)]
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        report.ScoreOptions(**{name: value})


def entry(mean, better, members=2):
    return {"mean": mean, "better": better, "members": members, "per_lead": [mean, mean], "definition": "D."}


RESULTS = {
    "ours": {
        "crps": entry(0.1, "low"),
        "csi": entry(0.5, "high"),
        "spread": entry(3.0, "none"),
        "ratio": entry(0.8, "one"),
    },
    "theirs": {
        "crps": entry(0.2, "low", 1),
        "csi": entry(0.75, "high"),
        "spread": entry(None, "none"),
        "ratio": entry(1.1, "one"),
    },
}


def test_table_marks_the_best():
    assert report.markdown_table(RESULTS) == (
        "| forecast | members | crps | csi | spread | ratio |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| ours | 2 | **0.1** | 0.5 | 3 | 0.8 |\n"
        "| theirs | 1 | 0.2 | **0.75** | - | **1.1** |\n"
    )


def test_table_of_chosen_columns_and_of_leads():
    assert report.markdown_table(RESULTS, ["csi"]).splitlines()[0] == "| forecast | members | csi |"
    assert report.markdown_leads(RESULTS, "crps", ["0.5 s", "1 s"]).splitlines() == [
        "| crps | 0.5 s | 1 s |",
        "| --- | ---: | ---: |",
        "| ours | **0.1** | **0.1** |",
        "| theirs | 0.2 | 0.2 |",
    ]


def test_table_of_real_scores_has_every_metric_and_a_list_of_definitions():
    ensemble, truth = forecast()
    results = {"ensemble": report.score(ensemble, truth), "first member": report.score(ensemble[:1], truth)}
    lines = report.markdown_table(results).splitlines()
    assert len(lines) == 4 and set(lines[0].split(" | ")[2:-1]) <= NAMES
    assert {len(line.split("|")) for line in lines} == {len(NAMES) + 4}
    definitions = report.markdown_definitions(results["ensemble"])
    assert definitions.count("\n- **") == len(NAMES) + 1 and "- **crps**: Fair CRPS" in definitions


def test_metrics_file(tmp_path):
    ensemble, truth = forecast()
    scores = {"model": report.score(ensemble, truth), "one": report.score(ensemble[:1], truth)}
    path = tmp_path / "metrics.json"
    report.write_metrics(path, {"method": "model", "step": 3}, scores)
    found = json.loads(path.read_text())
    assert found["method"] == "model" and found["step"] == 3 and found["scores"] == scores
    assert found["definitions"]["crps"] == scores["model"]["crps"]["definition"]
    assert list(tmp_path.iterdir()) == [path]
