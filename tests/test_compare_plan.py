"""The runs that a comparison plans: which train, which only evaluate, with which configs; and what it refuses."""

import pathlib
import re

import pytest

from dydiff_jax import compare
from dydiff_jax.comparison import schedule

ROOT = pathlib.Path(__file__).parents[1]
ETA = "system.process.eta"
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
    assert all(run.raw.seed == run.seed and run.raw.system.name == run.method for run in runs)


def test_methods_differ_in_their_process_alone():
    methods = "standard,dynamical,rolling,rolling_dynamical"
    configs = [run.raw.to_dict() for run in make(methods=methods, changes=["system.sampler.nfe=12"]).runs]
    alike = [{**c, "system": {k: c["system"][k] for k in ("schedule", "sampler")}} for c in configs]
    assert alike == [alike[0]] * 4
    assert len({str(config["system"]["process"]) for config in configs}) == 4


def test_an_override_reaches_the_methods_that_have_its_key_and_is_said_to():
    planned = make(
        methods="standard,dynamical,regression",
        changes=["system.process.eta=0.25", "system.sampler.nfe=12", "train.steps=700"],
    )
    standard, dynamical, regression = (run.raw for run in planned.runs)
    assert dynamical.system.process.eta == 0.25 and "eta" not in standard.system.process
    assert standard.system.sampler.nfe == dynamical.system.sampler.nfe == 12
    assert regression.system.to_dict() == {"name": "regression"}
    assert {raw.train.steps for raw in (standard, dynamical, regression)} == {700}
    assert planned.partial == {
        "system.process.eta": ("dynamical",), "system.sampler.nfe": ("standard", "dynamical")
    }  # fmt: skip


def test_a_sweep_that_changes_weights_trains_every_value():
    planned = make(sweeps=["system.process.eta=0.3,0.60", "dataset.stride=1,2"])
    assert [str(run.directory) for run in planned.runs] == [
        "DIR/standard/dataset.stride=1/seed_0",
        "DIR/standard/dataset.stride=2/seed_0",
        *(
            f"DIR/dynamical/system.process.eta={eta},dataset.stride={stride}/seed_0"
            for eta in (0.3, 0.6)
            for stride in (1, 2)
        ),
    ]
    assert all(run.trains and run.reported for run in planned.runs)
    assert [run.raw.system.process.eta for run in planned.runs[2:]] == [0.3, 0.3, 0.6, 0.6]
    assert planned.runs[4].swept == {"system.process.eta": 0.6, "dataset.stride": 1}
    assert planned.runs[4].name == "dynamical, eta 0.6, stride 1, seed 0"


def test_a_sweep_that_keeps_weights_trains_once_and_evaluates_every_value():
    (base,) = make(methods="dynamical").runs
    sweeps = ["system.process.eta=0.3,0.6", "system.sampler.nfe=5,10"]
    runs = make(methods="dynamical,regression", sweeps=sweeps).runs
    for eta, three in ((0.3, runs[:3]), (0.6, runs[3:6])):
        assert [run.trains for run in three] == [True, False, False]
        assert [run.reported for run in three] == [False, True, True]
        assert {str(run.directory) for run in three} == {f"DIR/dynamical/system.process.eta={eta}/seed_0"}
        assert [run.raw.system.sampler.nfe for run in three] == [base.raw.system.sampler.nfe, 5, 10]
        assert {run.raw.system.process.eta for run in three} == {eta}
    (regression,) = runs[6:]
    assert regression.trains and regression.reported and "sampler" not in regression.raw.system


def test_swept_points_are_scored_on_the_validation_split_and_the_chosen_ones_on_the_test_split():
    """Three methods: one swept by training, one by evaluation too, one that has neither key."""
    sweeps = ["system.process.eta=0.3,0.6", "system.sampler.nfe=5,10"]
    planned = make(methods="standard,dynamical,regression", seeds="0,1", sweeps=sweeps)
    searched = planned.searched
    assert {run.split for run in searched} == {"valid"}
    assert {run.method for run in searched} == {"standard", "dynamical"}
    assert len(searched) == 2 * (3 + 2 * 3)
    assert "--split=valid" in searched[0].command and "--mode=eval" not in searched[0].command
    assert searched[1].command.endswith("--mode=eval --split=valid")
    tested = planned.tested({"standard, nfe 10", "dynamical, eta 0.3, nfe 5"})
    assert [(run.seed, run.label, run.split) for run in tested] == [
        (seed, label, "test")
        for seed in (0, 1)
        for label in ("standard, nfe 10", "dynamical, eta 0.3, nfe 5", "regression")
    ]
    assert len(tested) == planned.num_tested
    assert not any("--split" in run.command for run in tested)


def test_without_a_sweep_every_run_is_scored_on_the_test_split_alone():
    planned = make()
    assert planned.searched == () and planned.tested(()) == planned.runs
    assert {run.split for run in planned.runs} == {"test"}


def test_another_start_is_another_training_and_no_evaluation():
    """The place of a run that training begins with may change at evaluation; its weights do not."""
    runs = make(methods="standard", sweeps=["initial=a,b"]).runs
    assert [run.trains for run in runs] == [True, True] and len({run.directory for run in runs}) == 2


def test_a_run_is_trained_with_the_same_config_whatever_is_swept_at_evaluation():
    swept = make(methods="dynamical", sweeps=["system.sampler.nfe=5"]).runs[0]
    (plain,) = make(methods="dynamical").runs
    assert swept.raw.to_dict() == plain.raw.to_dict() and swept.directory == plain.directory


