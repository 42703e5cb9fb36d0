"""Build: a config -> checked options -> the objects that a run is made of."""

import collections
import dataclasses
import pathlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_collections

from dydiff_jax.codecs import CODECS, CodecOptions
from dydiff_jax.config import (
    ConfigError,
    check_keys,
    check_sections,
    choose,
    convert,
    named,
    plain,
    split_name,
    strict,
    within,
)
from dydiff_jax.data.batches import LoaderOptions
from dydiff_jax.data.card import DataCard
from dydiff_jax.data.sources import SOURCES, Source
from dydiff_jax.data.splits import DatasetOptions
from dydiff_jax.distributed.mesh import MeshOptions
from dydiff_jax.evaluation import plots, scores
from dydiff_jax.evaluation.evaluate import EvaluationOptions
from dydiff_jax.evaluation.scores import ScoreOptions, check_samples
from dydiff_jax.models import MODELS
from dydiff_jax.models.conditions import Conditioner
from dydiff_jax.models.network import NetworkOptions
from dydiff_jax.system import (
    EmaOptions,
    OptimizerOptions,
    Parts,
    Recipe,
    Stage,
    System,
    SystemOptions,
    TrainOptions,
    Window,
)
from dydiff_jax.systems import SYSTEMS
from dydiff_jax.training.stages import numbered


@dataclass(frozen=True)
class ConditionOptions:
    """What the network sees beside x.

    Attributes:
      copy_path: the last context frame and the last difference as channels of every frame.
    """

    copy_path: bool


@dataclass(frozen=True)
class Config:
    """Everything a run is built from; each field is one section of the config, checked.

    Attributes:
      seed: initial parameters, batches and noise follow from it.
      initial: work directory of a run whose EMA weights training begins with, or None.
      stages: {training stage: (what it has different, work directory of a finished run that holds it or None)}.
      plain: the config as nested dictionaries, as config.json holds it.
    """

    seed: int
    initial: str | None
    data: Source
    window: Window
    dataset: DatasetOptions
    loader: LoaderOptions
    codec: CodecOptions
    system: SystemOptions
    networks: Mapping[str, NetworkOptions]
    conditions: ConditionOptions
    stages: Mapping[str, tuple[Recipe, str | None]]
    mesh: MeshOptions
    optimizer: OptimizerOptions
    ema: EmaOptions
    train: TrainOptions
    evaluation: EvaluationOptions
    scores: ScoreOptions
    plain: Mapping[str, Any]

    @property
    def method(self) -> str:
        """Name of the system."""
        return self.plain["system"]["name"]

    @property
    def size(self) -> str:
        """The sizes of the networks, for reports."""
        sizes = (str(section["size"]) for section in self.plain["networks"].values())
        return ", ".join(dict.fromkeys(sizes))

    @property
    def horizon(self) -> int:
        """Forecast frames of an evaluation."""
        return self.window.num_forecast if self.evaluation.horizon is None else self.evaluation.horizon

    @property
    def recipe(self) -> Recipe:
        """Of every stage that the config does not set apart."""
        return Recipe(self.train, self.optimizer, self.ema, self.seed)


#: Sections that are one dataclass each.
SIMPLE = ("loader", "conditions", "mesh", "optimizer", "ema", "train", "evaluation", "scores")


def load(config: ml_collections.ConfigDict) -> Config:
    """Check a config and build the dataclasses of its sections, before any data is touched.

    Raises:
      ConfigError: an unknown key, method or name (with the closest match), a wrong type or value, or sections that do
        not fit together.
    """
    return from_plain(plain(config))


def from_plain(raw: Mapping[str, Any]) -> Config:
    """`load` of nested dictionaries, as config.json holds them."""
    check_sections(raw, [f.name for f in dataclasses.fields(Config) if f.name != "plain"], "config")
    hints = typing.get_type_hints(Config)
    window = _window(raw["window"])
    name, section = split_name(raw["system"], SYSTEMS, "config.system")
    system = choose(SYSTEMS, name, "config.system.name").options.read(section, "config.system", window)
    built: dict[str, Any] = {
        "seed": convert(raw["seed"], int, "config.seed"),
        "initial": convert(raw["initial"], hints["initial"], "config.initial"),
        "window": window,
        "data": named(SOURCES, raw["data"], "config.data"),
        "dataset": strict(DatasetOptions, raw["dataset"], "config.dataset", **window._asdict()),
        "codec": named(CODECS, raw["codec"], "config.codec"),
        "system": system,
        "networks": _networks(raw["networks"], system.roles),
    }
    built |= {key: strict(hints[key], raw[key], f"config.{key}") for key in SIMPLE}
    recipe = Recipe(built["train"], built["optimizer"], built["ema"], built["seed"])
    built["stages"] = {
        stage: _stage(section, recipe, raw, f"config.stages.{stage}")
        for stage, section in raw["stages"].items()
    }
    config = Config(**built, plain=raw)
    _check_together(config)
    return config


