"""The runs of a comparison, from what the command line asks for; every config is checked before the first starts.

Without a sweep every run is trained and scored on the test split. With one, every swept point is scored on the
validation split, and the point that is chosen there on the test split.
"""

import itertools
import pathlib
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dydiff_jax import build
from dydiff_jax.comparison.settings import flatten
from dydiff_jax.config import choose, closest, plain
from dydiff_jax.evaluation import evaluate
from dydiff_jax.runs import directory as run_directory
from dydiff_jax.runs import scoring
from dydiff_jax.systems import SYSTEMS

#: The score that every comparison needs: swept values are chosen by it, and baselines compared in it.
DECIDES = "crps"

#: Keys that flags of their own set.
FLAGS = {"seed": "--seeds", "system.name": "--methods"}

#: Reads the config of ``FILE:argument`` with overrides ``--config.key=value``, as the command line of a run does.
Reader = Callable[[str, Sequence[str]], Any]


@dataclass(frozen=True)
class Request:
    """What is to be compared.

    Attributes:
      config: FILE[:key=value,...], without a method.
      methods: names of systems, checked once the config file is imported, which may register its own.
      seeds: of training.
      sweeps: {SECTION.KEY: values, as text}.
      overrides: {SECTION.KEY: value, as text}.
      workdir: directory of the comparison.
    """

    config: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    sweeps: Mapping[str, tuple[str, ...]]
    overrides: Mapping[str, str]
    workdir: pathlib.Path

    @classmethod
    def parse(
        cls,
        config: str,
        methods: str,
        seeds: str,
        sweeps: Sequence[str],
        overrides: Sequence[str],
        workdir: str,
    ) -> "Request":
        """The request of a command line: lists are separated by commas, sweeps and overrides are ``KEY=text``.

        Raises:
          FileNotFoundError: there is no such config file.
          ValueError: a flag is empty, repeats itself, or is no such list.
        """
        file, _, argument = config.partition(":")
        if not pathlib.Path(file).is_file():
            raise FileNotFoundError(f"--config: {file} is not there; expected a file of configs/")
        if argument and "=" not in argument.split(",")[0]:
            raise ValueError(
                f"--config: expected FILE or FILE:key=value,..., found the method {argument.split(',')[0]!r}; "
                "methods are given with --methods"
            )
        request = cls(
            config=config,
            methods=_unique("--methods", methods),
            seeds=tuple(_seed(text) for text in _unique("--seeds", seeds)),
            sweeps={
                key: _unique(f"--sweep={key}", text) for key, text in _assignments("--sweep", sweeps).items()
            },
            overrides=_assignments("--config", overrides),
            workdir=pathlib.Path(workdir),
        )
        _unique("--seeds", ",".join(map(str, request.seeds)))  # 0 and 00 are one seed
        for key in request.overrides.keys() & request.sweeps.keys():
            raise ValueError(f"--config.{key} and --sweep={key}: expected one of them, found both")
        return request


