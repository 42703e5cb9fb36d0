"""What a training step of each method costs beside a standard one, with the same network and batch.

    python -m benchmarks.methods --size=tiny --rounds=60

All steps are compiled first, then run in turn; the ratio to the standard step of the same round is taken, and the
median over the rounds is printed with the interquartile range. Ratios of neighbours survive a busy machine, single
timings do not.
"""

import argparse
import time

import jax
import numpy as np

from configs import turbulence
from dydiff_jax import build
from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import state
from dydiff_jax.types import Batch

METHODS = ("standard", "dynamical", "rolling", "rolling_dynamical")


def make_step(method: str, size: str, batch_size: int):
    """(step, state, batch) of one method, compiled."""
    raw = turbulence.get_config(f"{method},size={size}")
    raw.train.batch_size = batch_size
    config = build.load(raw)
    run = build.build(config, build.spec_card(config))
    (stage,), mesh = run.stages, jax.sharding.get_mesh()
    abstract = state.abstract_state(stage.objective, stage.recipe, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    first = jax.jit(lambda: state.init_state(stage.objective, stage.recipe), out_shardings=shardings)()
    step = state.make_train_step(stage.objective, stage.recipe, abstract, {})
    shape = (batch_size, config.window.num_frames, *run.card.spec.frame_shape)
    frames = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    batch = global_batch.assemble(Batch(frames), range(batch_size), batch_size, mesh)
    return lambda train_state, batch: step(train_state, {}, batch), first, batch


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
