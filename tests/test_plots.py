"""Pictures of a made-up evaluation: they are whole, of the expected size, and show what they should."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dydiff_jax import plots, report

P, K, H, W, E = 3, 4, 16, 24, 3
FILES = ["forecast.png", "error_over_lead.png", "spectra.png", "rank_histogram.png", "film.gif"]


def evaluation(folder, seed=0):
    """Waves that travel, and an ensemble that drifts off."""
    rng = np.random.default_rng(seed)
    x, y, t = np.arange(W) / W, np.arange(H)[:, None] / H, np.arange(P + K)[:, None, None] / 10
    frames = np.stack([np.sin(2 * np.pi * (x + y - t)), np.cos(2 * np.pi * (x - t)) * np.sin(np.pi * y)], -1)
    frames = np.stack([frames, np.roll(frames, 5, axis=2)]).astype(np.float32)
    context, truth = frames[:, :P], frames[:, P:]
    growth = np.arange(1, K + 1)[:, None, None, None] / 10
    ensemble = (truth + growth * rng.normal(size=(E, *truth.shape))).astype(np.float32)
    options = report.ScoreOptions()
    info = {
        "method": "model",
        "leads": list(range(1, K + 1)),
        "interval": 0.25,
        "time_unit": "s",
        "unit": "m/s",
        "fields": ["u", "v"],
        "scores": {
            "still": report.score(np.repeat(context[None, :, -1:], K, axis=2), truth, options, "m/s"),
            "model": report.score(ensemble, truth, options, "m/s"),
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


def colours(image):
    return len(image.convert("RGB").getcolors(2**24))


def test_every_picture_is_written_whole(folder, files):
    assert [path.name for path in files] == FILES
    assert {path.name for path in folder.iterdir()} == {*FILES, "metrics.json", "forecasts.npz"}
    for path in files:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 250 and colours(image) > 20


def test_the_forecast_has_a_row_for_each_quantity_and_a_column_for_each_lead(folder):
    results = plots._read(folder, "v", 1)
    figure = plots._forecast_figure(results)
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
    assert titles == ["last context", "+0.25", "+0.5", "+0.75", "+1"]
    labels = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert labels == [
        "truth",
        "mean",
        *(f"member {i + 1}" for i in range(E)),
        "v (m/s)",
        "spread",
        "m/s",
        "mean - truth",
        "m/s",
    ]


def test_fields_share_one_symmetric_scale(folder):
    figure = plots._forecast_figure(plots._read(folder, None, 0))
    limits = [axis.images[0].get_clim() for axis in figure.axes if axis.images]
    assert len(set(limits[: (2 + E) * (1 + K)])) == 1 and len(set(limits)) == 3
    (low, high), spread, (least, most) = limits[0], limits[-K - 2], limits[-1]
    assert low == -high and spread[0] == 0 and least == -most


def test_curves_are_the_scores(folder):
    info = json.loads((folder / "metrics.json").read_text())
    left, right = plots._error_figure(info).axes
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
    (axis,) = plots._rank_figure(info).axes
    counts = np.array(info["scores"]["model"]["rank_histogram"]["counts"])
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches], counts / counts.mean())
    left, right = plots._spectra_figure(info).axes
    spectrum = info["scores"]["still"]["spectrum"]
    curves = {line.get_label(): line.get_ydata() for line in left.lines}
    np.testing.assert_array_equal(curves["still"], spectrum["forecast"])
    np.testing.assert_array_equal(curves["truth"], spectrum["truth"])
    np.testing.assert_allclose(right.lines[1].get_ydata(), np.divide(spectrum["forecast"], spectrum["truth"]))


def test_the_film_shows_every_frame_of_context_and_forecast(files):
    with Image.open(files[-1]) as film:
        assert film.n_frames == P + K
        frames = []
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB"), dtype=int))
    width = frames[0].shape[1]
    moved = [np.abs(after - before)[:, : width // 5].mean() for before, after in itertools.pairwise(frames)]
    assert min(moved) > 1  # the truth, on the left, moves in every frame


def test_a_single_member_and_a_single_lead_are_drawn(tmp_path):
    info = evaluation(tmp_path)
    with np.load(tmp_path / "forecasts.npz") as arrays:
        one = {"context": arrays["context"][:, -1:], "truth": arrays["truth"][:, :1]}
        one["ensemble"] = arrays["ensemble"][:1, :, :1]
    np.savez(tmp_path / "forecasts.npz", **one)
    scores = report.score(one["ensemble"], one["truth"])
    (tmp_path / "metrics.json").write_text(json.dumps(info | {"leads": [1], "scores": {"model": scores}}))
    files = plots.plot_all(tmp_path)
    assert all(path.stat().st_size > 0 for path in files)
    with Image.open(files[-1]) as film:
        assert film.n_frames == 2


def test_pyplot_and_with_it_the_backend_are_left_alone(folder):
    check = (
        "import sys; from dydiff_jax import plots;"
        "plots._forecast_figure(plots._read(plots.Path(sys.argv[1]), None, 0));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", check, str(folder)], check=True)


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


def test_a_failed_save_leaves_the_old_picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def save(part):
        part.write_bytes(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        plots._write(path, save)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_reader_of_the_old_picture_keeps_it(tmp_path):
    """The new file takes the name of the old one: what another program has open is not written over."""
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        plots._write(path, lambda part: part.write_bytes(b"new"))
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
