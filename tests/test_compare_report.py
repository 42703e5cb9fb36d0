"""The report of made-up runs: every number in it, readable without a network, the same again from the same files."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from dydiff_jax import compare
from dydiff_jax.comparison import blocks, report, results, selection, tables, words
from dydiff_jax.evaluation.baselines import BASELINES
from dydiff_jax.evaluation.plots import comparison as figures
from dydiff_jax.evaluation.plots import samples
from dydiff_jax.evaluation.scores import SCORES
from dydiff_jax.systems import SYSTEMS
from tests import finished

NO_FIGURES = {name: [] for name in ("curves", "spectra", "samples", "sweeps")}
ETA = "system.process.eta"
VOID = {"meta", "img", "br", "link"}


class Parsed(html.parser.HTMLParser):
    """Checks that every tag is closed, and keeps text, tags and what links point to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Four methods, two seeds each; an eta that is chosen on validation; a run from elsewhere, trained for longer."""
    home = tmp_path_factory.mktemp("comparison")
    entries, points = [], []
    for seed in range(2):
        entries += [
            finished.entry(home, "standard", seed, error=0.20),
            finished.entry(home, "dynamical", seed, {ETA: 0.3}, error=0.1),
            finished.entry(home, "rolling", seed, error=0.25, system__process__clock="init_rescaled"),
            finished.entry(home, "regression", seed, error=0.6),
        ]
        for eta, error in ((0.3, 0.15), (0.6, 0.3)):
            points.append(
                finished.entry(home / "v", "dynamical", seed, {ETA: eta}, error=error, split="valid")
            )
    other = finished.run(home / "elsewhere/old", "standard", 5, error=0.4, train__steps=200).parents[1]
    compare.write(
        [*entries, *results.elsewhere([str(other)])],
        home,
        "python -m dydiff_jax.compare --x",
        ["A note."],
        selection.select(points, home),
    )
    return home


@pytest.fixture(scope="module")
def found(home):
    return json.loads((home / "comparison.json").read_text())


@pytest.fixture(scope="module")
def parsed(home):
    return Parsed((home / "report.html").read_text())


def row_of(text, label):
    """The cells of the first row of a markdown text that begins with a label."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip(" *") for cell in line.strip("| ").split(" | ")]


def section(text, heading):
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_numbers_by_hand():
    assert tables.number({"mean": 0.123456, "std": 0.00123}) == "0.1235 ± 0.0012"
    assert tables.number({"mean": 12.3456, "std": 3.0}) == "12.35 ± 3.00"
    assert tables.number({"mean": 123456.0, "std": 789.4}) == "123456 ± 789"
    assert tables.number({"mean": -0.5, "std": 0.25}) == "-0.5000 ± 0.2500"
    assert tables.number({"mean": 3e-9, "std": 1e-10}) == "3.000e-09 ± 1.0e-10"
    assert tables.number({"mean": 0.0, "std": 0.0}) == "0.000 ± 0.000"
    assert tables.number({"mean": 0.0407249, "std": None}) == "0.04072"
    assert tables.number({"mean": None, "std": None}) == tables.number(None) == "-"


def test_the_report_says_how_far_methods_are_above_a_bound():
    def scored(mean, **more):
        return {"scores": {"crps": {"all": {"mean": mean}}}, **more}

    groups = [scored(1.1, label="a", seeds=[0]), scored(0.99, label="b", seeds=[0])]
    found = {
        "groups": groups,
        "best": {},
        "baselines": {"exact law": scored(1.0), "persistence": scored(2.0)},
    }
    text = blocks.markdown("", report._verdicts(found))
    assert (
        "In crps above exact law, which no forecast can beat but by chance: a by 10.0 %; b by -1.0 %." in text
    )
    assert "Not better than" not in text and "**exact law**: draws from the law" in text


