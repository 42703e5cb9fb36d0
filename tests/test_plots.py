"""Figures of a made-up evaluation and animation of a made-up forecast: whole, and showing what they should."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dydiff_jax.evaluation import plots
from dydiff_jax.evaluation import scores as scoring
from dydiff_jax.evaluation.plots import animation, draw, figures, results

P, K, H, W, E = 3, 4, 16, 24, 3
FILES = ["forecast.png", "error_over_lead.png", "spectra.png", "rank_histogram.png", "animation.gif"]


def evaluation(folder, seed=0):
    """Waves that travel, and an ensemble that drifts off."""
    rng = np.random.default_rng(seed)
    x, y, t = np.arange(W) / W, np.arange(H)[:, None] / H, np.arange(P + K)[:, None, None] / 10
    frames = np.stack([np.sin(2 * np.pi * (x + y - t)), np.cos(2 * np.pi * (x - t)) * np.sin(np.pi * y)], -1)
    frames = np.stack([frames, np.roll(frames, 5, axis=2)]).astype(np.float32)
    context, truth = frames[:, :P], frames[:, P:]
    growth = np.arange(1, K + 1)[:, None, None, None] / 10
    ensemble = (truth + growth * rng.normal(size=(E, *truth.shape))).astype(np.float32)
    options = scoring.ScoreOptions()
    info = {
        "method": "model",
        "leads": list(range(1, K + 1)),
        "interval": 0.25,
        "time_unit": "s",
        "unit": "m/s",
        "fields": ["u", "v"],
        "scores": {
            "still": scoring.score(np.repeat(context[None, :, -1:], K, axis=2), truth, options, "m/s"),
            "model": scoring.score(ensemble, truth, options, "m/s"),
        },
    }
    (folder / "metrics.json").write_text(json.dumps(info))
    np.savez(folder / "forecasts.npz", context=context, truth=truth, ensemble=ensemble)
    return info


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    evaluation(folder)
    return folder


@pytest.fixture(scope="module")
def files(folder):
    return plots.plot_all(folder)


def read(folder, field, window):
    return results.read_evaluation(folder, results.read_scores(folder), field, window)


def forecast(folder, members=E):
    """What a forecast leaves: the context and the ensemble of an evaluation, and what they are."""
    info = evaluation(folder)
    with np.load(folder / "forecasts.npz") as arrays:
        stored = {"context": arrays["context"], "ensemble": arrays["ensemble"][:members]}
    stored |= {name: info[name] for name in ("leads", "interval", "fields", "unit", "time_unit")}
    for name in ("metrics.json", "forecasts.npz"):
        (folder / name).unlink()
    np.savez(folder / "forecast.npz", **stored)
    return stored


def animation_frames(path):
    """RGB [frames, rows, columns, 3] of a gif."""
    with Image.open(path) as moving:
        frames = []
        for i in range(moving.n_frames):
            moving.seek(i)
            frames.append(np.asarray(moving.convert("RGB"), dtype=int))
    return np.stack(frames)


def colours(image):
    return len(image.convert("RGB").getcolors(2**24))


@pytest.mark.slow
def test_every_figure_is_written_whole(folder, files):
    assert [path.name for path in files] == FILES
    assert {path.name for path in folder.iterdir()} == {*FILES, "metrics.json", "forecasts.npz"}
    for path in files:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 250 and colours(image) > 20


def test_the_forecast_has_a_row_for_each_quantity_and_a_column_for_each_lead(folder):
    figure = figures.forecast_figure(read(folder, "v", 1))
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(images) == (2 + E + 2) * (1 + K)
    grid = np.reshape(np.stack(images), (2 + E + 2, 1 + K, H, W))
    stored = np.load(folder / "forecasts.npz")
    truth, ensemble = stored["truth"][1, ..., 1], stored["ensemble"][:, 1, ..., 1]
    np.testing.assert_array_equal(grid[0, 0], stored["context"][1, -1, ..., 1])
    np.testing.assert_array_equal(grid[0, 1:], truth)
    np.testing.assert_allclose(grid[1, 1:], ensemble.mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(grid[2:5, 1:], ensemble)
    np.testing.assert_allclose(grid[5, 1:], ensemble.std(axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(grid[6, 1:], ensemble.mean(axis=0) - truth, atol=1e-6)
    titles = [axis.get_title() for axis in figure.axes[: 1 + K]]
    assert titles == ["context", "+0.25", "+0.5", "+0.75", "+1"]
    labels = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert labels == [
        "truth",
        "mean",
        *(f"member {i + 1}" for i in range(E)),
        "v (m/s)",
        "spread",
        "m/s",
        "mean\n- truth",
        "m/s",
    ]


def test_fields_share_one_symmetric_scale(folder):
    figure = figures.forecast_figure(read(folder, None, 0))
    limits = [axis.images[0].get_clim() for axis in figure.axes if axis.images]
    assert len(set(limits[: (2 + E) * (1 + K)])) == 1 and len(set(limits)) == 3
    (low, high), spread, (least, most) = limits[0], limits[-K - 2], limits[-1]
    assert low == -high and spread[0] == 0 and least == -most


def test_curves_are_the_scores(folder):
    info = json.loads((folder / "metrics.json").read_text())
    left, right = figures.error_figure(info).axes
    curves = {line.get_label(): line.get_ydata() for line in right.lines}
    assert list(curves) == ["model", "still"]
    for name, values in curves.items():
        np.testing.assert_array_equal(values, info["scores"][name]["crps"]["per_lead"])
    np.testing.assert_allclose(right.lines[0].get_xdata(), [0.25, 0.5, 0.75, 1.0])
    dotted = [line for line in left.lines if line.get_linestyle() == ":" and len(line.get_ydata())]
    assert len(dotted) == 1  # one forecast is an ensemble
    np.testing.assert_array_equal(dotted[0].get_ydata(), info["scores"]["model"]["spread"]["per_lead"])


def test_ranks_and_spectra_are_the_scores(folder):
    info = json.loads((folder / "metrics.json").read_text())
    (axis,) = figures.rank_figure(info).axes
    counts = np.array(info["scores"]["model"]["rank_histogram"]["counts"])
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches], counts / counts.mean())
    left, right = figures.spectra_figure(info).axes
    spectrum = info["scores"]["still"]["spectrum"]
    curves = {line.get_label(): line.get_ydata() for line in left.lines}
    np.testing.assert_array_equal(curves["still"], spectrum["forecast"])
    np.testing.assert_array_equal(curves["truth"], spectrum["truth"])
    np.testing.assert_allclose(right.lines[1].get_ydata(), np.divide(spectrum["forecast"], spectrum["truth"]))


def test_the_animation_shows_every_frame_of_context_and_forecast(files):
    frames = animation_frames(files[-1])
    assert len(frames) == P + K
    moved = np.abs(np.diff(frames[:, :, : frames.shape[2] // 5], axis=0)).mean(axis=(1, 2, 3))
    assert len(moved) == P + K - 1 and moved.min() > 1  # the truth, on the left, moves in every frame


def test_a_single_member_and_a_single_lead_are_drawn(tmp_path):
    info = evaluation(tmp_path)
    with np.load(tmp_path / "forecasts.npz") as arrays:
        one = {"context": arrays["context"][:, -1:], "truth": arrays["truth"][:, :1]}
        one["ensemble"] = arrays["ensemble"][:1, :, :1]
    np.savez(tmp_path / "forecasts.npz", **one)
    scores = scoring.score(one["ensemble"], one["truth"])
    (tmp_path / "metrics.json").write_text(json.dumps(info | {"leads": [1], "scores": {"model": scores}}))
    figure = figures.forecast_figure(read(tmp_path, None, 0))
    rows = [axis.get_ylabel() for axis in figure.axes if axis.images and axis.get_ylabel()]
    assert rows == ["truth", "forecast", "forecast\n- truth"]
    files = plots.plot_all(tmp_path)
    assert all(path.stat().st_size > 0 for path in files)
    with Image.open(files[-1]) as moving:
        assert moving.n_frames == 2


def test_pyplot_and_with_it_the_backend_are_left_alone(tmp_path):
    forecast(tmp_path)
    check = (
        "import sys; from dydiff_jax.evaluation import plots;"
        "plots.animate(sys.argv[1]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", check, str(tmp_path)], check=True)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics.json; run an evaluation"):
        plots.plot_all(tmp_path)
    info = evaluation(tmp_path)
    with pytest.raises(ValueError, match=r"field: expected one of \['u', 'v'\] .* found 'w'"):
        plots.plot_all(tmp_path, field="w")
    with pytest.raises(ValueError, match=r"window: expected 0 to 1 .* found 2"):
        plots.plot_all(tmp_path, window=2)
    del info["scores"]
    (tmp_path / "metrics.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"expected the entries \['scores'\] in .*metrics.json"):
        plots.plot_all(tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_the_animation_of_a_forecast_shows_every_frame_and_nothing_else_is_read_or_left(tmp_path):
    forecast(tmp_path)
    path = plots.animate(tmp_path)
    assert path == tmp_path / "animation.gif"
    assert {path.name for path in tmp_path.iterdir()} == {"forecast.npz", "animation.gif"}
    frames = animation_frames(path)
    assert len(frames) == P + K
    panels = np.array_split(frames, 4, axis=2)  # mean, two members, spread
    moved = [np.abs(np.diff(panel, axis=0)).mean(axis=(1, 2, 3)) for panel in panels]
    assert np.min(moved[:3]) > 1
    assert np.max(moved[3][: P - 1]) < 1 < np.min(moved[3][P - 1 :])  # no spread in the context


def test_the_animation_of_an_evaluation_adds_the_truth_to_that_of_a_forecast(folder, tmp_path):
    forecast(tmp_path)
    without, known = results.read_forecast(tmp_path, "u", 1), read(folder, "u", 1)
    assert without.truth is None
    for name in ("context", "ensemble", "times", "mean", "spread"):
        np.testing.assert_array_equal(getattr(without, name), getattr(known, name))
    assert without.label == known.label == "u (m/s)" and without.time_unit == known.time_unit == "s"
    one, other = animation._panels(without), animation._panels(known)
    assert list(one) == ["mean", "member 1", "member 2", "spread"] and list(other) == ["truth", *one]
    with np.load(folder / "forecasts.npz") as arrays:
        frames = np.concatenate([arrays["context"], arrays["truth"]], axis=1)[1, ..., 0]
    np.testing.assert_array_equal(other["truth"], frames)
    for panel in one.values():
        assert panel.shape == (P + K, H, W)
    np.testing.assert_array_equal(one["member 1"][:P], frames[:P])


def test_headings_count_from_the_last_context_frame(tmp_path):
    forecast(tmp_path)
    texts = ["context, -0.50 s", "context, -0.25 s", "context, +0.00 s", "forecast, +0.25 s"]
    found = results.read_forecast(tmp_path, None, 0)
    assert animation._headings(found)[: P + 1] == texts
    fine = found._replace(times=found.times / 2)  # frames between the leads
    assert animation._headings(fine)[P : P + 2] == ["forecast, +0.125 s", "forecast, +0.250 s"]


def test_a_forecast_of_one_member_is_one_panel(tmp_path):
    stored = forecast(tmp_path, members=1)
    panels = animation._panels(results.read_forecast(tmp_path, "v", 1))
    assert list(panels) == ["forecast"]
    np.testing.assert_array_equal(panels["forecast"][P:], stored["ensemble"][0, 1, ..., 1])
    frames = animation_frames(plots.animate(tmp_path, "v", 1))
    assert len(frames) == P + K and np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)).min() > 1


def test_what_is_missing_in_a_forecast_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"forecast.npz; run a forecast"):
        plots.animate(tmp_path)
    stored = forecast(tmp_path)
    with pytest.raises(ValueError, match=r"field: expected one of \['u', 'v'\] .* found 'w'"):
        plots.animate(tmp_path, field="w")
    with pytest.raises(ValueError, match=r"window: expected 0 to 1 .* found -1"):
        plots.animate(tmp_path, window=-1)
    for name in stored:
        np.savez(tmp_path / "forecast.npz", **{key: value for key, value in stored.items() if key != name})
        with pytest.raises(ValueError, match=rf"expected the entries \['{name}'\] in .*forecast.npz"):
            plots.animate(tmp_path)
    assert not (tmp_path / "animation.gif").exists()


def test_a_failed_save_leaves_the_old_figure(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def save(part):
        part.write_bytes(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        draw.write(path, save)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_reader_of_the_old_figure_keeps_it(tmp_path):
    """The new file takes the name of the old one: what another program has open is not written over."""
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        draw.write(path, lambda part: part.write_bytes(b"new"))
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def series(folder):
    """An evaluation on a grid of 1 x 1."""
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(2, P + K, 1, 1, 2)).cumsum(axis=1)
    context, truth = frames[:, :P], frames[:, P:]
    ensemble = truth + rng.normal(size=(E, *truth.shape))
    info = {
        "method": "model",
        "kind": "series",
        "leads": list(range(1, K + 1)),
        "interval": 1.0,
        "time_unit": "h",
        "unit": "kW",
        "fields": ["one", "two"],
        "scores": {"model": scoring.score(ensemble, truth, kind="series")},
    }
    (folder / "metrics.json").write_text(json.dumps(info))
    np.savez(folder / "forecasts.npz", context=context, truth=truth, ensemble=ensemble)
    np.savez(
        folder / "forecast.npz", context=context, ensemble=ensemble, **{n: info[n] for n in results.DRAWN[2:]}
    )


def test_a_series_has_the_figures_of_scores_and_no_fields(tmp_path):
    series(tmp_path)
    assert [path.name for path in plots.plot_all(tmp_path)] == ["error_over_lead.png", "rank_histogram.png"]
    assert plots.animate(tmp_path) is None and not list(tmp_path.glob("*.gif"))
    made = ("crps", "rmse", "rank_histogram")  # of fields that are points, what can be drawn
    assert list(plots.chosen(None, "field", (1, 1, 2), made)) == ["error_over_lead", "rank_histogram"]


def test_listed_figures_alone_are_drawn(tmp_path):
    info = evaluation(tmp_path)
    listed = {"figures": ["rank_histogram", "error_over_lead"]}
    (tmp_path / "metrics.json").write_text(json.dumps(info | {"evaluation": listed}))
    assert [path.name for path in plots.plot_all(tmp_path)] == ["error_over_lead.png", "rank_histogram.png"]
    few = {name: {"crps": scores["crps"]} for name, scores in info["scores"].items()}
    (tmp_path / "metrics.json").write_text(json.dumps(info | {"scores": few, "evaluation": listed}))
    with pytest.raises(
        ValueError, match=r"no error_over_lead for these data: expected the scores \['rmse'\]"
    ):
        plots.plot_all(tmp_path)


def test_which_figures_are_drawn():
    frame, scores = (H, W, 2), ("crps", "rmse", "rank_histogram", "spectrum")
    assert [f"{name}{figure.suffix}" for name, figure in plots.FIGURES.items()] == FILES
    for kind in ("field", "video"):
        assert plots.chosen(None, kind, frame, scores) == plots.FIGURES
    assert list(plots.chosen(None, "field", frame, ("crps",))) == ["forecast", "animation"]
    assert list(plots.chosen(("animation",), "series", frame, ())) == ["animation"]
    with pytest.raises(ValueError, match="no animation for these data: .* found 1 x 1"):
        plots.chosen(("animation",), "field", (1, 1, 2), scores)
    with pytest.raises(ValueError, match=r"figures: expected some of \['forecast', .* found \['film'\]"):
        plots.chosen(("film",), "field", frame, scores)


def test_missing_values_are_blank_and_take_no_part_in_the_scale(folder):
    whole = read(folder, "v", 0)
    truth, context = whole.truth.copy(), whole.context.copy()
    truth[1:, :2], context[-1, 0] = np.nan, np.nan
    figure = figures.forecast_figure(whole._replace(truth=truth, context=context))
    images = [axis.images[0] for axis in figure.axes if axis.images]
    shown = images[1].get_array()
    assert np.all(np.ma.getmaskarray(np.ma.masked_invalid(shown))[:2]) and np.isfinite(shown[2:]).all()
    assert images[1].get_clim()[1] == pytest.approx(np.quantile(np.abs(truth[np.isfinite(truth)]), 0.998))
    assert np.isfinite(images[-1].get_clim()).all()


def test_scores_that_are_undefined_at_a_lead_are_gaps(folder):
    info = json.loads((folder / "metrics.json").read_text())
    scores = info["scores"]["model"]
    scores["crps"]["per_lead"][1] = None
    scores["spectrum"] = {**scores["spectrum"], "forecast": [None] * 8, "truth": [None] * 8}
    curve = figures.error_figure(info).axes[1].lines[0].get_ydata()
    assert np.isnan(curve).tolist() == [False, True, False, False]
    figures.spectra_figure(info).draw_without_rendering()
