"""What a comparison makes of several evaluations: numbers over seeds, the best, and what is not comparable."""

import json
import math

import numpy as np
import pytest

from dydiff_jax.comparison import results, selection, settings
from dydiff_jax.evaluation import scores as scoring
from dydiff_jax.system import Entry
from dydiff_jax.systems import SYSTEMS
from tests import finished


def entry_of(mean, std):
    return {"all": {"mean": mean, "std": std}}


def groups(better="low", **scores):
    """Groups with one score, given as (mean, deviation)."""
    return [
        {"label": label, "scores": {"crps": {"better": better} | entry_of(*score)}}
        for label, score in scores.items()
    ]


def test_mean_and_deviation_over_seeds_by_hand():
    found = results.over_seeds([1.0, 2.0, 6.0])
    assert found["mean"] == pytest.approx(3.0)
    assert found["std"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert results.over_seeds([1.5]) == {"mean": 1.5, "std": None, "values": [1.5]}
    assert results.over_seeds([1.0, None])["mean"] is None


def test_scores_over_seeds_are_those_of_the_files(tmp_path):
    entries = [finished.entry(tmp_path, "dynamical", seed, error=0.1 + 0.1 * seed) for seed in range(3)]
    found = results.compare(entries, tmp_path, "command")
    (group,) = found["groups"]
    read = [json.loads((e.folder / "metrics.json").read_text())["scores"]["dynamical"] for e in entries]
    assert group["seeds"] == [0, 1, 2]
    for name, score in group["scores"].items():
        means = [run[name]["mean"] for run in read]
        assert score["all"]["values"] == means
        if None in means:
            assert name.endswith("_nonneg") and score["all"]["mean"] is None
        else:
            centred = np.array(means) - np.mean(means)
            assert score["all"]["mean"] == pytest.approx(sum(means) / 3)
            assert score["all"]["std"] == pytest.approx(math.sqrt((centred**2).sum() / 2))
        assert len(score["per_lead"]) == finished.K
        for lead, over in enumerate(score["per_lead"]):
            assert over["values"] == [run[name]["per_lead"][lead] for run in read]
    powers = np.array([run["spectrum"]["forecast"] for run in read])
    np.testing.assert_allclose(group["spectra"]["spectrum"]["forecast"], powers.mean(axis=0))
    assert group["spectra"]["spectrum"]["truth"] == read[0]["spectrum"]["truth"]
    assert group["cost"]["training_seconds"] == {"mean": 61.0, "std": 1.0, "values": [60.0, 61.0, 62.0]}
    assert group["cost"]["sampling_seconds_per_frame"]["mean"] == pytest.approx(0.1)
    persistence = json.loads((entries[0].folder / "metrics.json").read_text())["scores"]["persistence"]
    assert found["baselines"]["persistence"]["scores"]["crps"]["all"]["mean"] == persistence["crps"]["mean"]


def test_a_distance_stands_at_the_last_lead_that_has_one(tmp_path):
    """Distances are asked for at leads 1, 2 and 5 only."""
    entries = [finished.entry(tmp_path, "standard", seed) for seed in range(2)]
    (group,) = results.compare(entries, tmp_path, "")["groups"]
    per_lead = [json.loads((e.folder / "metrics.json").read_text())["scores"]["standard"]["fsd"]["per_lead"]
                for e in entries]  # fmt: skip
    assert per_lead[0][2] is None and per_lead[0][4] is not None
    assert group["scores"]["fsd"]["last"]["index"] == 4
    assert results.summary(group["scores"], "fsd")["mean"] == pytest.approx(
        np.mean([run[4] for run in per_lead])
    )
    assert results.summary(group["scores"], "crps") == group["scores"]["crps"]["all"]
    assert results.summary(group["scores"], "unknown") is None


@pytest.mark.parametrize(
    "better, expected", [("low", "a"), ("high", "b"), ("one", "c")], ids=["low", "high", "one"]
)
def test_best_is_lowest_highest_or_closest_to_one(better, expected):
    found = results.best(groups(better, a=(0.2, 0.01), b=(3.0, 0.01), c=(1.1, 0.01)), "crps")
    assert found == {"label": expected, "seconds": [], "resolved": True}


def test_a_difference_within_the_spread_of_seeds_is_not_resolved():
    """Deviations 0.3 and 0.4 make 0.5."""
    assert results.best(groups(a=(1.0, 0.3), b=(1.49, 0.4), c=(9.0, 0.1)), "crps") == {
        "label": "a", "seconds": ["b"], "resolved": False
    }  # fmt: skip
    assert results.best(groups(a=(1.0, 0.3), b=(1.51, 0.4), c=(9.0, 0.1)), "crps")["resolved"] is True
    assert results.best(groups(a=(1.0, 0.1), b=(1.2, 0.1), c=(1.3, 0.5)), "crps")["seconds"] == ["c"]


def test_one_seed_says_nothing_of_the_spread():
    assert results.best(groups(a=(1.0, None), b=(2.0, None)), "crps")["resolved"] is None
    found = results.best(groups(a=(1.0, None), b=(1.4, 0.3)), "crps")  # 0.3 stands for both: 0.42
    assert found["resolved"] is False
    assert results.best(groups(a=(1.0, None), b=(1.5, 0.3)), "crps")["resolved"] is True


def test_there_is_no_best_of_one_or_where_none_is_better():
    assert results.best(groups(a=(1.0, 0.1)), "crps") is None
    assert results.best(groups("none", a=(1.0, 0.1), b=(2.0, 0.1)), "crps") is None
    assert results.best(groups(a=(1.0, 0.1), b=(None, None)), "crps") is None


def made(tmp_path, *entries):
    return {
        (f"{entry.label} {i}", 0): settings.of_evaluation(entry.run, entry.info())
        for i, entry in enumerate(entries)
    }


def test_method_options_seed_and_sweeps_are_no_differences(tmp_path):
    entries = [
        finished.entry(tmp_path, "standard", 0),
        finished.entry(tmp_path, "rolling", 1),
        finished.entry(tmp_path, "regression", 0),
        finished.entry(tmp_path, "dynamical", 0, {"system.sampler.nfe": 40}),
    ]
    assert settings.differences(made(tmp_path, *entries), {"system.sampler.nfe"}) == []
    assert [d.key for d in settings.differences(made(tmp_path, *entries), ())] == ["system.sampler.nfe"]


@pytest.mark.parametrize(
    "changes, lines",
    [
        ({"train__steps": 200}, ["`train.steps`: `100` in standard 0; `200` in standard 1"]),
        (
            {"networks__denoiser__channels": [64]},
            ["`networks.denoiser.channels`: `[48, 96]` in standard 0; `[64]` in standard 1"],
        ),
        (
            {"system__schedule__name": "linear_beta"},
            ['`system.schedule.name`: `"cosine"` in standard 0; `"linear_beta"` in standard 1'],
        ),
        (
            {"stages__denoiser": {"train": {"steps": 200}}},
            ["`stages.denoiser.train.steps`: `absent` in standard 0; `200` in standard 1"],
        ),
        ({"data__seed": 1}, ["`data.seed`: `0` in standard 0; `1` in standard 1"]),
        ({"data__new": "x"}, ['`data.new`: `absent` in standard 0; `"x"` in standard 1']),
        ({"evaluation__members": 2}, ["`evaluation.members`: `3` in standard 0; `2` in standard 1"]),
        ({"step": 50}, ["`steps not trained`: `0` in standard 0; `50` in standard 1"]),
        ({"frames": 3}, ["`leads scored`: `[1, 2, 3, 4, 5]` in standard 0; `[1, 2, 3]` in standard 1"]),
        ({"train__log_every": 3}, []),
        ({"train__keep_best": True, "train__validate_every": 20}, []),
        ({"evaluation__valid_windows": 2, "evaluation__beside": ["x"]}, []),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_differences_that_matter_are_listed_with_both_values(changes, lines, tmp_path):
    entries = [
        finished.entry(tmp_path / "a", "standard", 0),
        finished.entry(tmp_path / "b", "standard", 0, **changes),
    ]
    assert [str(d) for d in settings.differences(made(tmp_path, *entries), ())] == lines


def test_seeds_are_named_where_they_differ_among_themselves():
    runs = {("a", 0): 1, ("a", 1): 1, ("b", 0): 1, ("b", 1): 2, ("b", 2): 2, ("c", 7): 2}
    found = {run: {"system.name": "x", "train.steps": steps} for run, steps in runs.items()}
    (line,) = settings.differences(found, ())
    assert str(line) == "`train.steps`: `1` in a / b seed 0; `2` in b seed 1 2 / c"


def test_a_section_is_told_from_one_that_begins_like_it():
    found = {
        ("a", 0): {"system.processor": 1, "meshes.n": 1},
        ("b", 0): {"system.processor": 2, "meshes.n": 2},
    }
    assert [line.key for line in settings.differences(found, ())] == ["meshes.n", "system.processor"]


def test_a_key_that_a_system_does_not_take_is_no_difference_and_one_of_all_others_is():
    sections = ("system.sampler.nfe", "networks.teacher.size", "train.new")
    found = {("a", 0): dict.fromkeys(sections, 1), ("b", 0): dict.fromkeys(sections, 1), ("c", 0): {}}
    assert [line.key for line in settings.differences(found, ())] == ["train.new"]
    found["b", 0]["networks.teacher.size"] = 2
    assert [line.key for line in settings.differences(found, ())] == ["networks.teacher.size", "train.new"]


def test_a_stage_with_a_length_of_its_own_is_trained_to_its_end(tmp_path):
    last = {"stages__denoiser": {"train": {"steps": 50}}, "step": 50}
    entry = finished.entry(tmp_path, "standard", 0, **last)
    assert settings.of_evaluation(entry.run, entry.info())["steps not trained"] == 0


def test_other_data_under_the_same_config_are_a_difference(tmp_path):
    entries = [finished.entry(tmp_path, method, 0) for method in ("standard", "dynamical")]
    (entries[1].run / "statistics.json").write_text(json.dumps({"mean": [0.0, 0.1], "std": [1.0, 1.0]}))
    (found,) = settings.differences(made(tmp_path, *entries), ())
    assert found.key == "statistics of the data.mean"


def test_what_a_run_was_evaluated_with_counts_and_not_what_it_was_trained_with(tmp_path):
    """config.json of two variants of one run is the same file; metrics.json has their samplers."""
    entry = finished.entry(tmp_path, "standard", 0)
    info = entry.info() | {"system": {"sampler": {"name": "ddim", "nfe": 99}}}
    found = settings.of_evaluation(entry.run, info)
    assert found["system.sampler.nfe"] == 99 and found["system.process.prediction"] == "v"


def test_the_newest_evaluation_of_a_run_elsewhere_joins(tmp_path):
    run = tmp_path / "run"
    first = finished.run(run, "standard", 0, step=90)
    for name in ("step_100", "step_100-2", "step_100-10"):
        (run / "eval" / name).mkdir()
        for file in first.iterdir():
            (run / "eval" / name / file.name).write_bytes(file.read_bytes())
    (found,) = results.elsewhere([str(run)])
    assert found.folder.name == "step_100-10"
    (run / "eval/step_100-10/table.md").unlink()
    (found,) = results.elsewhere([str(run)])
    assert found.folder.name == "step_100-2"
    assert (found.label, found.method) == (f"standard ({run})", "standard")


def test_a_run_elsewhere_must_be_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--also: .*config.json is not there"):
        results.elsewhere([str(tmp_path / "none")])
    folder = finished.run(tmp_path / "run", "standard", 0)
    (folder / "table.md").unlink()
    with pytest.raises(FileNotFoundError, match="holds no finished evaluation"):
        results.elsewhere([str(tmp_path / "run")])
    finished.run(tmp_path / "run", "standard", 0, split="valid")
    with pytest.raises(FileNotFoundError, match="holds no finished evaluation"):
        results.elsewhere([str(tmp_path / "run")])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda info: info.pop("system"), "metrics.json: expected the entries .*, found none of system"),
        (lambda info: info["scores"]["standard"].pop("crps"), "metrics.json: expected the score crps"),
    ],
)
def test_an_evaluation_that_cannot_be_compared_is_refused(change, message, tmp_path):
    folder = finished.run(tmp_path / "run", "standard", 0)
    info = json.loads((folder / "metrics.json").read_text())
    change(info)
    (folder / "metrics.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message):
        results.elsewhere([str(tmp_path / "run")])


def test_a_group_knows_its_system_from_the_registry_or_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "novel", Entry(None, "does something new.", "x' = f(x)", "#123456"))
    entries = [finished.entry(tmp_path, method, 0) for method in ("standard", "novel", "unheard-of")]
    standard, novel, unknown = results.compare(entries, tmp_path, "")["groups"]
    assert standard["colour"] == SYSTEMS["standard"].colour
    assert (novel["summary"], novel["equation"], novel["colour"]) == (
        "does something new.", "x' = f(x)", "#123456"
    )  # fmt: skip
    assert (unknown["summary"], unknown["colour"]) == ("", results.OTHER_COLOUR)
    assert [group["number"] for group in (standard, novel, unknown)] == [0, 1, 2]
    assert standard["options"] == {"process.prediction": "v", "schedule.name": "cosine"}
    assert standard["networks"] == {"denoiser": "uvit tiny"}


