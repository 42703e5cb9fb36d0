"""Stochastic advection, a sea surface temperature of known law: DYffusion's SST experiment without a download.

    python -m dydiff_jax.main --config=configs/hasselmann.py:dyffusion --workdir=runs/hasselmann
    python -m dydiff_jax.compare --config=configs/hasselmann.py:size=tiny --workdir=runs/hasselmann_tiny \\
        --methods=standard,dynamical,rolling,dyffusion,dropout,perturbation

The argument is ``method[,size=...][,schedule=...][,setting=...]``: any system (dynamical is the default); size tiny, S,
B, L or XL, of which the first three levels are taken, as 60 is halved twice. Windows are those of the paper (Ruehling
Cachay et al. 2023, arXiv 2306.01984): 60 x 60 points, 1 -> 7 days, 11 trajectories, split in time. dyffusion has its
settings there: 25 steps within the first day, 32 in all, x_0 mixed with noise as a condition, no refinement, and the
dropout of its second convolutions. ``standard,setting=ddpm``, with 5 evaluations, and ``setting=mcvd`` are its rivals
(`base.SETTINGS`). Its network is another U-Net, of 9.5 million parameters.

The fair CRPS of a perfect forecast is s(lead) / sqrt(pi), s^2 the `variance` of the data source. ``size=tiny`` is the
experiment in miniature for a CPU: 16 x 16 points and a small CNN.
"""

import ml_collections

from configs import base
from dydiff_jax.models import MODELS

#: Levels of the U-ViT.
LEVELS = 3
#: Dropout of the paper's networks, that behind the second convolution of a block, by method and role.
RATES = {"dyffusion": dict(interpolator=0.6, forecaster=0.3), "dropout": dict(forecaster=0.6)}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config for ``--config=configs/hasselmann.py:argument``."""
    method, keys = base.parse_argument(argument, setting=tuple(base.SETTINGS))
    size, tiny = keys["size"], keys["size"] == "tiny"
    config = base.get_config(method, size, keys["schedule"], "cnn" if tiny else base.NETWORK)
    config.data = dict(DATA)
    config.dataset.update(crop=None, random_crop=False)
    config.codec.name = "identity"  # of mean 0 and variance 1
    config.window.update(num_context=1, num_forecast=7)
    config.evaluation.update(members=50, windows=256)
    if method == "dyffusion":
        config.system.leads.extra = 25
        config.system.forecaster.conditioning = "data_noise"
    if tiny:
        _miniature(config)
    else:
        config.optimizer.update(learning_rate=3e-4, warmup_steps=0, weight_decay=1e-5, b2=0.99)
        config.train.update(steps=29_000, batch_size=256)  # 50 epochs of the paper's 148,577 windows
        for role, network in config.networks.items():
            of_size = MODELS[base.NETWORK].sizes[size]
            network.update({key: of_size[key][:LEVELS] for key in ("channels", "blocks", "kinds", "dropout")})
            if role in RATES.get(method, {}):
                network.dropout = (RATES[method][role],) * LEVELS
        if method == "dyffusion":
            config.stages.forecaster = dict(optimizer=dict(learning_rate=1e-4))
    if "nfe" in config.system.get("sampler", {}):
        config.system.sampler.nfe = 35  # a multiple of the frames, for rolling
    base.change_setting(config, keys["setting"])
    if keys["setting"] == "ddpm":
        config.system.sampler.nfe = 5  # the paper's for this experiment
    return config


def _miniature(config: ml_collections.ConfigDict) -> None:
    base.miniature(config)
    config.window.num_forecast = 7
    config.data.grid = (16, 16)
    for role, network in config.networks.items():
        network.padding = "periodic"
        if role not in base.RANDOM.get(config.system.name, ()):
            network.dropout = 0.0
    config.train.update(steps=1000, batch_size=16)
    config.evaluation.update(windows=64, chunk=256)


#: Options of data.hasselmann.
DATA = dict(
    name="hasselmann",
    grid=(60, 60),
    velocity=(0.3, 0.1),  # along x and y, grid spacings a day
    damping=0.05,  # over days
    diffusion=0.1,  # squared grid spacings a day
    slope=2.0,  # the noise has the spectrum |k|^-slope
    interval=1.0,  # days between frames
    duration=1460.0,  # days
    trajectories=11,
    seed=0,
)