@pytest.mark.slow
def test_the_report_holds_every_number(home, found, parsed):
    """Means over leads in the table of all scores; every lead that was asked for in a table of its own."""
    markdown = (home / "report.md").read_text()
    scores = section(markdown, "All scores")
    columns = row_of(scores, "score")[1:]
    assert columns == [group["label"] for group in found["groups"]] + list(found["baselines"])
    for name in found["groups"][0]["scores"]:
        cells = dict(zip(columns, row_of(scores, name)[1:], strict=True))
        for group in found["groups"]:
            assert cells[group["label"]] == tables.number(group["scores"][name]["all"])
        for label, baseline in found["baselines"].items():
            assert cells[label] == tables.number(baseline["scores"][name]["all"])
    over_leads = section(markdown, "Error over lead time")
    for name in ("crps", "rmse", "spread", "spread_skill", "spectrum_error", "fsd", "mse_sum"):
        table = over_leads.partition(f"\n| {name} |")[2].partition("\n\n")[0]
        for group in found["groups"]:
            per_lead = group["scores"][name]["per_lead"]
            if any(lead["mean"] is not None for lead in per_lead):
                expected = [tables.number(per_lead[i]) for i in (0, 1, 4)]
                assert row_of(table, group["label"])[1:] == expected
    assert "| crps | 1 (1.5) | 2 (3) | 5 (7.5) |" in over_leads
    for number in re.findall(r"\d\.\d+ ± \d\.\d+", markdown):
        assert number in parsed.text


def test_the_summary_marks_the_best_and_says_whether_it_differs_significantly(home, found):
    text = section((home / "report.md").read_text(), "Results")
    best = next(line for line in text.splitlines() if line.startswith("| dynamical, eta 0.3 |"))
    cells = best.strip("| ").split(" | ")
    assert cells[1].startswith("**") and cells[2].startswith("**")
    assert text.count("**0.") + text.count("**1.") + text.count("**2.") <= len(found["best"]) + 1
    assert (
        "- **crps**: dynamical, eta 0.3 is best, and significantly different from the others (difference >"
        in text
    )
    told = row_of(text, "best significantly different?")
    answers = {True: "yes", False: "no", None: "one seed"}
    assert told[1:] == [answers[best["resolved"]] for best in found["best"].values()]
    for name, best in found["best"].items():
        if best["resolved"] is False:
            assert f"- **{name}**: {best['label']} is best, but not significantly different from" in text
    limit = found["baselines"]["persistence"]["scores"]["crps"]["all"]["mean"]
    worse = [g["label"] for g in found["groups"] if g["scores"]["crps"]["all"]["mean"] >= limit]
    assert 0 < len(worse) < len(found["groups"])
    assert re.findall(r"- Not better than persistence in crps: (.*)\.", text) == ["; ".join(worse)]


def test_the_floor_stands_beside_the_distance(home, found):
    text = section((home / "report.md").read_text(), "Results")
    assert "fsd at lead 5 ↓" in text
    floor = found["groups"][0]["scores"]["fsd_floor"]["per_lead"][4]
    assert tables.number(floor) in row_of(text, "floor: truth against truth")
    distance = found["groups"][0]["scores"]["fsd"]["per_lead"][4]
    assert tables.number(distance) in row_of(text, "standard")


def test_what_is_not_comparable_is_listed_and_what_is_expected_is_explained(home):
    text = section((home / "report.md").read_text(), "Are these runs comparable?")
    assert "Not in everything" in text
    assert re.search(r"\n- `train.steps`: `200` in standard \(.*elsewhere/old\); `100` in all others\n", text)
    assert text.count("\n- `") == 1
    for sentence in (
        "- A note.",
        "later frames of a forecast receive more evaluations than the NFE",
        "- regression makes a deterministic forecast: one member",
        "It takes 1 NFE a frame",
    ):
        assert sentence in text
    assert "NFE a frame are not the same" not in text
    assert text.count("- standard: `process.prediction` v, `schedule.name` cosine\n") == 1
    assert "- dynamical: `process.prediction` v, `process.eta` 0.3, `schedule.name` cosine\n" in text


