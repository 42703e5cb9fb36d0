"""Simulates trajectories in a process of its own: `python -m ... OPTIONS INDEX...`; a dot for each frame."""

import json
import sys

from dydiff_jax.data.rayleigh_benard import RayleighBenard
from dydiff_jax.data.simulators.ensemble import simulate


def main(arguments: list[str]) -> None:
    """Simulate one trajectory after the other, and write each to the cache as it is done."""
    options = RayleighBenard(**json.loads(arguments[0]))
    for index in arguments[1:]:
        simulate(options, [int(index)], lambda frames: print("." * frames, flush=True))


if __name__ == "__main__":
    main(sys.argv[1:])
