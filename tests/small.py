"""The shipped turbulence experiment on a grid and for a time that a test can afford."""

import ml_collections

from configs import turbulence

#: 16 x 32 frames of convection at Ra = 1e6 from 32 x 64 cells, cut to 16 x 16.
OVERRIDES = {
    "data.rayleigh": 1e6,
    "data.rows": 32,
    "data.columns": 64,
    "data.out_rows": 16,
    "data.interval": 0.5,
    "data.spin_up": 20.0,
    "data.duration": 60.0,
    "data.trajectories": 2,
    "dataset.crop": 16,
    "evaluation.members": 8,
    "evaluation.windows": 12,
    "system.sampler.nfe": 6,
}
#: A network that compiles in a fifth of the time of size=tiny, as changes for `config` and `flags`.
NETWORK = {
    f"networks__denoiser__{name}": value
    for name, value in dict(channels=(16, 16), blocks=(1, 1), head_dim=8, embed_dim=16).items()
}


def config(argument: str, **changes) -> ml_collections.ConfigDict:
    """The config of ``turbulence.py:argument`` with `OVERRIDES` and then ``changes``, written section__key=value."""
    made = turbulence.get_config(argument)
    values = {
        name: value for name, value in OVERRIDES.items() if "sampler" not in name or "sampler" in made.system
    }
    made.update_from_flattened_dict(
        values | {name.replace("__", "."): value for name, value in changes.items()}
    )
    return made


def flags(**changes) -> list[str]:
    """The same changes as command line flags."""
    values = OVERRIDES | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config.{name}={value}" for name, value in values.items()]