def test_methods_that_take_other_numbers_of_evaluations_are_named(tmp_path):
    few = finished.entry(tmp_path, "rolling", 0, system__sampler__nfe=5)
    groups = results.compare([finished.entry(tmp_path, "standard", 0), few], tmp_path, "")["groups"]
    assert report._unlike(groups) == ["NFE a frame are not the same: 20 in standard; 5 in rolling."]
    groups[1]["cost"]["network_frames_per_frame"] = 40 / 3
    groups[1]["cost"]["nfe_per_frame"] = 20
    (said,) = report._unlike(groups)
    assert said.endswith("frames through a network for each frame: 24 in standard; 13.33 in rolling.")
    groups[1]["cost"]["network_frames_per_frame"] = None  # a run of an older version
    assert report._unlike(groups) == []


def test_the_choice_on_the_validation_split_is_shown_with_the_scores_it_was_made_by(home, found):
    text = section((home / "report.md").read_text(), "What was swept")
    assert "chosen on the validation split" in text and "different" not in text
    head = next(line for line in text.splitlines() if line.startswith("| validation split |"))
    assert head.startswith("| validation split | crps ↓ |") and head.endswith("| chosen |")
    chosen, other = found["validation"]["groups"]
    assert "| **dynamical, eta 0.3** |" in text and "| dynamical, eta 0.6 |" in text
    assert text.count("| yes |") == 1
    for group in (chosen, other):
        number = tables.number(group["scores"]["crps"]["all"])
        assert number in next(line for line in text.splitlines() if group["label"] in line)
        tested = section((home / "report.md").read_text(), "Results")
        assert number not in tested, "validation scores stand apart from those of the test split"
    assert "![Scores of the validation split against system.process.eta;" in text
    assert "eta 0.6" not in section((home / "report.md").read_text(), "Results")


def test_what_a_sweep_does_to_the_truth_is_said(found):
    validation = found["validation"]
    other = {**validation, "swept": ["window.num_forecast"], "shortened": True, "leads": [1, 2]}
    said = blocks.markdown("title", report._swept({"validation": other}))
    assert "`window.num_forecast` changes which data or windows are scored" in said
    assert "means over the first 2 leads" in said


def test_a_system_that_is_not_registered_is_named_and_no_more(tmp_path):
    entries = [finished.entry(tmp_path, method, 0) for method in ("standard", "unheard-of")]
    found = results.compare(entries, tmp_path, "") | {"notes": [], "validation": None}
    text = blocks.markdown("title", report.blocks(found, NO_FIGURES, tmp_path))
    assert "\n- **unheard-of**\n" in text and row_of(text, "unheard-of")
    assert figures.styles(found["groups"])["unheard-of"]["color"] == to_rgb(results.OTHER_COLOUR)


def test_runs_that_are_comparable_are_said_to_be(tmp_path):
    entries = [finished.entry(tmp_path, method, 0) for method in ("standard", "dynamical")]
    found = results.compare(entries, tmp_path, "") | {"notes": [], "validation": None}
    text_of = blocks.markdown("title", report.blocks(found, NO_FIGURES, tmp_path))
    text = section(text_of, "Are these runs comparable?")
    assert "Yes: same data" in text and "Only the method, its own options and the seed differ." in text
    assert "Not in everything" not in text and "init_rescaled" not in text and "deterministic" not in text
    assert "trained with one seed" in text_of and "| best significantly different? | one seed |" in text_of
    assert "What was swept" not in text_of and "±" not in section(text_of, "Results")


