"""Lorenz 96 (Lorenz 1996, "Predictability: a problem partly solved"): 40 variables, 1 -> 10 frames, scored over 60.

    python -m dydiff_jax.main --config=configs/lorenz96.py:dyffusion --workdir=runs/lorenz96
    python -m dydiff_jax.main --config=configs/lorenz96.py:dyffusion,size=tiny --workdir=runs/tiny

The argument is ``method[,size=...][,schedule=...][,data=...]``: any system (dynamical is the default); size tiny or S,
a periodic CNN. A frame is 1 x 40 x 1, and 0.05 units of time, six hours of Lorenz's atmosphere, come between two. With
``data=deterministic`` (the default) nothing is uncertain but what a network cannot tell, and errors double in 0.4;
with ``data=stochastic`` white noise drives the variables too. ``size=tiny`` is the experiment in miniature for a CPU.
"""

import ml_collections

from configs import base

#: The network.
NETWORK = "cnn"


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config for ``--config=configs/lorenz96.py:argument``."""
    method, keys = base.parse_argument(argument, NETWORK, data=tuple(DATA))
    config = base.get_config(method, keys["size"], keys["schedule"], NETWORK)
    config.data = dict(DATA[keys["data"]])
    config.dataset.update(split="trajectory", crop=None, random_crop=False)
    for network in config.networks.values():
        network.padding = "periodic"
    config.train.update(steps=300_000, batch_size=64)
    config.evaluation.update(members=50, windows=256, horizon=60)
    config.evaluation.figures = ("error_over_lead", "rank_histogram")  # a frame is one row, and no picture
    config.scores.leads = (1, 2, 5, 10, 20, 40, 60)
    if method == "dyffusion":
        config.system.forecaster.conditioning = "data"
        config.system.sampler.refine = True
    if "nfe" in config.system.get("sampler", {}):
        config.system.sampler.nfe = 50  # a multiple of the frames, for rolling
    if keys["size"] == "tiny":
        base.miniature(config)
        config.train.update(steps=3000, batch_size=32)
        config.evaluation.update(windows=48, horizon=30)
        if "nfe" in config.system.get("sampler", {}):
            config.system.sampler.nfe = 20
    config.window.update(num_context=1, num_forecast=10)
    return config


DETERMINISTIC = dict(
    name="lorenz96",
    variables=40,
    forcing=8.0,  # F
    interval=0.05,  # model time between frames
    dt=0.01,  # model time of a step of the solver
    spin_up=20.0,  # model time before the first frame
    duration=500.0,  # model time recorded
    trajectories=20,
    noise=0.0,  # sigma of the noise sigma dW, over the root of model time
    seed=0,
)

#: Options of data.lorenz96.
DATA = {
    "deterministic": DETERMINISTIC,
    "stochastic": DETERMINISTIC | dict(noise=1.0),
}