def _window(section: Mapping[str, Any]) -> Window:
    check_sections(section, Window._fields, "config.window")
    window = Window(*(convert(section[key], int, f"config.window.{key}") for key in Window._fields))
    for key, least in zip(Window._fields, (0, 1), strict=True):
        if getattr(window, key) < least:
            raise ConfigError(
                f"config.window.{key}: expected at least {least} frames, found {getattr(window, key)}"
            )
    return window


def _networks(section: Mapping[str, Any], roles: tuple[str, ...]) -> dict[str, NetworkOptions]:
    """The networks by role: the options of a size, and over them what the config sets."""
    check_sections(section, roles, "config.networks")
    found = {}
    for role in roles:
        path = f"config.networks.{role}"
        name, rest = split_name(section[role], MODELS, path)
        model = choose(MODELS, name, f"{path}.name")
        size = choose(model.sizes, rest.pop("size", None), f"{path}.size")
        chosen = {key: value for key, value in rest.items() if value is not None}
        check_keys(rest, [f.name for f in dataclasses.fields(model.options)], path)
        found[role] = strict(model.options, {**size, **chosen}, path)
    return found


def _stage(
    section: Mapping[str, Any], recipe: Recipe, raw: Mapping[str, Any], path: str
) -> tuple[Recipe, str | None]:
    """What a stage has different from ``train``, ``optimizer`` and ``ema``, and where it may be found."""
    check_keys(section, ("train", "optimizer", "ema", "source"), path)
    kinds = {"train": TrainOptions, "optimizer": OptimizerOptions, "ema": EmaOptions}
    changed = {
        key: strict(kind, {**raw[key], **section[key]}, f"{path}.{key}")
        for key, kind in kinds.items()
        if key in section
    }
    return dataclasses.replace(recipe, **changed), convert(
        section.get("source"), str | None, f"{path}.source"
    )


def _check_together(config: Config) -> None:
    """Refuse sections that are valid one by one and do not fit together, before any data is touched."""
    side = config.dataset.crop
    if side is not None:
        for network in config.networks.values():
            within("config.dataset.crop", lambda network=network: network.check((side, side, 1)))
    within("config.scores", lambda: check_samples(config.scores, config.evaluation.windows))
    if config.conditions.copy_path and not config.window.num_context:
        raise ConfigError("config.conditions.copy_path: there is no context frame to copy; expected False")
    for recipe in (config.recipe, *(recipe for recipe, _ in config.stages.values())):
        if recipe.optimizer.warmup_steps >= recipe.train.steps:
            raise ConfigError(
                f"config.optimizer.warmup_steps: expected fewer than the {recipe.train.steps} steps of config.train, "
                f"found {recipe.optimizer.warmup_steps}"
            )


def spec_card(config: Config) -> DataCard:
    """What a run knows of its data before they are opened; statistics stand for those that will be measured."""
    spec = config.data.spec()
    if config.dataset.crop is not None:
        side = config.dataset.crop
        spec = spec._replace(frame_shape=(side, side, spec.frame_shape[-1]))
    some = () if config.codec.statistics is None else (1.0,) * len(spec.fields)
    return DataCard(spec, some, some)


@dataclass(frozen=True)
class Run:
    """A system with the stages that it is trained in, those of its codec among them.

    Attributes:
      config: the options it was built from.
      card: what it knows of its data.
      system: how it trains and forecasts.
      stages: in order, numbered, each with its source where the config names one.
    """

    config: Config
    card: DataCard
    system: System
    stages: tuple[Stage, ...]


def build(config: Config, card: DataCard) -> Run:
    """The run of a config on data that a card describes.

    Raises:
      ValueError: a network cannot take the frames, a listed score or figure has no meaning for them, or the config
        sets a stage that there is not.
    """
    spec = card.spec
    codec = config.codec.build(spec, card.mean, card.std)
    frame = codec.frame_shape(spec.frame_shape)
    for options in config.networks.values():
        options.check(frame)
    made = within(
        "config.scores",
        lambda: scores.chosen(config.scores, spec.kind, spec.frame_shape, config.evaluation.members),
    )
    within(
        "config.evaluation",
        lambda: plots.chosen(config.evaluation.figures, spec.kind, spec.frame_shape, list(made)),
    )
    recipes = {name: recipe for name, (recipe, _) in config.stages.items()}
    parts = Parts(
        window=config.window,
        data=spec,
        codec=codec,
        conditioner=Conditioner(config.window.num_forecast, config.conditions.copy_path),
        networks={role: options.build(frame[-1]) for role, options in config.networks.items()},
        recipes=collections.defaultdict(lambda: config.recipe, recipes),
    )
    system = config.system.build(parts)
    stages = [*codec.stages, *system.stages()]
    check_keys(config.stages, [stage.name for stage in stages], "config.stages")
    sources = {name: source for name, (_, source) in config.stages.items() if source is not None}
    placed = [
        dataclasses.replace(stage, source=pathlib.Path(sources[stage.name]))
        if stage.name in sources
        else stage
        for stage in stages
    ]
    return Run(config, card, system, tuple(numbered(placed)))
