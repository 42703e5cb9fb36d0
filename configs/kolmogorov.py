"""Kolmogorov flow: Rolling Diffusion (Ruhe et al. 2024, arXiv 2402.09470), 64 x 64, 2 -> 4 frames, scored over 48.

    python -m dydiff_jax.main --config=configs/kolmogorov.py:rolling --workdir=runs/kolmogorov
    python -m dydiff_jax.main --config=configs/kolmogorov.py:rolling,size=tiny --workdir=runs/tiny

The argument is ``method[,size=...][,schedule=...][,data=...]``: standard, dynamical (the default), rolling,
rolling_dynamical, regression, dyffusion, dropout or perturbation; size tiny, S, B (the paper's), L or XL; schedule
cosine or linear_beta. The flow is simulated on first use: ``data=quality`` on 128 x 128 cells, ``data=published`` on
256 x 256 as in the paper, ``data=smoke`` on 32 x 32. Of 300 units of time the first 75 are dropped, but for
``published``, which keeps all 200 frames. ``size=tiny`` is the whole experiment in miniature for a CPU, on
``data=smoke`` unless the argument says otherwise. The paper forecasts windows of 2, 4 and 8 frames:
``--config.window.num_forecast=8``.
"""

import ml_collections

from configs import base


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config for ``--config=configs/kolmogorov.py:argument``."""
    method, keys = base.parse_argument(argument, data=tuple(DATA))
    tiny = keys["size"] == "tiny"
    preset = "smoke" if tiny and "data=" not in argument else keys["data"]
    config = base.get_config(method, keys["size"], keys["schedule"])
    config.data = dict(name="kolmogorov", **DATA[preset])
    config.dataset.update(split="trajectory", crop=None, random_crop=False)
    if "nfe" in config.system.get("sampler", {}):
        config.system.sampler.nfe = (
            48  # evaluations that every frame receives, in windows of 2, 4 or 8 frames
        )
    config.evaluation.update(horizon=48, windows=256)
    config.scores.update(
        leads=(1, 2, 4, 8, 12, 24, 48),
        mse_scale=7.0,  # largest speed of a first state
        fsd_samples=256,
        flow=True,
    )
    if tiny:
        base.miniature(config)
        config.train.steps = 1000
        config.evaluation.update(members=4, windows=48, horizon=12)
        config.scores.fsd_samples = config.evaluation.windows
        if "nfe" in config.system.get("sampler", {}):
            config.system.sampler.nfe = 16
    config.window.update(num_context=2, num_forecast=4)
    return config


#: What all presets share: options of data.kolmogorov.
FLOW = dict(
    viscosity=(5e-4, 5e-3),  # bounds of the dynamic viscosity, drawn for each trajectory
    density=(0.5, 2.0),  # bounds of the density; it divides viscosity, force and drag
    max_speed=7.0,  # of the first state, and for the choice of the time step
    courant=0.5,  # time step x max_speed / size of a cell, at most
    interval=1.5,  # model time between frames, the paper's seconds
    spin_up=75.0,  # model time before the first frame
    duration=225.0,  # model time recorded
    seed=0,
)

DATA = {
    "quality": FLOW | dict(cells=128, out_cells=64, trajectories=256),
    "published": FLOW | dict(cells=256, out_cells=64, trajectories=256, spin_up=0.0, duration=300.0),
    "smoke": FLOW | dict(cells=32, out_cells=32, trajectories=64),
}
