"""What a training step of each method costs beside a standard one, with the same network and batch.

    python -m benchmarks.methods --size=tiny --rounds=60

All steps are compiled first, then run in turn; the ratio to the standard step of the same round is taken, and the
median over the rounds is printed with the interquartile range. Ratios of neighbours survive a busy machine, single
timings do not.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from configs import turbulence
from dydiff_jax import build
from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import optim, state
from dydiff_jax.types import Batch

METHODS = ("standard", "dynamical", "rolling", "rolling_dynamical")


def make_step(method: str, size: str, batch_size: int):
    """(step, state, batch) of one method, compiled."""
    config = build.load(turbulence.get_config(f"{method},size={size}"))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch_size))
    side = config.windows.crop
    card = build.DataCard(("u", "v"), "m/s", 0.25, "s", (0.0, 0.0), (1.0, 1.0), (side, side))
    experiment = build.build(config, card)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps)

    def init():
        return state.init_state(experiment.init, optimizer, config.seed)

    abstract = state.abstract_state(init, jax.sharding.get_mesh())
    train_state = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()
    step = state.make_train_step(experiment.loss, optimizer, config.ema, config.seed, abstract)
    shape = (batch_size, config.window.num_frames, side, side, 2)
    frames = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    batch = global_batch.assemble(Batch(frames), range(batch_size), batch_size, jax.sharding.get_mesh())
    return step, train_state, batch


def timed(step, train_state, batch):
    """Seconds of one step, and the state after it."""
    start = time.perf_counter()
    train_state, _ = jax.block_until_ready(step(train_state, batch))
    return time.perf_counter() - start, train_state


def main():
    """Prints the ratio to the standard step for every other method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    with jax.set_mesh(meshes.make_mesh(meshes.MeshOptions())):
        runs = {method: make_step(method, args.size, args.batch) for method in METHODS}
        states = {method: timed(*run)[1] for method, run in runs.items()}
        seconds = {method: [] for method in runs}
        for number in range(args.rounds):
            for method in METHODS[:: -1 if number % 2 else 1]:
                step, _, batch = runs[method]
                spent, states[method] = timed(step, states[method], batch)
                seconds[method].append(spent)
    print(
        f"{jax.devices()[0]}, jax {jax.__version__}, size {args.size}, batch {args.batch}, {args.rounds} rounds"
    )
    for method, values in seconds.items():
        low, middle, high = np.percentile(np.divide(values, seconds["standard"]), [25, 50, 75])
        print(
            f"{method}: {middle:.3f} of a standard step (median; interquartile {low:.3f} to {high:.3f}), "
            f"{np.median(values):.4f} s"
        )


if __name__ == "__main__":
    main()
