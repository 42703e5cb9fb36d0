"""Every shipped config builds, and whatever is wrong in one is named before any long work."""

import dataclasses
import pathlib
import runpy

import pytest

from configs import base, turbulence
from dydiff_jax import build
from dydiff_jax.config import ConfigError, defaults, strict
from dydiff_jax.diffusion.schedules import SCHEDULES
from dydiff_jax.models import MODELS
from dydiff_jax.systems import SYSTEMS

CONFIGS = sorted(
    path for path in pathlib.Path(base.__file__).parent.glob("*.py") if path.stem not in ("base", "__init__")
)


#: The systems of the package; a test may have registered others.
METHODS = tuple(name for name, entry in SYSTEMS.items() if entry.options.__module__.startswith("dydiff_jax."))
#: Those whose windows are corrupted.
DIFFUSIONS = tuple(name for name in METHODS if "process" in SYSTEMS[name].options.defaults())


def sizes():
    """Every config file, loaded, with each size of its network."""
    for path in CONFIGS:
        module = runpy.run_path(str(path))
        for size in MODELS[module.get("NETWORK", base.NETWORK)].sizes:
            yield pytest.param(module["get_config"], size, id=f"{path.stem}-{size}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("get_config, size", sizes())
def test_every_config_is_valid(get_config, size, method):
    config = build.load(get_config(f"{method},size={size}"))
    assert (config.method, config.size) == (method, size)
    assert type(config.system) is SYSTEMS[method].options


def test_the_methods_are_there():
    others = {"regression", "dyffusion", "dropout", "perturbation"}
    assert DIFFUSIONS == ("standard", "dynamical", "rolling", "rolling_dynamical")
    assert set(METHODS) == {*DIFFUSIONS, *others}


@pytest.mark.parametrize("method", DIFFUSIONS)
def test_a_system_begins_with_the_defaults_of_its_process(method):
    config = build.load(turbulence.get_config(method))
    process = config.system.rollout.process
    assert type(process) is SYSTEMS[method].options.process
    fields = {field.name: field.default for field in dataclasses.fields(process)}
    section = config.plain["system"]["process"]
    assert section == {
        name: default for name, default in fields.items() if default is not dataclasses.MISSING
    }
    assert {name: getattr(process, name) for name in section} == section


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_begins_with_its_defaults(name):
    config = turbulence.get_config(f"standard,schedule={name}")
    assert config.system.schedule.to_dict() == {"name": name, **defaults(SCHEDULES[name])}
    assert build.load(config).system.rollout.process.schedule == SCHEDULES[name]()


def test_the_default_is_the_paper():
    config = build.load(turbulence.get_config())
    assert config.method == "dynamical"
    assert (config.window.num_context, config.window.num_forecast, config.dataset.crop) == (4, 11, 64)
    assert (config.data.rayleigh, config.data.prandtl, config.data.rows, config.data.columns) == (
        2.5e8,
        0.71,
        256,
        1792,
    )
    assert config.system.rollout.process.eta == 0.5
    assert config.system.rollout.sampler.nfe == 55


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
    place(config, section).update(values)
    return config


def place(config, section):
    """The part of a config at SECTION.KEY, the whole for None."""
    for key in section.split(".") if section else ():
        config = config[key]
    return config


@pytest.mark.parametrize(
    "section, values, message",
    [
        (
            "system.process",
            {"etta": 0.5},
            r"config.system.process.etta: unknown key \(did you mean 'eta'\?\)",
        ),
        ("system.process", {"eta": -0.1}, "config.system.process.eta: expected a mixing strength in"),
        ("system.process", {"eta": 1.1}, "config.system.process.eta: expected a mixing strength in"),
        ("system.process", {"eta": 0.99}, "config.system.process.eta: expected at most 0.98, found 0.99"),
        ("system.process", {"prediction": "x"}, "config.system.process.prediction: expected one of"),
        ("window", {"num_context": 0}, "config.system.process.num_context: mixing with clean context"),
        ("window", {"num_context": -1}, "config.window.num_context: expected at least 0 frames"),
        ("window", {"num_forecast": 0}, "config.window.num_forecast: expected at least 1"),
        ("train", {"batch_size": 0}, "config.train.batch_size"),
        (
            "scores",
            {"fsd_samples": 49},
            "config.scores.fsd_samples: too few samples .* at least 49 .*, found 48",
        ),
        ("evaluation", {"horizon": 0}, "config.evaluation.horizon: expected at least 1 frame, found 0"),
        ("networks.denoiser", {"dtype": "float16"}, "config.networks.denoiser.dtype: expected one of"),
        ("system.sampler", {"name": "dim"}, "did you mean 'ddim'"),
        ("data", {"name": "rayleigh"}, "did you mean 'rayleigh_benard'"),
        ("system.schedule", {"name": "cosin"}, "did you mean 'cosine'"),
        ("system", {"name": "dinamical"}, "did you mean 'dynamical'"),
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
            "system.process",
            {"prediction": "eps"},
            'config.system.process.prediction: a rolling clock .* found "eps"',
        ),
        (
            "rolling_dynamical",
            "system.process",
            {"prediction": "eps"},
            'config.system.process.prediction: .* found "eps"',
        ),
        (
            "rolling",
            "system.process",
            {"context": "noised"},
            "config.system.process.context: a rolling clock needs",
        ),
        (
            "rolling",
            "system.process",
            {"clock": "init_rescaled", "p_lin": 0.0},
            "config.system.process.p_lin: expected more than 0",
        ),
        ("rolling", "system.process", {"p_lin": 1.0}, "config.system.process.p_lin: expected a probability"),
        ("rolling", "system.process", {"clock": "inti"}, "did you mean 'init'"),
        (
            "rolling_dynamical",
            "window",
            {"num_context": 0},
            "config.system.process.num_context: mixing with clean context",
        ),
        ("rolling", "window", {"num_forecast": 0}, "config.window.num_forecast: expected at least 1 frame"),
        (
            "rolling",
            "system.sampler",
            {"nfe": 25},
            "config.system.sampler.nfe: expected a multiple of the 6 .* take 24",
        ),
        (
            "rolling",
            "system.sampler",
            {"nfe": 2},
            "config.system.sampler.nfe: expected a multiple of the 6 .* take 6",
        ),
        ("rolling", "system.sampler", {"timesteps": "released", "nfe": 50}, "config.system.sampler."),
        ("rolling", "window", {"num_context": 0}, "config.conditions.copy_path: there is no context frame"),
        (
            "regression",
            "window",
            {"num_context": 0},
            "config.window.num_context: a regression .* expected at least 1 frame",
        ),
    ],
)
def test_what_a_rolling_clock_or_a_lack_of_context_cannot_do_is_refused(method, section, values, message):
    config = turbulence.get_config(f"{method},size=tiny").unlock()
    place(config, section).update(values)
    with pytest.raises(ConfigError, match=message):
        build.load(config)


def test_a_missing_section_is_named():
    config = turbulence.get_config().unlock()
    del config["ema"]
    with pytest.raises(ConfigError, match="config.ema: missing"):
        build.load(config)


def test_a_grid_that_cannot_be_sampled_is_refused_before_training():
    config = changed("system.process", eta=0.99, allow_large_eta=True)
    config.system.sampler.update(timesteps="released", nfe=500)
    with pytest.raises(ConfigError, match="config.system.sampler.timesteps: expected a start at"):
        build.load(config)


def test_a_crop_that_the_network_cannot_halve_is_refused_before_any_data():
    with pytest.raises(ConfigError, match=r"config.dataset.crop: grid 30 x 30"):
        build.load(changed("dataset", crop=30))


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
