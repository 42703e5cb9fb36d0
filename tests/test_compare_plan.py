"""The runs that a comparison plans: which train, which only evaluate, with which configs; and what it refuses."""

import pathlib
import re

import pytest

from dydiff_jax import build, compare
from dydiff_jax.comparison import schedule

ROOT = pathlib.Path(__file__).parents[1]
FILE = str(ROOT / "configs/turbulence.py")


def request(methods="standard,dynamical", seeds="0", sweeps=(), changes=(), argument="size=tiny"):
    config = FILE + (f":{argument}" if argument else "")
    return schedule.Request.parse(config, methods, seeds, sweeps, changes, "DIR")


def make(*args, **kwargs):
    return schedule.make(request(*args, **kwargs), compare.read)


def test_every_method_of_a_seed_comes_before_the_next_seed():
    runs = make(methods="standard,dynamical,regression", seeds="3,1").runs
    assert [(run.method, run.seed) for run in runs] == [
        (method, seed) for seed in (3, 1) for method in ("standard", "dynamical", "regression")
    ]
    assert [str(run.directory) for run in runs[:2]] == ["DIR/standard/seed_3", "DIR/dynamical/seed_3"]
    assert all(run.trains and run.reported for run in runs)
    assert all(run.raw.seed == run.seed and run.raw.method == run.method for run in runs)


def test_methods_differ_in_their_process_alone():
    methods = "standard,dynamical,rolling,rolling_dynamical"
    configs = [build.load(run.raw) for run in make(methods=methods, changes=["sampler.steps=12"]).runs]
    for config in configs[1:]:
        for section in (
            "data",
            "window",
            "windows",
            "codec",
            "model",
            "optimizer",
            "ema",
            "train",
            "sampler",
        ):
            assert getattr(config, section) == getattr(configs[0], section)
        assert (config.seed, config.evaluation, config.scores) == (
            configs[0].seed, configs[0].evaluation, configs[0].scores
        )  # fmt: skip
    assert len({type(config.process) for config in configs}) == 4


def test_an_override_reaches_the_methods_that_have_its_key_and_is_said_to():
    planned = make(
        methods="standard,dynamical,regression",
        changes=["process.eta=0.25", "sampler.steps=12", "train.steps=700"],
    )
    standard, dynamical, regression = (run.raw for run in planned.runs)
    assert dynamical.process.eta == 0.25 and "eta" not in standard.process
    assert (standard.sampler.steps, dynamical.sampler.steps, regression.sampler.steps) == (12, 12, 1)
    assert {raw.train.steps for raw in (standard, dynamical, regression)} == {700}
    assert planned.partial == {"process.eta": ("dynamical",), "sampler.steps": ("standard", "dynamical")}


def test_a_sweep_that_changes_weights_trains_every_value():
    planned = make(sweeps=["process.eta=0.3,0.60", "windows.stride=1,2"])
    assert [str(run.directory) for run in planned.runs] == [
        "DIR/standard/windows.stride=1/seed_0",
        "DIR/standard/windows.stride=2/seed_0",
        *(
            f"DIR/dynamical/process.eta={eta},windows.stride={stride}/seed_0"
            for eta in (0.3, 0.6)
            for stride in (1, 2)
        ),
    ]
    assert all(run.trains and run.reported for run in planned.runs)
    assert [run.raw.process.eta for run in planned.runs[2:]] == [0.3, 0.3, 0.6, 0.6]
    assert planned.runs[4].swept == {"process.eta": 0.6, "windows.stride": 1}
    assert planned.runs[4].name == "dynamical, eta 0.6, stride 1, seed 0"


def test_a_sweep_that_keeps_weights_trains_once_and_evaluates_every_value():
    (base,) = make(methods="dynamical").runs
    runs = make(methods="dynamical,regression", sweeps=["process.eta=0.3,0.6", "sampler.steps=5,10"]).runs
    for eta, three in ((0.3, runs[:3]), (0.6, runs[3:6])):
        assert [run.trains for run in three] == [True, False, False]
        assert [run.reported for run in three] == [False, True, True]
        assert {str(run.directory) for run in three} == {f"DIR/dynamical/process.eta={eta}/seed_0"}
        assert [run.raw.sampler.steps for run in three] == [base.raw.sampler.steps, 5, 10]
        assert {run.raw.process.eta for run in three} == {eta}
    (regression,) = runs[6:]
    assert regression.trains and regression.reported and regression.raw.sampler.steps == 1


def test_a_run_is_trained_with_the_same_config_whatever_is_swept_at_evaluation():
    swept = make(methods="dynamical", sweeps=["sampler.steps=5"]).runs[0]
    (plain,) = make(methods="dynamical").runs
    assert swept.raw.to_dict() == plain.raw.to_dict() and swept.directory == plain.directory


