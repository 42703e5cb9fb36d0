"""Every default once, with its meaning and unit. A data set's config starts from here and says what differs.

A section is exactly the keyword arguments of one constructor, named in its comment; the checks are made there.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from dydiff_jax.config import closest, defaults
from dydiff_jax.diffusion.schedules import SCHEDULES
from dydiff_jax.models import MODELS
from dydiff_jax.systems import SYSTEMS

#: The network of every role, unless a config chooses another.
NETWORK = "uvit"
#: Networks by whose dropout the members of an ensemble differ; the others have that of their size.
RANDOM = {"dyffusion": ("interpolator",), "dropout": ("forecaster",)}

#: The rivals of DYffusion (Ruehling Cachay et al. 2023, arXiv 2306.01984) as settings of the system "standard":
#: changes of ``config.system``, of which ``schedule`` is replaced. All h frames are denoised at once, given the last
#: known frame; the network estimates the noise; samples are those of DDPM. "ddpm" is Ho et al. (2020) with the cosine
#: schedule, "mcvd" Voleti et al. (2022, arXiv 2205.09853). The release trains with the absolute error of the noise at
#: discrete times; the system has no such option and takes the squared error, at any time.
SETTINGS: dict[str, dict] = {
    "none": {},
    "ddpm": dict(
        process=dict(prediction="eps"),
        schedule=dict(name="cosine", offset=0.008, shift=0.0),
        sampler=dict(name="ancestral", nfe=1000),
    ),
    "mcvd": dict(
        process=dict(prediction="eps"),
        schedule=dict(name="linear_beta", beta_min=1e-4, beta_max=0.02, steps=1000),
        sampler=dict(name="ancestral", nfe=1000),
    ),
}


def parse_argument(
    argument: str, model: str = NETWORK, **keys: tuple[str, ...]
) -> tuple[str, dict[str, str]]:
    """``method[,key=value...]`` of ``--config=FILE:method,key=value``.

    Args:
      argument: what stands behind the colon; empty for the defaults.
      model: the network, which has the sizes.
      **keys: the keys that the config knows beside "size" and "schedule", each with its values, the default first.

    Returns:
      The method, "dynamical" by default, and a value for every key.

    Raises:
      ValueError: an unknown method, key or value, with the closest match.
    """
    sizes = ("S", *(size for size in MODELS[model].sizes if size != "S"))
    keys = {"size": sizes, "schedule": tuple(SCHEDULES), **keys}
    values = {key: options[0] for key, options in keys.items()}
    first, *rest = argument.split(",") if argument else ["dynamical"]
    if "=" in first:
        first, rest = "dynamical", [first, *rest]
    _expect("method", first, SYSTEMS)
    for part in rest:
        key, _, value = part.partition("=")
        _expect("key", key, keys)
        _expect(key, value, keys[key])
        values[key] = value
    return first, values


def _expect(what: str, found: str, expected) -> None:
    if found not in expected:
        raise ValueError(
            f"config argument: expected a {what} among {sorted(expected)}, found {found!r}{closest(found, expected)}"
        )


def get_config(method: str, size: str, schedule: str, model: str = NETWORK) -> ml_collections.ConfigDict:
    """The defaults for one system, one size of its networks and one noise schedule, where it has one."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # initial parameters, batches and noise follow from it
    config.initial = placeholder(str)  # work directory of a run whose EMA weights training begins with

    config.window = dict(  # system.Window
        num_context=4,  # p, frames that are known
        num_forecast=11,  # k, frames that are forecast
    )
    config.dataset = dict(  # data.splits.DatasetOptions
        stride=1,  # frames between the starts of two windows
        split="time",  # "time", "trajectory", "given" (the files' own), or "published", which leaks
        fractions=(0.7, 0.1, 0.2),  # of the data for training, validation and test
        crop=64,  # side of the square crops in grid points, None for the whole field
        random_crop=True,  # training crops at any place, wrapping around where x is periodic
        flip=False,  # mirror half of the training windows in x
    )
    config.loader = dict(  # data.batches.LoaderOptions; the batches are the same whatever is chosen
        threads=4,  # that read, each a batch at a time; 16 or more, and as many batches, for object storage
        workers=0,  # processes that read, each with these threads; 0 reads in the training process
        prefetch=8,  # batches ready or being read, in each worker where there are some; 0 reads when asked
    )
    config.codec = dict(name="standardize")  # codecs; "speed" scales as TF-Net, or "identity"
    system = SYSTEMS[method].options
    config.system = dict(
        name=method, **system.defaults()
    )  # systems: process, schedule and sampler of a diffusion
    if "schedule" in config.system:
        del config.system.schedule
        config.system.schedule = dict(name=schedule, **defaults(SCHEDULES[schedule]))  # diffusion.schedules
    config.networks = {role: network(model, size) for role in system.roles}  # models, by role
    rates = MODELS[model].sizes[size]["dropout"]
    for role in RANDOM.get(method, ()):
        config.networks[role].dropout = tuple(0.1 for _ in rates) if isinstance(rates, tuple) else 0.1
    config.conditions = dict(copy_path=False)  # build.ConditionOptions
    config.stages = (
        dict()
    )  # {training stage: what it has different from train, optimizer and ema, and source=DIR}

    config.mesh = dict(data=-1, fsdp=1, tensor=1)  # distributed.mesh.MeshOptions
    config.optimizer = dict(  # system.OptimizerOptions
        learning_rate=1e-4,
        warmup_steps=1000,
        decay="constant",  # or "cosine", to 0 at the last step
        weight_decay=0.01,
        clip_norm=1.0,  # global norm of the gradient
    )
    config.ema = dict(decay=0.9999)  # system.EmaOptions, with warm-up
    config.train = dict(  # system.TrainOptions
        steps=1_000_000,
        batch_size=16,  # windows in a step, over all devices
        log_every=100,  # steps
        checkpoint_every=5_000,  # steps
        keep_last=2,
        keep_best=False,  # the checkpoint with the lowest validation score too
        validate_every=placeholder(int),  # steps between two scores of the validation split; None: none
        max_bad_steps=0,  # updates in a row that may be skipped for a loss that is not finite
        stuck_after=1800.0,  # seconds without progress after which the process exits, to be started again; or None
    )

    if "nfe" in config.system.get("sampler", {}):  # diffusion.sampler.Sampler
        config.system.sampler.nfe = (
            55  # evaluations that every frame receives; rolling takes nfe / num_forecast a shift
        )
    config.evaluation = dict(  # evaluation.evaluate.EvaluationOptions
        members=8,
        windows=64,  # of the test split, evenly spaced
        horizon=placeholder(int),  # forecast frames, those of a window if None
        chunk=32,  # rows, members times windows, in flight at once
        seed=0,
        saved=4,  # windows kept in forecasts.npz and drawn
        beside=(),  # work directories of finished runs on the same data to score beside
        figures=placeholder(
            tuple
        ),  # names of evaluation.plots.FIGURES; those of the kind of the data if None
        valid_windows=8,  # of the validation split, scored while training
        valid_members=4,
    )
    config.scores = dict(  # evaluation.scores.ScoreOptions
        names=placeholder(tuple),  # of evaluation.scores.SCORES; those of the kind of the data if None
        pool_window=8,  # grid points
        pool_stride=2,  # grid points
        csi_threshold=0.0,  # unit of the data
        csi_window=5,  # grid points
        csi_stride=2,  # grid points
        biased=False,  # add mse_mean, ssr_biased and ssr_biased_window, as DYffusion has them
    )
    return config


