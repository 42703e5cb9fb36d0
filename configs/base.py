"""Every default once, with its meaning and unit. A data set's config starts from here and says what differs.

A section is exactly the keyword arguments of one constructor, named in its comment; the checks are made there.
"""

import difflib

import ml_collections

from dydiff_jax.models.uvit import SIZES

#: Options of a method beside those that all methods share.
METHODS = {
    "standard": dict(),
    "dynamical": dict(
        eta=0.5,  # mixing strength in gamma = eta alpha_bar + 1 - eta; 0 is standard diffusion
        mix_data=True,  # False: the ablation without mixed latents
        mix_noise=True,  # False: the ablation with independent noise
        allow_large_eta=False,  # eta above 0.98 makes the unmixing ill-conditioned
    ),
    "rolling": dict(
        clock="init",  # how a rollout begins; "init_rescaled" leaves no frame waiting at t = 1 and needs p_lin > 0
        p_lin=0.1,  # share of training windows that slide
    ),
    "regression": dict(),
}
METHODS["rolling_dynamical"] = METHODS["dynamical"] | METHODS["rolling"]


#: Options of a noise schedule.
SCHEDULES = {
    "cosine": dict(
        offset=0.0,  # 0.008 is the released DyDiff schedule
        shift=0.0,  # added to the log SNR; 2 log(64/d) for frames of d pixels a side
    ),
    "linear_beta": dict(
        beta_min=1e-4,  # variance added by the first step
        beta_max=0.1,  # variance added by the last step
        steps=100,
    ),
}


def parse_argument(argument: str, **keys: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """``method[,key=value...]`` of ``--config=FILE:method,key=value``.

    Args:
      argument: what stands behind the colon; empty for the defaults.
      **keys: the keys that the config knows beside "size" and "schedule", each with its values, the default first.

    Returns:
      The method, "dynamical" by default, and a value for every key.

    Raises:
      ValueError: an unknown method, key or value, with the closest match.
    """
    sizes = ("S", *(size for size in SIZES if size != "S"))
    keys = {"size": sizes, "schedule": tuple(SCHEDULES), **keys}
    values = {key: options[0] for key, options in keys.items()}
    first, *rest = argument.split(",") if argument else ["dynamical"]
    if "=" in first:
        first, rest = "dynamical", [first, *rest]
    _expect("method", first, METHODS)
    for part in rest:
        key, _, value = part.partition("=")
        _expect("key", key, keys)
        _expect(key, value, keys[key])
        values[key] = value
    return first, values


def _expect(what: str, found: str, expected) -> None:
    if found not in expected:
        near = difflib.get_close_matches(found, list(expected), n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"config argument: expected a {what} among {sorted(expected)}, found {found!r}{hint}"
        )


def get_config(method: str, size: str, schedule: str) -> ml_collections.ConfigDict:
    """The defaults for one method, one size of the network and one noise schedule."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # initial parameters, batches and noise follow from it
    config.method = method
    config.size = size  # of the network; a name for reports, `model` holds what it stands for

    config.window = dict(  # config.Window
        num_context=4,  # p, frames that are known
        num_forecast=11,  # k, frames that are forecast
    )
    config.windows = dict(  # data.pipeline.WindowOptions
        stride=1,  # frames between the starts of two windows
        split="time",  # "time", "trajectory", "given" (the files' own), or "published", which leaks
        fractions=(0.7, 0.1, 0.2),  # of the data for training, validation and test
        crop=64,  # side of the square crops in grid points, None for the whole field
        random_crop=True,  # training crops at any place, wrapping around where x is periodic
        flip=False,  # mirror half of the training windows in x
    )
    config.input = dict(  # data.stream.InputOptions; the batches are the same whatever is chosen
        threads=4,  # that read, each a batch at a time; 16 or more, and as many batches, for object storage
        workers=0,  # processes that read, each with these threads; 0 reads in the training process
        prefetch=8,  # batches ready or being read, in each worker where there are some; 0 reads when asked
    )
    config.codec = dict(name="standardize")  # config.CodecOptions; "speed" scales as TF-Net, or "identity"
    config.schedule = dict(name=schedule, **SCHEDULES[schedule])  # diffusion.schedules
    config.process = dict(  # diffusion.process.GaussianProcess and the method's own options
        prediction="v",  # "eps", "x0" or "v", in mixed coordinates
        context="clean",  # "clean" context frames are given; "noised" as the released DyDiff code has it
        **METHODS[method],
    )
    if method == "regression":
        del config.process.prediction
        del config.process.context
    config.conditions = dict(copy_path=False)  # config.ConditionOptions
    config.model = dict(  # models.uvit.UViTOptions
        attention="einsum",  # "xla" or "cudnn" (with bfloat16) on a GPU
        dtype="float32",  # of activations and products; "bfloat16" on accelerators
        remat="none",  # what the backward pass keeps: everything, products ("dots") or block inputs ("full")
        **SIZES[size],
    )

    config.mesh = dict(data=-1, fsdp=1, tensor=1)  # training.sharding.MeshOptions
    config.optimizer = dict(  # training.optim.OptimizerOptions
        learning_rate=1e-4,
        warmup_steps=1000,
        decay="constant",  # or "cosine", to 0 at the last step
        weight_decay=0.01,
        clip_norm=1.0,  # global norm of the gradient
    )
    config.ema = dict(decay=0.9999)  # training.optim.EmaOptions, with warm-up
    config.train = dict(  # training.task.TrainOptions
        steps=1_000_000,
        batch_size=16,  # windows in a step, over all devices
        log_every=100,  # steps
        checkpoint_every=5_000,  # steps
        keep_last=2,
        max_bad_steps=0,  # updates in a row that may be skipped for a loss that is not finite
        stuck_after=1800.0,  # seconds without progress after which the process exits, to be started again; or None
    )

    config.sampler = dict(  # diffusion.sampler.Sampler
        method="ddim",
        steps=55,  # evaluations that every frame receives; rolling takes steps / num_forecast = 5 a shift
        grid="uniform",  # or "released", of the DyDiff code
        churn=1.0,  # strength of the fresh noise of "ancestral", in [0, 1]
    )
    if method == "regression":
        config.sampler.steps = 1
    config.evaluation = dict(  # config.EvaluationOptions
        members=8,
        windows=64,  # of the test part, evenly spaced
        horizon=ml_collections.config_dict.placeholder(int),  # forecast frames, those of a window if None
        chunk=32,  # rows, members times windows, in flight at once
        seed=0,
        saved=4,  # windows kept in forecasts.npz and drawn
        regression=ml_collections.config_dict.placeholder(
            str
        ),  # work directory of a regression run to score beside
    )
    config.scores = dict(  # report.ScoreOptions
        pool_window=8,  # grid points
        pool_stride=2,  # grid points
        csi_threshold=0.0,  # unit of the data
        csi_window=5,  # grid points
        csi_stride=2,  # grid points
    )
    return config


def miniature(config: ml_collections.ConfigDict) -> None:
    """A whole experiment in minutes on two CPU cores: 4 -> 6 frames, a short run and a copy path."""
    config.window.num_forecast = 6
    config.conditions.copy_path = True
    config.optimizer.update(learning_rate=1.5e-3, warmup_steps=50, decay="cosine")
    config.ema.decay = 0.995
    config.train.update(steps=1500, batch_size=4, log_every=50, checkpoint_every=250)
    if config.method != "regression":
        config.sampler.update(method="ancestral", steps=24)
    config.evaluation.update(members=8, windows=48, chunk=32)
