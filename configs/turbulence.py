"""Turbulence: two-dimensional Rayleigh-Benard convection (Wang et al. 2020, arXiv 1911.08655), 64 x 64, 4 -> 11 frames.

    python -m dydiff_jax.main --config=configs/turbulence.py --workdir=runs/turbulence
    python -m dydiff_jax.main --config=configs/turbulence.py:dynamical,size=tiny --workdir=runs/tiny

The argument is ``method[,size=...][,schedule=...][,data=...]``: dynamical (the default), standard, rolling,
rolling_dynamical, regression, dyffusion, dropout or perturbation; size tiny, S, B, L or XL; schedule cosine or
linear_beta. Without files the flow is simulated. With ``data=rbc_file`` it is TF-Net's rbc_data.pt, with
``data=dydiff_release`` the arrays of Dynamical Diffusion (Guo et al. 2025, arXiv 2503.00951); give their place with
``--config.data.path=``. ``size=tiny`` is the whole experiment in miniature for a CPU: 32 x 32, 4 -> 6 frames.
"""

import ml_collections

from configs import base


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config for ``--config=configs/turbulence.py:argument``."""
    method, keys = base.parse_argument(argument, data=tuple(DATA))
    config = base.get_config(method, keys["size"], keys["schedule"])
    config.data = dict(DATA[keys["data"]])
    if keys["data"] == "rbc_file":
        config.codec.name = "speed"
    if keys["data"] == "dydiff_release":
        config.dataset.split = "given"
        config.codec.name = "identity"  # the release trains on its values, divided by 4, as they are
    if keys["size"] == "tiny":
        base.miniature(config)
        if keys["data"] == "simulated":
            config.data.update(rows=128, columns=448, out_rows=32, downsample="mean", trajectories=4)
            config.dataset.update(crop=32, flip=True)
    return config


#: Options of a data source: data.rayleigh_benard, data.rbc_file and data.dydiff_release.
DATA = {
    "simulated": dict(
        name="rayleigh_benard",
        rayleigh=2.5e8,  # buoyancy over diffusion
        prandtl=0.71,  # viscosity over thermal diffusivity
        rows=256,  # cells from plate to plate
        columns=1792,  # cells along the plates
        out_rows=64,  # rows of a frame
        downsample="stride",  # every fourth cell; "mean" averages
        interval=0.25,  # free-fall times between frames
        spin_up=40.0,  # free-fall times before the first frame
        duration=100.0,  # free-fall times recorded
        trajectories=16,
        seed=0,
    ),
    "rbc_file": dict(name="rbc_file", path=""),
    "dydiff_release": dict(name="dydiff_release", path=""),
}