def test_commands_repeat_their_runs():
    """Read back as `dydiff_jax.main` does, a command gives the config of its run."""
    runs = make(sweeps=["process.eta=0.3", "sampler.steps=5"], changes=["evaluation.members=3"]).runs
    for run in runs:
        head, argument, workdir, *rest = re.sub(r"^python -m dydiff_jax\.main ", "", run.command).split(" ")
        changes = [flag for flag in (argument, workdir, *rest) if flag.startswith("--config.")]
        again = compare.read(head.removeprefix("--config="), changes)
        assert again.to_dict() == run.raw.to_dict()
        assert f"--workdir={run.directory}" in run.command
        assert ("--mode=eval" in run.command) == (not run.trains)


@pytest.mark.parametrize(
    "key, value", [("windows.flip", False), ("data.rayleigh", 1e6), ("codec.name", "speed")]
)
def test_a_swept_value_has_the_type_of_its_key(key, value):
    (run,) = make(methods="standard", sweeps=[f"{key}={value}"]).runs
    assert run.swept == {key: value} and type(run.swept[key]) is type(value)


WRONG = {
    "method": (dict(methods="standard,roling"), r"--methods.*'roling' \(did you mean 'rolling'\?\)"),
    "no method": (dict(methods=""), "--methods: expected values"),
    "empty method": (dict(methods="standard,"), "--methods: expected values"),
    "method twice": (dict(methods="standard,standard"), "--methods: expected every value once"),
    "method in the config": (dict(argument="dynamical,size=tiny"), "methods are given with --methods"),
    "seed": (dict(seeds="0,one"), "--seeds: expected integers of 0 or more.*'one'"),
    "negative seed": (dict(seeds="-1"), "--seeds: expected integers of 0 or more"),
    "fractional seed": (dict(seeds="0.5"), "--seeds: expected integers of 0 or more"),
    "seed twice": (dict(seeds="0,1,0"), "--seeds: expected every value once, found '0'"),
    "seed twice, written in two ways": (dict(seeds="0,00"), "--seeds: expected every value once"),
    "key": (dict(changes=["process.etta=0.5"]), r"process.etta: no method.*did you mean 'process.eta'"),
    "key of no method compared": (dict(methods="standard", changes=["process.eta=0.5"]), "no method of standard"),
    "section": (dict(changes=["proces.eta=0.5"]), "no method of standard, dynamical takes this key"),
    "type": (dict(changes=["sampler.steps=many"]), "standard, seed 0: .*invalid literal for int.*'many'"),
    "value": (dict(changes=["process.eta=0.99"]), "dynamical, seed 0: config.process.*at most 0.98"),
    "choice": (dict(changes=["sampler.method=ddimm"]), "standard, seed 0: .*did you mean 'ddim'"),
    "override twice": (dict(changes=["train.steps=5", "train.steps=6"]), "expected train.steps once"),
    "sweep": (dict(sweeps=["process.etta=0.1,0.5"]), "--sweep=process.etta: no method.*did you mean"),
    "sweep without values": (dict(sweeps=["process.eta"]), "--sweep: expected SECTION.KEY=value"),
    "sweep with an empty value": (dict(sweeps=["process.eta=0.1,"]), "--sweep=process.eta: expected values"),
    "sweep of a wrong type": (dict(sweeps=["sampler.steps=5,1.5"]), r"invalid literal for int.*1.5"),
    "sweep of a wrong value": (dict(sweeps=["process.eta=0.1,2.0"]), "dynamical, eta 2.0, seed 0: config.process"),
    "sweep twice": (dict(sweeps=["process.eta=0.1", "process.eta=0.2"]), "expected process.eta once"),
    "sweep value twice": (dict(sweeps=["process.eta=0.5,0.50"]), "expected every run once"),
    "sweep of a section": (dict(sweeps=["process=1"]), "--sweep=process: no method"),
    "sweep of a sequence": (dict(sweeps=["model.channels=48,96"]), "one value, found a sequence"),
    "swept and set": (dict(sweeps=["process.eta=0.5"], changes=["process.eta=0.4"]), "expected one of them"),
    "seed as override": (dict(changes=["seed=3"]), "--config.seed: expected --seeds"),
    "seed as sweep": (dict(sweeps=["seed=3,4"]), "--sweep=seed: expected --seeds"),
    "method as override": (dict(changes=["method=standard"]), "--config.method: expected --methods"),
    "config argument": (dict(argument="size=huge"), "expected a size among"),
    "budget that rolling cannot divide": (
        dict(methods="standard,rolling", changes=["sampler.steps=7"]),
        "rolling, seed 0: config",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_anything_runs(name):
    arguments, message = WRONG[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make(**arguments)


def test_a_config_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="configs/turbulense.py is not there"):
        schedule.Request.parse("configs/turbulense.py:size=tiny", "standard", "0", (), (), "DIR")
