"""Every shipped config builds, and whatever is wrong in one is named before any long work."""

import dataclasses
import pathlib
import runpy

import pytest

from configs import base, turbulence
from dydiff_jax import build
from dydiff_jax.config import ConfigError, strict
from dydiff_jax.models.uvit import SIZES

CONFIGS = sorted(
    path for path in pathlib.Path(base.__file__).parent.glob("*.py") if path.stem not in ("base", "__init__")
)


@pytest.mark.parametrize("method", base.METHODS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid(path, size, method):
    get_config = runpy.run_path(str(path))["get_config"]
    config = build.load(get_config(f"{method},size={size}"))
    assert (config.method, config.size) == (method, size)
    assert isinstance(config.process, build.METHODS[method])


def test_tables_of_methods_agree():
    assert base.METHODS.keys() == build.METHODS.keys()
    for method, options in base.METHODS.items():
        fields = {field.name: field.default for field in dataclasses.fields(build.METHODS[method])}
        assert {name: fields[name] for name in options} == options


def test_tables_of_schedules_agree():
    assert base.SCHEDULES.keys() == build.SCHEDULES.keys()
    for name, options in base.SCHEDULES.items():
        made = build.load(turbulence.get_config(f"standard,schedule={name}")).process.schedule
        assert made == build.SCHEDULES[name](**options) == build.SCHEDULES[name]()


def test_the_default_is_the_paper():
    config = build.load(turbulence.get_config())
    assert config.method == "dynamical"
    assert (config.window.num_context, config.window.num_forecast, config.windows.crop) == (4, 11, 64)
    assert (config.data.rayleigh, config.data.prandtl, config.data.rows, config.data.columns) == (
        2.5e8,
        0.71,
        256,
        1792,
    )
    assert config.process.eta == 0.5


@pytest.mark.parametrize(
    "argument, message",
    [
        ("dinamical", "did you mean 'dynamical'"),
        ("dynamical,sise=tiny", "did you mean 'size'"),
        ("dynamical,size=tinny", "did you mean 'tiny'"),
        ("dynamical,tiny", "expected a key"),
    ],
)
def test_unknown_arguments_name_the_closest_match(argument, message):
    with pytest.raises(ValueError, match=message):
        turbulence.get_config(argument)


def changed(section, **values):
    config = turbulence.get_config("dynamical,size=tiny").unlock()
    target = config[section] if section else config
    for key, value in values.items():
        target[key] = value
    return config


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("process", {"etta": 0.5}, r"config.process.etta: unknown key \(did you mean 'eta'\?\)"),
        ("process", {"eta": -0.1}, "config.process.eta: expected a mixing strength in"),
        ("process", {"eta": 1.1}, "config.process.eta: expected a mixing strength in"),
        ("process", {"eta": 0.99}, "config.process.eta: expected at most 0.98, found 0.99"),
        ("process", {"prediction": "x"}, "config.process.prediction: expected one of"),
        ("window", {"num_context": 0}, "config.process.num_context: mixing with clean context"),
        ("window", {"num_context": -1}, "config.window.num_context: expected 0 or more"),
        ("window", {"num_forecast": 0}, "config.window.num_forecast: expected at least 1"),
        ("train", {"batch_size": 0}, "config.train.batch_size"),
        (
            "scores",
            {"fsd_samples": 49},
            "config.scores: fsd_samples: too few samples .* at least 49 .*, found 48",
        ),
        ("evaluation", {"horizon": 0}, "config.evaluation.horizon: expected at least 1 frame, found 0"),
        ("model", {"dtype": "float16"}, "config.model.dtype: expected one of"),
        ("sampler", {"method": "dim"}, "did you mean 'ddim'"),
        ("data", {"name": "rayleigh"}, "did you mean 'rayleigh_benard'"),
        ("schedule", {"name": "cosin"}, "did you mean 'cosine'"),
        (None, {"method": "dinamical"}, "did you mean 'dynamical'"),
        (None, {"optimiser": {}}, "did you mean 'optimizer'"),
    ],
)
def test_bad_values_are_named_with_their_path(section, values, message):
    with pytest.raises(ConfigError, match=message):
        build.load(changed(section, **values))


@pytest.mark.parametrize(
    "method, section, values, message",
    [
        (
            "rolling",
            "process",
            {"prediction": "eps"},
            'config.process.prediction: a rolling clock .* found "eps"',
        ),
        ("rolling_dynamical", "process", {"prediction": "eps"}, 'config.process.prediction: .* found "eps"'),
        ("rolling", "process", {"context": "noised"}, "config.process.context: a rolling clock needs"),
        (
            "rolling",
            "process",
            {"clock": "init_rescaled", "p_lin": 0.0},
            "config.process.p_lin: expected more than 0",
        ),
        ("rolling", "process", {"p_lin": 1.0}, "config.process.p_lin: expected a probability"),
        ("rolling", "process", {"clock": "inti"}, "did you mean 'init'"),
        (
            "rolling_dynamical",
            "window",
            {"num_context": 0},
            "config.process.num_context: mixing with clean context",
        ),
        ("rolling", "window", {"num_forecast": 0}, "config.window.num_forecast: expected at least 1 frame"),
        (
            "rolling",
            "sampler",
            {"steps": 25},
            "config.sampler: steps: expected a multiple of the 6 .* take 24",
        ),
        ("rolling", "sampler", {"steps": 2}, "config.sampler: steps: expected a multiple of the 6 .* take 6"),
        ("rolling", "sampler", {"grid": "released", "steps": 50}, "config.sampler: "),
        ("rolling", "window", {"num_context": 0}, "config.conditions.copy_path: there is no context frame"),
        ("regression", "window", {"num_context": 0}, "config.process.num_context: expected at least 1 frame"),
    ],
)
def test_what_a_rolling_clock_or_a_lack_of_context_cannot_do_is_refused(method, section, values, message):
    config = turbulence.get_config(f"{method},size=tiny").unlock()
    config[section].update(values)
    with pytest.raises(ConfigError, match=message):
        build.load(config)


def test_a_missing_section_is_named():
    config = turbulence.get_config().unlock()
    del config["ema"]
    with pytest.raises(ConfigError, match="config.ema: missing"):
        build.load(config)


def test_a_grid_that_cannot_be_sampled_is_refused_before_training():
    config = changed("process", eta=0.99, allow_large_eta=True)
    config.sampler.grid, config.sampler.steps = "released", 500
    with pytest.raises(ConfigError, match="grid"):
        build.load(config)


def test_a_crop_that_the_network_cannot_halve_is_refused_before_any_data():
    with pytest.raises(ConfigError, match=r"config.windows.crop: grid 30 x 30"):
        build.load(changed("windows", crop=30))


@dataclasses.dataclass(frozen=True)
class Example:
    """Of every kind of field."""

    count: int
    rate: float = 1.0
    sizes: tuple[int, ...] = ()
    place: str | None = None


def test_strict_converts_only_what_is_exact():
    assert strict(Example, {"count": 1, "rate": 2, "sizes": [1, 2]}, "x") == Example(1, 2.0, (1, 2))
    for bad in ({"count": 1.0}, {"count": True}, {"count": 1, "sizes": [1.5]}, {"count": 1, "place": 3}, {}):
        with pytest.raises(ConfigError):
            strict(Example, bad, "x")
