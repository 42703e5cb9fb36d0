"""The train state, and the step that maps a state and a batch to the next state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dydiff_jax import system
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import optim
from dydiff_jax.types import Array, Batch, Params

#: maps (params, batch, key) to the loss and a dictionary of scalar metrics.
Loss = Callable[[Params, Batch, jax.Array], tuple[Array, dict[str, Array]]]


class TrainState(struct.PyTreeNode):
    """All that a run needs to go on; together with the seed it determines the rest of the run.

    Attributes:
      step: int32 []; steps done, skipped ones included; also the index of the next batch.
      skipped: int32 []; steps whose update was not applied, because loss or gradient was not finite.
      bad_steps: int32 []; how many of the latest steps in a row were skipped.
      params: float32 parameters.
      opt_state: state of the optimizer.
      ema: moving average of the parameters.
    """

    step: jax.Array
    skipped: jax.Array
    bad_steps: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params


def init_state(
    init: Callable[[jax.Array], Params], optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh state: parameters from the seed, the average equal to them."""
    key, _ = run_keys(seed)
    params = init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        bad_steps=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params),
    )


def run_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The key of the initial parameters and the key from which the key of every step is folded."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    return init_key, step_key


def abstract_state(init: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state, without making it."""
    shapes = jax.eval_shape(init)
    shardings = meshes.state_shardings(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_options: system.EmaOptions,
    seed: int,
    abstract: TrainState,
    max_bad_steps: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles (state, batch) -> (next state, metrics). The given state is donated: it cannot be used again.

    The metrics are those of the loss, ``loss``, ``grad_norm`` (before clipping), ``skipped``, ``bad_steps``.
    If loss or gradient is not finite, parameters, optimizer and average stay as they were, bit for bit; after more
    than ``max_bad_steps`` such steps in a row they stay so for good, while the host is still to notice.

    Args:
      loss: maps (params, batch, key) to the loss and scalar metrics.
      optimizer: an optax transformation.
      ema_options: of the moving average.
      seed: of the run; with ``state.step`` it gives the key of the step.
      abstract: shapes and shardings of the state, from `abstract_state`.
      max_bad_steps: how many steps in a row may be skipped.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = abstract.step.sharding.mesh

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(run_keys(seed)[1], state.step)
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
        grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optim.ema_update(ema_options, state.ema, params, state.step - state.skipped)
        finite = jnp.isfinite(value) & jnp.isfinite(norm) & (state.bad_steps <= max_bad_steps)
        moved = state.replace(params=params, opt_state=opt_state, ema=ema)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
        bad = 1 - finite.astype(jnp.int32)
        state = kept.replace(
            step=state.step + 1, skipped=state.skipped + bad, bad_steps=(state.bad_steps + 1) * bad
        )
        counts = {"skipped": state.skipped, "bad_steps": state.bad_steps}
        return state, {**metrics, "loss": value, "grad_norm": norm, **counts}

    return jax.jit(
        train_step,
        in_shardings=(shardings, meshes.batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
