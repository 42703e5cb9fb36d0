"""What sharding costs where there is nothing to share: the training step on a mesh of one device against plain jit.

    python -m benchmarks.sharding --size=tiny --rounds=40

The first has its mesh, the shardings of its arguments and results, and every constraint on activations; the second
has none of them. Both are compiled first, then run in turn from the same state; the ratio of each round is taken, and
the median over the rounds is printed with the interquartile range. On a CPU the seconds are those that the process has
worked, which other programs disturb little; on an accelerator, those that have passed.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dydiff_jax import system
from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.models.layers import RULES
from dydiff_jax.models.uvit import SIZES, UViT3D, UViTOptions
from dydiff_jax.training import optim, state
from dydiff_jax.types import Batch

RECIPE = system.Recipe(system.TrainOptions(10_000, 1), system.OptimizerOptions(), system.EmaOptions(), seed=0)


@dataclasses.dataclass(frozen=True)
class Denoising:
    """A squared error of a U-ViT on frames [b, f, h, w, c], of noise of its own for each row.

    Attributes:
      model: the network.
      shape: of a batch.
    """

    model: UViT3D
    shape: tuple[int, ...]
    rules: tuple[system.Rule, ...] = RULES

    def init(self, key):
        """Fresh parameters."""
        frames = jnp.zeros((1, *self.shape[1:]))
        return self.model.init(key, frames, frames[..., 0, 0, 0])["params"]

    def loss(self, params, frozen, batch, key):
        """The loss, and no metrics."""
        eps = jax.random.normal(key, batch.frames.shape)
        z, logsnr, rngs = batch.frames + eps, 3 * eps[:, :, 0, 0, 0], {"dropout": key}
        keys = jax.random.split(key, len(z))
        predicted = self.model.apply({"params": params}, z, logsnr, keys=keys, rngs=rngs)
        return jnp.mean((predicted - eps) ** 2), {}


def sharded(objective, frames):
    """(step, state, batch) on the mesh in use."""
    mesh = jax.sharding.get_mesh()
    abstract = state.abstract_state(objective, RECIPE, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    first = jax.jit(lambda: state.init_state(objective, RECIPE), out_shardings=shardings)()
    batch = global_batch.assemble(Batch(frames), range(len(frames)), len(frames), mesh)
    step = state.make_train_step(objective, RECIPE, abstract, {})
    return lambda now, batch: step(now, {}, batch), first, batch


def plain(objective, frames):
    """(step, state, batch) of the same arithmetic as `dydiff_jax.training.state`, without a word of sharding."""
    optimizer = state.make_optimizer(RECIPE)

    def step(now: state.TrainState, batch: Batch):
        key = jax.random.fold_in(state.run_keys(RECIPE)[1], now.step)
        (value, _), grads = jax.value_and_grad(objective.loss, has_aux=True)(now.params, {}, batch, key)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, now.opt_state, now.params)
        params = optax.apply_updates(now.params, updates)
        ema = optim.ema_update(RECIPE.ema, now.ema, params, now.step - now.skipped)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        moved = now.replace(params=params, opt_state=opt_state, ema=ema)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, now)
        return kept.replace(step=now.step + 1), {"loss": value, "grad_norm": norm}

    first = jax.jit(lambda: state.init_state(objective, RECIPE))()
    return jax.jit(step, donate_argnums=0), first, Batch(jnp.asarray(frames))


def timed(step, now, batch):
    """Seconds of one step, the state after it, and its loss."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    now, metrics = jax.block_until_ready(step(now, batch))
    return clock() - start, now, float(metrics["loss"])


def main():
    """Prints the ratio, after a check that both compute the same losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--shape", default="4,10,32,32,2", help="batch, frames, height, width, channels")
    args = parser.parse_args()
    shape = tuple(map(int, args.shape.split(",")))
    frames = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    model = UViT3D(UViTOptions(**SIZES[args.size]), shape[-1])
    parts = Denoising(model, shape), frames
    mesh = meshes.make_mesh(meshes.MeshOptions(data=1))
    with jax.set_mesh(mesh):
        step, now, batch = sharded(*parts)
        _, now, first_loss = timed(step, now, batch)
    plain_step, plain_now, plain_batch = plain(*parts)
    _, plain_now, plain_loss = timed(plain_step, plain_now, plain_batch)
    assert abs(first_loss - plain_loss) <= 1e-6 * plain_loss, (first_loss, plain_loss)

    def run_sharded():
        nonlocal now
        with jax.set_mesh(mesh):
            spent, now, _ = timed(step, now, batch)
        return spent

    def run_plain():
        nonlocal plain_now
        spent, plain_now, _ = timed(plain_step, plain_now, plain_batch)
        return spent

    ratios, seconds = [], []
    for number in range(args.rounds):
        if number % 2:
            own, other = run_sharded(), run_plain()
        else:
            other, own = run_plain(), run_sharded()
        ratios.append(own / other)
        seconds.append(other)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"{jax.devices()[0]}, jax {jax.__version__}, size {args.size}, {shape}, {args.rounds} rounds")
    print(f"sharded / plain: {middle:.4f} (median; interquartile {low:.4f} to {high:.4f})")
    print(f"a plain step takes {np.median(seconds):.4f} s")


if __name__ == "__main__":
    main()