def test_a_reader_learns_what_is_compared_and_what_it_cost(home):
    text = (home / "report.md").read_text()
    for method in ("standard", "dynamical", "rolling", "regression"):
        assert f"- **{method}**: {SYSTEMS[method].summary} `{SYSTEMS[method].equation}`\n" in text
    assert f"| crps | {SCORES['crps'].plain.format(unit='m/s')} | lower |" in text
    assert f"- **persistence**: {BASELINES['persistence'].plain}\n" in text
    assert "rolling_dynamical" not in text
    assert row_of(text, "training") == ["training", "100 steps of 4 windows"]
    assert row_of(text, "scored") == ["scored", "5 frames (7.5 s), 6 test windows"]
    assert row_of(text, "NFE a frame") == ["NFE a frame", "20"]
    cost = row_of(section(text, "Cost"), "standard")
    assert cost == [
        "standard",
        "1 (denoiser: uvit tiny)",
        "632,744",
        "20",
        "24",
        "1.5",
        "100",
        "250",
        "60.50 ± 0.71",
        "1.700 ± 0.000",
        "0.1000 ± 0.0000",
        "1 x cpu",
    ]
    for name, meaning in words.COSTS.items():
        assert f"- **{name}**: {meaning}" in section(text, "Cost")
    assert row_of(text, "network frames a frame")[1] == "24, 1.2"
    commands = section(text, "Commands")
    assert "python -m dydiff_jax.compare --x\n" in commands
    assert commands.count("python -m dydiff_jax.main") == 9