def network(name: str, size: str) -> dict:
    """``config.networks.ROLE``: a network by name and size, and what is set apart from the size."""
    model = MODELS[name]
    kinds = {key: type(value) for options in model.sizes.values() for key, value in options.items()}
    common = {key: value for key, value in defaults(model.options).items() if key not in kinds}
    of_size = {key: placeholder(kind) for key, kind in kinds.items()}  # None: what the size says
    return dict(name=name, size=size, **common, **of_size)


def change_setting(config: ml_collections.ConfigDict, setting: str) -> None:
    """Make the system "standard" one of `SETTINGS`.

    Raises:
      ValueError: another system has no such setting.
    """
    changes = SETTINGS[setting]
    if changes and config.system.name != "standard":
        raise ValueError(
            f"config argument: setting={setting} belongs to the method 'standard', found {config.system.name!r}"
        )
    if "schedule" in changes:
        del config.system.schedule
    config.system.update(changes)


def miniature(config: ml_collections.ConfigDict) -> None:
    """A whole experiment in minutes on two CPU cores: 4 -> 6 frames, a short run and a copy path."""
    config.window.num_forecast = 6
    config.conditions.copy_path = True
    config.optimizer.update(learning_rate=1.5e-3, warmup_steps=50, decay="cosine")
    config.ema.decay = 0.995
    config.train.update(steps=1500, batch_size=4, log_every=50, checkpoint_every=250)
    if "nfe" in config.system.get("sampler", {}):
        config.system.sampler.update(name="ancestral", nfe=24)
    config.evaluation.update(members=8, windows=48, chunk=32)
