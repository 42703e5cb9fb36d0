"""The runs of a comparison, from what the command line asks for; every config is checked before the first starts."""

import itertools
import pathlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dydiff_jax import build
from dydiff_jax.comparison.settings import flatten
from dydiff_jax.config import choose, closest, plain
from dydiff_jax.runs.directory import EVALUATION_SECTIONS

#: Sections that a method sets itself: a regression has no noise to remove and is evaluated once.
FIXED = {"regression": ("sampler",)}

#: Keys that flags of their own set.
FLAGS = {"seed": "--seeds", "method": "--methods"}

#: Reads the config of ``FILE:argument`` with overrides ``--config.key=value``, as the command line of a run does.
Reader = Callable[[str, Sequence[str]], Any]


@dataclass(frozen=True)
class Request:
    """What is to be compared.

    Attributes:
      config: FILE[:key=value,...], without a method.
      methods: names in build.METHODS.
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
        for method in request.methods:
            choose(build.METHODS, method, "--methods")
        for key in request.overrides.keys() & request.sweeps.keys():
            raise ValueError(f"--config.{key} and --sweep={key}: expected one of them, found both")
        return request


@dataclass(frozen=True)
class Run:
    """One call of ``runs.train`` or ``runs.evaluate_run``.

    Attributes:
      method: name in build.METHODS.
      swept: {key: value} of the sweeps that this run has.
      seed: of training.
      directory: of the trained run.
      raw: its config.
      command: the shell line that repeats it.
      trains: whether it is trained, or evaluated with other options than it was trained with.
      reported: False where only evaluations with swept options are compared.
    """

    method: str
    swept: Mapping[str, Any]
    seed: int
    directory: pathlib.Path
    raw: Any
    command: str
    trains: bool
    reported: bool

    @property
    def name(self) -> str:
        """Method, what was swept, and the seed."""
        return ", ".join([label(self.method, self.swept), f"seed {self.seed}"])

    @property
    def task(self) -> str:
        """What is done, in words."""
        return "train and evaluate" if self.trains else "evaluate"


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison.

    Attributes:
      runs: in order, every method of the first seed before the second seed.
      partial: {key: methods that have it} of the overrides and sweeps that some methods do not have.
    """

    runs: tuple[Run, ...]
    partial: Mapping[str, tuple[str, ...]]


def label(method: str, swept: Mapping[str, Any]) -> str:
    """``dynamical, eta 0.3``: the last part of a key names it."""
    return ", ".join([method, *(f"{key.rpartition('.')[2]} {value}" for key, value in swept.items())])


def make(request: Request, read: Reader) -> Plan:
    """Every run of a request, with its config read and checked.

    Raises:
      ValueError: a key that no method has, or a config that cannot be built, with the run at fault.
    """
    file, _, rest = request.config.partition(":")
    arguments = {m: f"{file}:{m}" + (f",{rest}" if rest else "") for m in request.methods}
    defaults = {method: flatten(plain(read(argument, ()))) for method, argument in arguments.items()}
    owners = {}
    for flag, keys in (("--config.", request.overrides), ("--sweep=", request.sweeps)):
        owners |= {key: _owners(flag, key, defaults) for key in keys}
    runs = []
    for seed, (method, argument) in itertools.product(request.seeds, arguments.items()):
        keys = [key for key, methods in owners.items() if method in methods]
        fixed = [f"--config.{key}={request.overrides[key]}" for key in keys if key in request.overrides]
        sweeps = {key: request.sweeps[key] for key in keys if key in request.sweeps}
        maker = _Maker(method, argument, seed, (*fixed, f"--config.seed={seed}"), request.workdir, read)
        runs += maker.runs(sweeps)
    names = [run.name for run in runs if run.reported]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--sweep: expected every run once, found {name} {names.count(name)} times")
    partial = {key: methods for key, methods in owners.items() if len(methods) < len(request.methods)}
    return Plan(tuple(runs), partial)


@dataclass(frozen=True)
class _Maker:
    """Makes the runs of one method and one seed."""

    method: str
    argument: str
    seed: int
    flags: tuple[str, ...]
    workdir: pathlib.Path
    read: Reader

    def runs(self, sweeps: Mapping[str, Sequence[str]]) -> list[Run]:
        """Trains each product of the swept keys that change weights; evaluates each product of the others."""
        free = {key: values for key, values in sweeps.items() if key.split(".")[0] in EVALUATION_SECTIONS}
        others = {key: values for key, values in sweeps.items() if key not in free}
        made = []
        for trained in _product(others):
            made.append(self.run(trained, {}, reported=not free))
            if free:
                made += [self.run(trained, evaluated, reported=True) for evaluated in _product(free)]
        return made

    def run(self, trained: Mapping[str, str], evaluated: Mapping[str, str], reported: bool) -> Run:
        """The run with these swept values, given as text."""
        swept = {**trained, **evaluated}
        flags = (*self.flags, *(f"--config.{key}={value}" for key, value in swept.items()))
        name = f"{label(self.method, swept)}, seed {self.seed}"
        try:
            raw = self.read(self.argument, flags)
            build.load(raw)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found = flatten(plain(raw))
        folder = ",".join(f"{key}={found[key]}" for key in trained)
        directory = self.workdir / self.method / folder / f"seed_{self.seed}"
        mode = ["--mode=eval"] if evaluated else []
        command = ["python", "-m", "dydiff_jax.main", f"--config={self.argument}", f"--workdir={directory}"]
        return Run(
            method=self.method,
            swept={key: found[key] for key in swept},
            seed=self.seed,
            directory=directory,
            raw=raw,
            command=shlex.join([*command, *flags, *mode]),
            trains=not evaluated,
            reported=reported,
        )


def _owners(flag: str, key: str, defaults: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The methods that have a key and leave it to the user."""
    if key in FLAGS:
        raise ValueError(f"{flag}{key}: expected {FLAGS[key]}, which sets it for every run")
    owners = tuple(
        method
        for method, found in defaults.items()
        if key in found and key.split(".")[0] not in FIXED.get(method, ())
    )
    if not owners:
        known = sorted(set(itertools.chain.from_iterable(defaults.values())))
        raise ValueError(
            f"{flag}{key}: no method of {', '.join(defaults)} takes this key{closest(key, known)}"
        )
    if flag == "--sweep=" and isinstance(defaults[owners[0]][key], list | tuple):
        raise ValueError(f"{flag}{key}: expected a key that holds one value, found a sequence")
    return owners


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