def test_the_page_is_whole_and_needs_nothing_else(home, parsed):
    text = (home / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>") and 'name="viewport"' in text
    assert "http" not in text and "url(" not in text and "<script" not in text
    assert parsed.links and all(link.startswith("data:image/") for link in parsed.links)
    pictures = sorted((home / "figures").iterdir())
    assert len(parsed.links) == len(pictures) == parsed.tags.count("figcaption")
    stored = {path.read_bytes() for path in pictures}
    assert {base64.b64decode(link.partition("base64,")[2]) for link in parsed.links} == stored
    linked = re.findall(r"\]\((figures/[^)]*)\)", (home / "report.md").read_text())
    assert sorted(linked) == [f"figures/{path.name}" for path in pictures]
    headings = re.findall(r"^## (.*)$", (home / "report.md").read_text(), re.M)
    assert parsed.tags.count("h2") == len(headings) and all(heading in parsed.text for heading in headings)


def test_text_is_escaped_and_marked():
    assert blocks.inline("a < b & `c < d` **e**") == (
        "a &lt; b &amp; <code>c &lt; d</code> <strong>e</strong>"
    )
    assert blocks.Code(["x < y"]).html() == "<pre><code>x &lt; y</code></pre>"
    Parsed(blocks.page("a < b", [blocks.Text("<i>"), blocks.Table(("<", "b"), [["&", "2"]])]))


@pytest.mark.slow
def test_the_same_files_give_the_same_bytes(home):
    names = [
        "comparison.json",
        "report.md",
        "report.html",
        *(f"figures/{p.name}" for p in (home / "figures").iterdir()),
    ]
    before = {name: (home / name).read_bytes() for name in names}
    found = json.loads(before["comparison.json"])
    pictures = figures.compare_all(home)
    parts = report.blocks(found, pictures, home)
    title = re.search("<title>(.*)</title>", before["report.html"].decode())[1]
    (home / "report.md").write_text(blocks.markdown(title, parts))
    (home / "report.html").write_text(blocks.page(title, parts))
    assert {name: (home / name).read_bytes() for name in names} == before


def test_no_picture_is_blank(home):
    pictures = {path.name for path in (home / "figures").iterdir()}
    assert pictures == {
        "crps_over_lead.png", "rmse_over_lead.png", "fsd_over_lead.png", "energy_spectrum.png",
        "enstrophy_spectrum.png", "samples.png", "animation.gif", "sweep_system.process.eta.png",
    }  # fmt: skip
    for path in (home / "figures").iterdir():
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert min(image.size) > 250 and len(image.convert("RGB").getcolors(2**24)) > 20


def test_curves_are_the_scores_over_seeds(found):
    (axis,) = figures.curves(found, "fsd").axes
    drawn = {line.get_label(): line for line in axis.lines}
    for group in found["groups"]:
        score = [lead["mean"] for lead in group["scores"]["fsd"]["per_lead"]]
        line = drawn[figures.styles(found["groups"])[group["label"]]["label"]]
        np.testing.assert_array_equal(line.get_ydata(), [score[0], score[1], score[4]])
        np.testing.assert_allclose(line.get_xdata(), [1.5, 3.0, 7.5])
    floor = [lead["mean"] for lead in found["groups"][0]["scores"]["fsd_floor"]["per_lead"]]
    np.testing.assert_array_equal(
        drawn["floor: truth against truth"].get_ydata(), [floor[i] for i in (0, 1, 4)]
    )
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    lead = found["groups"][0]["scores"]["fsd"]["per_lead"][4]
    assert band.max() == pytest.approx(lead["mean"] + lead["std"])


def test_a_method_has_the_colour_of_the_registry_and_its_variants_are_told_apart(found):
    styles = figures.styles(found["groups"])
    assert len({(str(s["color"]), str(s["linestyle"])) for s in styles.values()}) == len(styles)
    for method in ("standard", "rolling", "regression"):
        assert styles[method]["color"] == to_rgb(SYSTEMS[method].colour)
    for figure in (figures.curves(found, "crps"), figures.spectra(found, "energy_spectrum")):
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        for style in styles.values():
            assert lines[style["label"]].get_color() == style["color"]
    few = [group for group in found["groups"] if group["method"] == "rolling"]
    assert figures.styles(few)["rolling"] == styles["rolling"]


def test_a_sweep_shows_the_validation_scores_at_the_swept_values(found):
    points = found["validation"]["groups"]
    level = {**points[0], "label": "standard", "method": "standard", "swept": {"other": 1}}
    figure = figures.sweep({"groups": [*points, level], "unit": "m/s"}, ETA)
    axis = next(axis for axis in figure.axes if axis.get_ylabel().startswith("Fair CRPS"))
    (swept,) = axis.containers
    np.testing.assert_allclose(swept.lines[0].get_xdata().astype(float), [0.3, 0.6])
    means = [group["scores"]["crps"]["all"]["mean"] for group in points]
    np.testing.assert_allclose(swept.lines[0].get_ydata().astype(float), means)
    (ring,) = [line for line in axis.lines if line.get_fillstyle() == "none"]
    np.testing.assert_allclose(ring.get_xydata(), [[0.3, means[0]]])
    (other,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert other.get_ydata()[0] == means[0]


def test_words_are_swept_side_by_side():
    assert figures._places(["init", "lin", "init"]) == ({"init": 0.0, "lin": 1.0}, ["init", "lin"])
    assert figures._places([10, 20, 5]) == ({"5": 5.0, "10": 10.0, "20": 20.0}, ["5", "10", "20"])
    assert figures._places([True, False])[0] == {"True": 0.0, "False": 1.0}


def test_samples_are_the_truth_and_the_first_members_of_the_same_window(home, found):
    forecasts, missing = samples._read(found, home)
    assert list(forecasts) == [group["label"] for group in found["groups"]] and missing == []
    figure = samples._strip(forecasts["standard"], samples._panels(forecasts))
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == (1 + len(forecasts)) * (1 + finished.K)
    assert len({image.get_clim() for image in images}) == 1
    stored = np.load(home / found["groups"][0]["folders"][0] / "forecasts.npz")
    np.testing.assert_array_equal(images[1].get_array(), stored["truth"][0, 0, ..., 1])
    np.testing.assert_array_equal(images[7].get_array(), stored["ensemble"][0, 0, 0, ..., 1])
    with Image.open(home / "figures/animation.gif") as animation:
        assert animation.n_frames == 1 + finished.K


def test_another_test_window_is_not_shown_beside_the_first(tmp_path):
    entries = [finished.entry(tmp_path, method, 0) for method in ("standard", "dynamical", "rolling")]
    path = entries[1].folder / "forecasts.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"truth": arrays["truth"] + 1})
    found = results.compare(entries, tmp_path, "")
    forecasts, missing = samples._read(found, tmp_path)
    assert list(forecasts) == ["standard", "rolling"] and missing == ["dynamical"]
