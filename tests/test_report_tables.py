"""Tables in markdown: what is bold, which leads, the floor, and those of a shipped evaluation, byte by byte."""

import json
import pathlib

import numpy as np
import pytest

from dydiff_jax.evaluation import evaluate
from dydiff_jax.evaluation import scores as scoring

SHIPPED = pathlib.Path(__file__).parents[1] / "results" / "turbulence_tiny"


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
    assert scoring.markdown_table(RESULTS) == (
        "| forecast | members | crps | csi | spread | ratio |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| ours | 2 | **0.1** | 0.5 | 3 | 0.8 |\n"
        "| theirs | 1 | 0.2 | **0.75** | - | **1.1** |\n"
    )


def test_table_of_chosen_columns_and_of_leads():
    assert scoring.markdown_table(RESULTS, ["csi"]).splitlines()[0] == "| forecast | members | csi |"
    assert scoring.markdown_leads(RESULTS, "crps", {1: "0.5 s", 2: "1 s"}).splitlines() == [
        "| crps | 0.5 s | 1 s |",
        "| --- | ---: | ---: |",
        "| ours | **0.1** | **0.1** |",
        "| theirs | 0.2 | 0.2 |",
    ]


def test_table_of_real_scores_has_every_metric_and_a_list_of_definitions():
    rng = np.random.default_rng(0)
    ensemble, truth = rng.normal(size=(4, 3, 2, 12, 12, 2)), rng.normal(size=(3, 2, 12, 12, 2))
    results = {"ensemble": scoring.score(ensemble, truth), "first member": scoring.score(ensemble[:1], truth)}
    names = [name for name in results["ensemble"] if name not in scoring.ARRAYS]
    lines = scoring.markdown_table(results).splitlines()
    assert lines[0] == "| forecast | members | " + " | ".join(names) + " |" and len(names) == 12
    assert len(lines) == 4 and {len(line.split("|")) for line in lines} == {len(names) + 4}
    definitions = scoring.markdown_definitions(results["ensemble"])
    assert definitions.count("\n- **") == len(names) + 1 and "- **crps**: Fair CRPS" in definitions


def flow_results(leads):
    rng = np.random.default_rng(0)
    truth, reference = rng.normal(size=(5, 4, 12, 12, 2)), rng.normal(size=(5, 12, 12, 2))
    options = scoring.ScoreOptions(leads=leads, fsd_samples=5, mse_scale=7.0)
    noise = rng.normal(size=(3, *truth.shape))
    return {
        name: scoring.score(truth + gain * noise, truth, options, "m/s", reference)
        for name, gain in (("good", 0.1), ("bad", 2.0))
    }


def test_table_of_real_optional_scores_has_the_distance_and_its_floor():
    results = flow_results(leads=(1, 3))
    heading, _, *rows = scoring.markdown_table(results).splitlines()
    names = [cell.strip() for cell in heading.split("|")[1:-1]]
    assert names[-4:] == ["mse", "mse_sum", "fsd", "fsd_floor"]
    floor = {row.split("|")[-2].strip() for row in rows}
    assert len(floor) == 1 and "**" not in floor.pop()


HEADER = {"leads": [1, 2, 3, 4], "interval": 1.5, "time_unit": "s", "score_options": {"leads": [1, 3, 24]}}


def test_chosen_leads_show_every_score_that_is_there_and_the_floor():
    results = flow_results(leads=(1, 3, 24))
    text = scoring.markdown_over_leads(HEADER, results)
    blocks = text.split("\n\n")
    titles, tables = blocks[::2], [block.splitlines() for block in blocks[1::2]]
    assert [table[0] for table in tables] == [
        f"| {name} | 1 (1.5) | 3 (4.5) |" for name in ("crps", "fsd", "mse_sum", "mse", "spread_skill")
    ]
    assert all(title.strip().endswith("over lead, frames (s).") for title in titles)
    distances, floor = results["good"]["fsd"]["per_lead"], results["good"]["fsd_floor"]["per_lead"]
    assert tables[1][2] == f"| good | **{distances[0]:.4g}** | **{distances[2]:.4g}** |"
    assert tables[1][4:] == [f"| floor | {floor[0]:.4g} | {floor[2]:.4g} |"]
    assert [len(table) for table in tables] == [4, 5, 4, 4, 4]
    without = scoring.markdown_over_leads(HEADER, {"one": {"crps": results["good"]["crps"]}})
    assert without.count("over lead") == 1


def test_without_chosen_leads_the_crps_at_all_of_them():
    results = flow_results(leads=None)
    for options in ({"leads": None}, {}):
        text = scoring.markdown_over_leads(HEADER | {"score_options": options}, results)
        lines = text.splitlines()
        assert lines[0] == "Fair CRPS over lead, s." and lines[2] == "| crps | 1.5 | 3 | 4.5 | 6 |"
        assert len(lines) == 6


@pytest.mark.parametrize("method", ["dynamical", "standard"])
def test_the_shipped_tables_are_made_again_byte_by_byte(method):
    found = json.loads((SHIPPED / method / "metrics.json").read_text(encoding="utf-8"))
    assert evaluate.tables(found, found["scores"]) == (SHIPPED / method / "table.md").read_text(
        encoding="utf-8"
    )
