"""ConfigDict -> strict frozen dataclasses, once. After this module no dictionary of options is seen.

A section of the config is exactly the keyword arguments of one constructor, so nothing needs keeping in sync.
Sections that choose among constructors name theirs in the key ``name``.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import ml_collections

from dydiff_jax.data.pipeline import WindowOptions
from dydiff_jax.data.read_ahead import InputOptions
from dydiff_jax.diffusion.process import Process
from dydiff_jax.diffusion.rollout import Rollout
from dydiff_jax.diffusion.sampler import Sampler
from dydiff_jax.distributed.mesh import MeshOptions
from dydiff_jax.evaluation.scores import ScoreOptions, check_samples
from dydiff_jax.models.uvit import UViTOptions
from dydiff_jax.system import EmaOptions, OptimizerOptions
from dydiff_jax.training.task import TrainOptions

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that cannot be built, with the full path of the key at fault."""


def closest(found: str, expected: Iterable[str]) -> str:
    """`` (did you mean 'eta'?)`` where a name is near, else the empty string."""
    near = difflib.get_close_matches(found, list(expected), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def choose(table: Mapping[str, T], name: Any, path: str) -> T:
    """table[name], or an error that lists the names and the closest match."""
    if name not in table:
        raise ConfigError(
            f"{path}: expected one of {sorted(table)}, found {name!r}{closest(str(name), table)}"
        )
    return table[name]


def _convert(value: Any, kind: Any, path: str) -> Any:
    """The value as a plain type, ``Literal``, tuple or optional; integers serve as floats, nothing else is cast."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return choose({option: option for option in typing.get_args(kind)}, value, path)
    if origin in (types.UnionType, typing.Union):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else _convert(value, inner[0], path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: expected a sequence, found {value!r}")
        return tuple(_convert(v, typing.get_args(kind)[0], f"{path}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: expected {kind.__name__}, found {value!r}")
    return value


def strict(constructor: Callable[..., T], section: Mapping[str, Any], path: str, **given: Any) -> T:
    """Builds ``constructor(**section, **given)`` after checking every key and type against its dataclass fields.

    Args:
      constructor: a dataclass.
      section: its keyword arguments from the config.
      path: where the section stands, for messages.
      **given: arguments that other sections decide; those that the constructor does not take are left out.

    Raises:
      ConfigError: an unknown key (with the closest match), a missing one, a wrong type or value.
    """
    hints = typing.get_type_hints(constructor)
    fields = {f.name: f for f in dataclasses.fields(constructor) if f.init and f.name not in given}
    given = {f.name: given[f.name] for f in dataclasses.fields(constructor) if f.name in given}
    for key in section:
        if key not in fields:
            raise ConfigError(
                f"{path}.{key}: unknown key{closest(key, fields)}; {path} takes {sorted(fields)}"
            )
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    for name, field in fields.items():
        if name not in section and (field.default, field.default_factory) == missing:
            raise ConfigError(f"{path}.{name}: missing; expected {hints[name]}")
    arguments = {key: _convert(value, hints[key], f"{path}.{key}") for key, value in section.items()}
    try:
        return constructor(**arguments, **given)
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from error


def named(table: Mapping[str, Callable[..., T]], section: Mapping[str, Any], path: str, **given: Any) -> T:
    """``strict`` with the constructor that the section's key ``name`` chooses from a table."""
    if "name" not in section:
        raise ConfigError(f"{path}.name: missing; expected one of {sorted(table)}")
    rest = {key: value for key, value in section.items() if key != "name"}
    return strict(choose(table, section["name"], f"{path}.name"), rest, path, **given)


@dataclass(frozen=True)
class Window:
    """The frames of a window.

    Attributes:
      num_context: p, frames that are known.
      num_forecast: k, frames that are forecast.
    """

    num_context: int
    num_forecast: int

    def __post_init__(self):
        if self.num_context < 0:
            raise ValueError(f"num_context: expected 0 or more frames, found {self.num_context}")
        if self.num_forecast < 1:
            raise ValueError(f"num_forecast: expected at least 1 frame, found {self.num_forecast}")

    @property
    def num_frames(self) -> int:
        """p + k."""
        return self.num_context + self.num_forecast


@dataclass(frozen=True)
class ConditionOptions:
    """What the network sees beside z.

    Attributes:
      copy_path: the last context frame and the last difference as channels of every frame.
    """

    copy_path: bool


@dataclass(frozen=True)
class CodecOptions:
    """Physical frames <-> model space.

    Attributes:
      name: "standardize" by the mean and standard deviation of each channel over the training frames; "speed" by
        the means and one deviation, that of the length of the vector of channels, as TF-Net does; "identity" for
        data that come standardised.
    """

    name: Literal["standardize", "speed", "identity"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How a trained model is scored.

    Attributes:
      members: ensemble size e.
      windows: number of test windows, evenly spaced over the test split.
      horizon: forecast frames of a test window, any number; None for those of a window.
      chunk: rows (members times windows) in flight at once.
      seed: of the ensemble and of the baselines.
      saved: windows whose forecasts are kept in forecasts.npz and drawn.
      regression: work directory of a regression run to score beside this one, or None.
    """

    members: int
    windows: int
    horizon: int | None
    chunk: int
    seed: int
    saved: int
    regression: str | None

    def __post_init__(self):
        for name in ("members", "windows", "chunk", "saved"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon: expected at least 1 frame, found {self.horizon}")


@dataclass(frozen=True)
class Config:
    """Everything a run is built from; each field is one section of the config, checked.

    Attributes:
      seed: initial parameters, batches and noise follow from it.
      method: name of the process.
      size: name of the network's size, for reports.
      data: options of the source of trajectories.
    """

    seed: int
    method: str
    size: str
    data: Any
    window: Window
    windows: WindowOptions
    input: InputOptions
    codec: CodecOptions
    process: Process
    conditions: ConditionOptions
    model: UViTOptions
    mesh: MeshOptions
    optimizer: OptimizerOptions
    ema: EmaOptions
    train: TrainOptions
    sampler: Sampler
    evaluation: EvaluationOptions
    scores: ScoreOptions

    @property
    def horizon(self) -> int:
        """Forecast frames of an evaluation."""
        return self.window.num_forecast if self.evaluation.horizon is None else self.evaluation.horizon


class Tables(NamedTuple):
    """The constructors that a config chooses by name: methods, noise schedules and data sources."""

    methods: Mapping[str, Callable[..., Process]]
    schedules: Mapping[str, Callable[..., Any]]
    sources: Mapping[str, Callable[..., Any]]


#: Sections of a config beside those of `Config`: the schedule is handed to the process.
_INPUTS = ("schedule",)


def parse(config: ml_collections.ConfigDict, tables: Tables) -> Config:
    """Checks a config and builds the dataclasses of its sections, before any data is touched.

    Raises:
      ConfigError: an unknown key, method or name (with the closest match), a wrong type or value.
    """
    raw = plain(config)
    check_sections(raw, [field.name for field in dataclasses.fields(Config)] + list(_INPUTS))
    window = strict(Window, raw["window"], "config.window")
    schedule = named(tables.schedules, raw["schedule"], "config.schedule")
    method = choose(tables.methods, raw["method"], "config.method")
    frames = dataclasses.asdict(window)
    built = {
        "window": window,
        "data": named(tables.sources, raw["data"], "config.data"),
        "process": strict(method, raw["process"], "config.process", schedule=schedule, **frames),
        "windows": strict(WindowOptions, raw["windows"], "config.windows", **frames),
    }
    hints = typing.get_type_hints(Config)
    for name in raw.keys() - built.keys() - set(_INPUTS):
        kind, path = hints[name], f"config.{name}"
        section = dataclasses.is_dataclass(kind)
        built[name] = strict(kind, raw[name], path) if section else _convert(raw[name], kind, path)
    config = Config(**built)
    check_together(config)
    return config


def check_together(config: Config) -> None:
    """Refuses sections that are sound one by one and do not fit together, before any data is touched."""
    if config.windows.crop is not None:
        side = config.windows.crop
        _at("config.windows.crop", lambda: config.model.check_grid(side, side))
        if config.scores.pool_window > side:
            raise ConfigError(
                f"config.scores.pool_window: expected at most the {side} grid points of a crop, "
                f"found {config.scores.pool_window}"
            )
    _at("config.sampler", lambda: Rollout(config.process, config.sampler))
    _at("config.scores", lambda: check_samples(config.scores, config.evaluation.windows))
    if config.conditions.copy_path and not config.window.num_context:
        raise ConfigError("config.conditions.copy_path: there is no context frame to copy; expected False")
    if config.optimizer.warmup_steps >= config.train.steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps: expected fewer than the {config.train.steps} steps of config.train, "
            f"found {config.optimizer.warmup_steps}"
        )


def _at(path: str, check: Callable[[], Any]) -> None:
    try:
        check()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as nested dictionaries: what config.json holds."""
    return config.to_dict()


def check_sections(config: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Refuses a config whose top-level keys are not exactly the expected ones."""
    expected = list(expected)
    for key in config:
        if key not in expected:
            raise ConfigError(
                f"config.{key}: unknown key{closest(key, expected)}; config takes {sorted(expected)}"
            )
    for key in expected:
        if key not in config:
            raise ConfigError(f"config.{key}: missing")
