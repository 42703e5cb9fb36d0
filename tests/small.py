"""The shipped turbulence experiment on a grid and for a time that a test can afford."""

import ml_collections

from configs import turbulence

#: 16 x 56 frames of convection at Ra = 1e7 from 64 x 224 cells, cut to 16 x 16.
OVERRIDES = {
    "data.rayleigh": 1e7,
    "data.rows": 64,
    "data.columns": 224,
    "data.out_rows": 16,
    "data.interval": 0.5,
    "data.spin_up": 30.0,
    "data.duration": 60.0,
    "data.trajectories": 2,
    "dataset.crop": 16,
    "evaluation.members": 8,
    "evaluation.windows": 12,
    "system.sampler.nfe": 6,
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
