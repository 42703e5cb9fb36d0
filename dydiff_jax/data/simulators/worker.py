"""Simulates trajectories in a process of its own: `python -m ... NAME OPTIONS INDEX...`; a dot for each frame."""

import json
import sys

from dydiff_jax.data.simulators.ensemble import simulate
from dydiff_jax.data.sources import SOURCES


def main(arguments: list[str]) -> None:
    """Simulate one trajectory after the other, and write each to the cache as it is done.

    Args:
      arguments: the registered name of the data set, its options as JSON, and the numbers of trajectories.
    """
    name, text, *indices = arguments
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(text).items()}
    options = SOURCES[name](**given)
    for index in indices:
        simulate(options, [int(index)], lambda frames: print("." * frames, flush=True))


if __name__ == "__main__":
    main(sys.argv[1:])