def test_commands_repeat_their_runs():
    """Read back as `dydiff_jax.main` does, a command gives the config of its run."""
    sweeps = ["system.process.eta=0.3", "system.sampler.nfe=5"]
    runs = make(sweeps=sweeps, changes=["evaluation.members=3"]).runs
    for run in runs:
        head, argument, workdir, *rest = re.sub(r"^python -m dydiff_jax\.main ", "", run.command).split(" ")
        changes = [flag for flag in (argument, workdir, *rest) if flag.startswith("--config.")]
        again = compare.read(head.removeprefix("--config="), changes)
        assert again.to_dict() == run.raw.to_dict()
        assert f"--workdir={run.directory}" in run.command
        assert ("--mode=eval" in run.command) == (not run.trains)


@pytest.mark.parametrize(
    "key, value", [("dataset.flip", False), ("data.rayleigh", 1e6), ("codec.name", "speed")]
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
    "key": (dict(changes=["system.process.etta=0.5"]), f"etta: no method.*did you mean '{ETA}'"),
    "key of no method compared": (dict(methods="standard", changes=[f"{ETA}=0.5"]), "no method of standard"),
    "section": (dict(changes=["sistem.process.eta=0.5"]), "no method of standard, dynamical takes this key"),
    "type": (dict(changes=["system.sampler.nfe=many"]), "standard, seed 0: .*invalid literal for int.*'many'"),
    "value": (dict(changes=[f"{ETA}=0.99"]), "dynamical, seed 0: config.system.process.*at most 0.98"),
    "choice": (dict(changes=["system.sampler.name=ddimm"]), "standard, seed 0: .*did you mean 'ddim'"),
    "override twice": (dict(changes=["train.steps=5", "train.steps=6"]), "expected train.steps once"),
    "sweep": (dict(sweeps=["system.process.etta=0.1,0.5"]), "--sweep=system.process.etta: no method.*did you mean"),
    "sweep without values": (dict(sweeps=["system.process.eta"]), "--sweep: expected SECTION.KEY=value"),
    "sweep with an empty value": (dict(sweeps=[f"{ETA}=0.1,"]), f"--sweep={ETA}: expected values"),
    "sweep of a wrong type": (dict(sweeps=["system.sampler.nfe=5,1.5"]), r"invalid literal for int.*1.5"),
    "sweep of a wrong value": (dict(sweeps=[f"{ETA}=0.1,2.0"]), "dynamical, eta 2.0, seed 0: config.system"),
    "sweep twice": (dict(sweeps=[f"{ETA}=0.1", f"{ETA}=0.2"]), "expected system.process.eta once"),
    "sweep value twice": (dict(sweeps=[f"{ETA}=0.5,0.50"]), "expected every run once"),
    "sweep of a section": (dict(sweeps=["system.process=1"]), "--sweep=system.process: no method"),
    "sweep of a sequence": (dict(sweeps=["networks.denoiser.channels=48,96"]), "one value, found a sequence"),
    "swept and set": (dict(sweeps=[f"{ETA}=0.5"], changes=[f"{ETA}=0.4"]), "expected one of them"),
    "seed as override": (dict(changes=["seed=3"]), "--config.seed: expected --seeds"),
    "seed as sweep": (dict(sweeps=["seed=3,4"]), "--sweep=seed: expected --seeds"),
    "method as override": (dict(changes=["system.name=standard"]), "--config.system.name: expected --methods"),
    "config argument": (dict(argument="size=huge"), "expected a size among"),
    "budget that rolling cannot divide": (
        dict(methods="standard,rolling", changes=["system.sampler.nfe=7"]),
        "rolling, seed 0: config",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_anything_runs(name):
    arguments, message = WRONG[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make(**arguments)


def test_a_config_file_may_register_the_systems_that_it_names(tmp_path):
    """Methods are known once the file is imported, and not before."""
    config = f"{ROOT / 'tests/dummy.py'}"
    asked = schedule.Request.parse(config, "dummy,corrected", "0", (), ("data.path=D",), str(tmp_path))
    planned = schedule.make(asked, compare.read)
    assert [run.raw.system.name for run in planned.runs] == ["dummy", "corrected"]
    asked = schedule.Request.parse(config, "dummi", "0", (), (), str(tmp_path))
    with pytest.raises(ValueError, match=r"--methods.*'dummi' \(did you mean 'dummy'\?\)"):
        schedule.make(asked, compare.read)


@pytest.mark.parametrize(
    "method, line, message",
    [
        ("standard", "config.system.name = 'rolling'", "config of the system 'standard', found 'rolling'"),
        (
            "standard",
            "config.scores.names = ('rmse',)",
            "config.scores.names: expected crps among them, found",
        ),
    ],
)
def test_a_config_file_that_cannot_be_compared_is_refused(method, line, message, tmp_path):
    file = tmp_path / "fixed.py"
    file.write_text(
        "from configs import turbulence\n\n\ndef get_config(argument=''):\n"
        f"    config = turbulence.get_config(argument)\n    {line}\n    return config\n"
    )
    asked = schedule.Request.parse(str(file), method, "0", (), (), str(tmp_path))
    with pytest.raises(ValueError, match=message):
        schedule.make(asked, compare.read)


def test_a_config_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="configs/turbulense.py is not there"):
        schedule.Request.parse("configs/turbulense.py:size=tiny", "standard", "0", (), (), "DIR")