@dataclass(frozen=True)
class Run:
    """One call of ``commands.train`` or ``commands.evaluate_run``.

    Attributes:
      method: name of the system.
      swept: {key: value} of the sweeps that this run has.
      seed: of training.
      directory: of the trained run.
      raw: its config.
      line: the shell words that repeat it, but for mode and split.
      trains: whether it is trained, or evaluated with other options than it was trained with.
      reported: False where only evaluations with swept options are compared.
      split: on which it is scored, "test" or "valid".
    """

    method: str
    swept: Mapping[str, Any]
    seed: int
    directory: pathlib.Path
    raw: Any
    line: tuple[str, ...]
    trains: bool
    reported: bool
    split: str = "test"

    @property
    def label(self) -> str:
        """Method and what was swept: runs of one label differ in their seed only."""
        return label(self.method, self.swept)

    @property
    def name(self) -> str:
        """Method, what was swept, and the seed."""
        return f"{self.label}, seed {self.seed}"

    @property
    def command(self) -> str:
        """The shell line that repeats it."""
        mode = [] if self.trains else ["--mode=eval"]
        split = [] if self.split == "test" else [f"--split={self.split}"]
        return shlex.join([*self.line, *mode, *split])

    @property
    def task(self) -> str:
        """What is done, in words."""
        split = {"test": "test", "valid": "validation"}[self.split]
        return f"{'train and evaluate' if self.trains else 'evaluate'} on the {split} split"

    def evaluation(self) -> pathlib.Path | None:
        """The folder of its evaluation, or None while that is not finished; no data are opened."""
        config = build.load(self.raw)
        run = build.build(config, build.spec_card(config))
        header = scoring.describe(run, run.stages[-1].recipe.train.steps, self.split)
        folder = evaluate.evaluation_folder(self.directory, header)
        return folder if evaluate.is_done(folder) else None


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison.

    Attributes:
      runs: in order, every method of the first seed before the second seed; a swept method has several for each seed.
      partial: {key: methods that have it} of the overrides and sweeps that some methods do not have.
    """

    runs: tuple[Run, ...]
    partial: Mapping[str, tuple[str, ...]]

    @property
    def searched(self) -> tuple[Run, ...]:
        """Every point of the swept methods, scored on the validation split."""
        swept = self._swept()
        return tuple(replace(run, split="valid") for run in self.runs if run.method in swept)

    @property
    def num_tested(self) -> int:
        """Runs that are scored on the test split: one for each method and seed."""
        return len({(run.method, run.seed) for run in self.runs})

    def tested(self, chosen: Collection[str]) -> tuple[Run, ...]:
        """The runs that are scored on the test split: methods that are not swept, and chosen points.

        Args:
          chosen: labels of points.
        """
        swept = self._swept()
        return tuple(
            run for run in self.runs if run.method not in swept or (run.reported and run.label in chosen)
        )

    def _swept(self) -> set[str]:
        return {run.method for run in self.runs if run.swept}


def label(method: str, swept: Mapping[str, Any]) -> str:
    """``dynamical, eta 0.3``: the last part of a key names it."""
    return ", ".join([method, *(f"{key.rpartition('.')[2]} {value}" for key, value in swept.items())])


def make(request: Request, read: Reader) -> Plan:
    """Every run of a request, with its config read and checked.

    Raises:
      ValueError: an unknown method, a key that no method has, or a config that cannot be built, with the run at fault.
    """
    file, _, rest = request.config.partition(":")
    arguments = {m: f"{file}:{m}" + (f",{rest}" if rest else "") for m in request.methods}
    configs = {method: _config(method, argument, read) for method, argument in arguments.items()}
    defaults = {method: flatten(config) for method, config in configs.items()}
    owners = {}
    for flag, keys in (("--config.", request.overrides), ("--sweep=", request.sweeps)):
        owners |= {key: _owners(flag, key, defaults) for key in keys}
    runs = []
    for seed, (method, argument) in itertools.product(request.seeds, arguments.items()):
        keys = [key for key, methods in owners.items() if method in methods]
        fixed = [f"--config.{key}={request.overrides[key]}" for key in keys if key in request.overrides]
        sweeps = {key: request.sweeps[key] for key in keys if key in request.sweeps}
        maker = _Maker(method, argument, seed, (*fixed, f"--config.seed={seed}"), request.workdir, read)
        free = {key for key in sweeps if _is_free(key, configs[method])}
        runs += maker.runs(sweeps, free)
    names = [run.name for run in runs if run.reported]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--sweep: expected every run once, found {name} {names.count(name)} times")
    partial = {key: methods for key, methods in owners.items() if len(methods) < len(request.methods)}
    return Plan(tuple(runs), partial)


def _config(method: str, argument: str, read: Reader) -> dict[str, Any]:
    """The config of a method before overrides. Reading it imports the config file, which may register systems."""
    try:
        config = plain(read(argument, ()))
    except ValueError:
        choose(SYSTEMS, method, "--methods")  # the likelier cause
        raise
    choose(SYSTEMS, method, "--methods")
    if config["system"]["name"] != method:
        raise ValueError(
            f"--config={argument}: expected a config of the system {method!r}, found {config['system']['name']!r}"
        )
    return config


@dataclass(frozen=True)
class _Maker:
    """Makes the runs of one method and one seed."""

    method: str
    argument: str
    seed: int
    flags: tuple[str, ...]
    workdir: pathlib.Path
    read: Reader

    def runs(self, sweeps: Mapping[str, Sequence[str]], free: Collection[str]) -> list[Run]:
        """Train each product of the swept keys that change weights; evaluate each product of those that are free."""
        products = _product({key: values for key, values in sweeps.items() if key in free})
        made = []
        for trained in _product({key: values for key, values in sweeps.items() if key not in free}):
            made.append(self.run(trained, {}, reported=not free))
            if free:
                made += [self.run(trained, evaluated, reported=True) for evaluated in products]
        return made

    def run(self, trained: Mapping[str, str], evaluated: Mapping[str, str], reported: bool) -> Run:
        """The run with these swept values, given as text."""
        swept = {**trained, **evaluated}
        flags = (*self.flags, *(f"--config.{key}={value}" for key, value in swept.items()))
        name = f"{label(self.method, swept)}, seed {self.seed}"
        try:
            raw = self.read(self.argument, flags)
            found = flatten(plain(raw))
            for key in swept:
                if isinstance(found[key], list | tuple):
                    raise ValueError(f"--sweep={key}: expected a key that holds one value, found a sequence")
            names = build.load(raw).scores.names
            if names is not None and DECIDES not in names:
                raise ValueError(f"config.scores.names: expected {DECIDES} among them, found {names}")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        folder = ",".join(f"{key}={found[key]}" for key in trained)
        directory = self.workdir / self.method / folder / f"seed_{self.seed}"
        line = (
            "python",
            "-m",
            "dydiff_jax.main",
            f"--config={self.argument}",
            f"--workdir={directory}",
            *flags,
        )
        return Run(
            method=self.method,
            swept={key: found[key] for key in swept},
            seed=self.seed,
            directory=directory,
            raw=raw,
            line=line,
            trains=not evaluated,
            reported=reported,
        )


def _owners(flag: str, key: str, defaults: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The methods whose config has a key."""
    if key in FLAGS:
        raise ValueError(f"{flag}{key}: expected {FLAGS[key]}, which sets it for every run")
    owners = tuple(method for method, found in defaults.items() if key in found)
    if not owners:
        known = sorted(set(itertools.chain.from_iterable(defaults.values())))
        raise ValueError(
            f"{flag}{key}: no method of {', '.join(defaults)} takes this key{closest(key, known)}"
        )
    return owners


def _is_free(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a trained run can be evaluated with another value: another start or source makes another run."""
    moved = run_directory.moved_keys(config)
    free = [section for section in run_directory.free_keys(config) if section not in moved]
    return any(key == section or key.startswith(f"{section}.") for section in free)


def _product(sweeps: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of the values; one empty one where nothing is swept."""
    return [dict(zip(sweeps, values, strict=True)) for values in itertools.product(*sweeps.values())]


def _unique(flag: str, text: str) -> tuple[str, ...]:
    """The parts of a list separated by commas."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise ValueError(f"{flag}: expected values separated by commas, found {text!r}")
    for part in parts:
        if parts.count(part) > 1:
            raise ValueError(f"{flag}: expected every value once, found {part!r} {parts.count(part)} times")
    return parts


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"--seeds: expected integers of 0 or more, separated by commas, found {text!r}")
    return int(text)


def _assignments(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """{key: text} of ``key=text``."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise ValueError(f"{flag}: expected SECTION.KEY=value, found {text!r}")
        if key in found:
            raise ValueError(f"{flag}: expected {key} once, found it twice")
        found[key] = value
    return found