def test_a_forecast_is_deterministic_where_it_has_one_member_of_several_that_were_asked_for(tmp_path):
    entries = [
        finished.entry(tmp_path / "a", "standard", 0),
        finished.entry(tmp_path / "b", "rolling", 0, evaluation__members=1),
        finished.entry(tmp_path / "c", "regression", 0),
    ]
    groups = results.compare(entries, tmp_path, "")["groups"]
    assert [(group["members"], group["deterministic"]) for group in groups] == [
        (finished.MEMBERS, False), (1, False), (1, True)
    ]  # fmt: skip


def swept(home, method, seed, nfe, error, **options):
    key = {"system.sampler.nfe": nfe}
    few = scoring.ScoreOptions(names=("crps",))
    return finished.entry(home, method, seed, key, error=error, split="valid", options=few, **options)


def test_each_method_gets_the_value_with_the_lowest_mean_over_seeds_on_the_validation_split(tmp_path):
    """The best single seed, nfe 5 of the first, loses to the best mean; each method chooses for itself."""
    errors = {
        ("standard", 5): (0.1, 0.9), ("standard", 10): (0.3, 0.3), ("rolling", 5): (0.2, 0.2),
        ("rolling", 10): (0.4, 0.4),
    }  # fmt: skip
    points = [
        swept(tmp_path, method, seed, nfe, both[seed])
        for (method, nfe), both in errors.items() for seed in range(2)
    ]  # fmt: skip
    found = selection.select(points, tmp_path)
    assert selection.chosen(found) == ["standard, nfe 10", "rolling, nfe 5"]
    assert found["swept"] == ["system.sampler.nfe"] and not found["shortened"]
    for group in found["groups"]:
        own = [point for point in points if point.label == group["label"]]
        values = [point.info()["scores"][point.method]["crps"]["mean"] for point in own]
        assert group["scores"]["crps"]["all"]["mean"] == pytest.approx(np.mean(values))


