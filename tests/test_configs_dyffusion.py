"""The configs of DYffusion's experiments: they build without data, and say what the paper and its release say."""

import pathlib
import runpy

import pytest

from configs import base, hasselmann, lorenz96, spring_mesh, turbulence
from dydiff_jax import build
from dydiff_jax.models import MODELS
from dydiff_jax.runs import scoring
from dydiff_jax.systems import SYSTEMS
from dydiff_jax.training import fingerprints

FOLDER = pathlib.Path(base.__file__).parent
SIMULATED = ("turbulence", "kolmogorov", "spring_mesh", "hasselmann", "lorenz96")
METHODS = tuple(name for name, entry in SYSTEMS.items() if entry.options.__module__.startswith("dydiff_jax."))


def built(config):
    """The run of a config, from what its source says without opening the data."""
    loaded = build.load(config)
    return build.build(loaded, build.spec_card(loaded))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SIMULATED)
def test_every_size_of_every_method_builds_without_data(name, method):
    module = runpy.run_path(str(FOLDER / f"{name}.py"))
    for size in MODELS[module.get("NETWORK", base.NETWORK)].sizes:
        run = built(module["get_config"](f"{method},size={size}"))
        assert [stage.name for stage in run.stages] == list(run.config.system.roles)


def test_the_data_of_the_mesh_are_chosen():
    found = {name: build.load(spring_mesh.get_config(f"dyffusion,data={name}")) for name in spring_mesh.DATA}
    assert not found["simulated"].data.out_of_distribution and found["ring"].data.out_of_distribution
    assert found["published"].plain["data"]["name"] == "spring_mesh_file"
    assert {config.dataset.split for config in found.values()} == {"given"}


def test_noise_drives_lorenz_96_where_it_is_asked_for():
    found = [build.load(lorenz96.get_config(f"dyffusion,data={data}")).data.noise for data in lorenz96.DATA]
    assert found[0] == 0 < found[1]


# What is released


def walk(config):
    system = config.system
    return system.process.leads, system.process, system.sampler


def test_the_mesh_is_that_of_the_release():
    run = built(spring_mesh.get_config("dyffusion"))
    config = run.config
    leads, process, sampler = walk(config)
    assert config.window == (1, 134) and config.horizon == 804
    assert (leads.kind, leads.extra, leads.horizon, leads.num_steps) == ("before_t1_only", 0, 134, 134)
    assert (process.loss, process.weights, process.conditioning) == ("l1", (0.5, 0.5), "data")
    assert (sampler.name, sampler.grid, sampler.draws, sampler.refine) == ("cold", "all", "call", True)
    assert sampler.calls(leads) == (134, 265 + 133)
    roles = config.data.roles
    assert [roles.count(role) for role in ("train", "valid", "test")] == [100, 3, 15]
    assert config.data.frames == 805 and config.evaluation.windows == 15
    for role, rate in dict(interpolator=0.05, forecaster=0.0).items():
        network = config.networks[role]
        assert (network.features, network.kernels, network.dropout) == (64, (9, 7, 5, 3), rate)
    for stage in run.stages:
        optimizer, train = stage.recipe.optimizer, stage.recipe.train
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.b2) == (4e-4, 1e-4, 0.99)
        assert (optimizer.decay, optimizer.warmup_steps, train.batch_size) == ("constant", 0, 64)


def test_the_temperature_has_the_settings_of_the_release():
    run = built(hasselmann.get_config("dyffusion"))
    config = run.config
    leads, process, sampler = walk(config)
    assert config.data.grid == (60, 60) and config.window == (1, 7) and config.horizon == 7
    assert (leads.kind, leads.extra, leads.num_steps) == ("before_t1_only", 25, 32)
    assert (process.loss, process.conditioning) == ("l1", "data_noise")
    assert (sampler.name, sampler.draws, sampler.refine) == ("cold", "call", False)
    assert sampler.calls(leads) == (32, 61)
    assert [stage.recipe.optimizer.learning_rate for stage in run.stages] == [3e-4, 1e-4]
    assert {stage.recipe.train.batch_size for stage in run.stages} == {256}


@pytest.mark.parametrize("config", [hasselmann, spring_mesh])
def test_the_rivals_are_settings_of_standard_diffusion(config):
    ddpm, mcvd = (
        build.load(config.get_config(f"standard,setting={name}")).system for name in ("ddpm", "mcvd")
    )
    for system in (ddpm, mcvd):
        assert (system.rollout.process.prediction, system.rollout.sampler.name) == ("eps", "ancestral")
    assert ddpm.rollout.process.schedule.offset == 0.008
    assert ddpm.rollout.sampler.nfe == (5 if config is hasselmann else 1000)
    betas = mcvd.rollout.process.schedule
    assert (betas.beta_min, betas.beta_max, betas.steps) == (1e-4, 0.02, 1000)
    with pytest.raises(ValueError, match="setting=ddpm belongs to the method 'standard', found 'rolling'"):
        config.get_config("rolling,setting=ddpm")


# What runs share


def fingerprint_of_interpolator(argument, get_config=hasselmann.get_config, **changes):
    config = get_config(argument)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    run = built(config)
    return fingerprints.fingerprint(run.stages[0], scoring.sections(run.config), {})


def test_runs_that_differ_in_sampler_and_forecaster_share_the_interpolator():
    first = fingerprint_of_interpolator("dyffusion,size=tiny")
    for changes in (
        dict(system__sampler__draws="block"),
        dict(system__forecaster__conditioning="data"),
        dict(system__leads__extra=3),
        dict(networks__forecaster__dropout=0.1),
        dict(evaluation__members=3),
    ):
        assert fingerprint_of_interpolator("dyffusion,size=tiny", **changes) == first, changes
    for changes in (
        dict(system__interpolator__name="gaussian"),
        dict(networks__interpolator__dropout=0.2),
        dict(window__num_forecast=8),
        dict(seed=1),
    ):
        assert fingerprint_of_interpolator("dyffusion,size=tiny", **changes) != first, changes


def test_the_methods_of_a_comparison_have_one_network():
    """The size of a config is that of every method."""
    for module in (hasselmann, spring_mesh, lorenz96, turbulence):
        networks = [
            build.load(module.get_config(f"{method},size=tiny")).plain["networks"] for method in METHODS
        ]
        kinds = {(each["name"], each["size"]) for roles in networks for each in roles.values()}
        assert len(kinds) == 1, module