def test_points_of_different_horizons_are_chosen_by_the_leads_that_both_have(tmp_path):
    """Errors grow with lead: over all its leads the longer forecast, which is better, would lose."""
    points = [
        swept(tmp_path, "standard", 0, 5, 0.3, frames=2),
        swept(tmp_path, "standard", 0, 10, 0.2, frames=5),
    ]
    means = [point.info()["scores"]["standard"]["crps"]["mean"] for point in points]
    found = selection.select(points, tmp_path)
    assert means[0] < means[1] and selection.chosen(found) == ["standard, nfe 10"]
    assert found["leads"] == [1, 2] and found["shortened"]
    per_lead = points[1].info()["scores"]["standard"]["crps"]["per_lead"]
    assert found["groups"][1]["scores"]["crps"]["all"]["mean"] == pytest.approx(np.mean(per_lead[:2]))


def test_a_point_that_lacks_a_seed_is_not_chosen(tmp_path):
    points = [swept(tmp_path, "standard", 0, 5, 0.1)]
    points += [swept(tmp_path, "standard", seed, 10, 0.3) for seed in range(2)]
    assert selection.chosen(selection.select(points, tmp_path)) == ["standard, nfe 10"]


def test_a_run_elsewhere_joins_once(tmp_path):
    finished.run(tmp_path / "run", "standard", 0)
    with pytest.raises(ValueError, match="--also: expected every directory once"):
        results.elsewhere([str(tmp_path / "run"), str(tmp_path / "x/../run")])
