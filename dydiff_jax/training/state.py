"""The train state, and the step that maps a state and a batch to the next state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.system import Objective, Recipe, Weights
from dydiff_jax.training import optim
from dydiff_jax.types import Batch, Params


class TrainState(struct.PyTreeNode):
    """All that a stage needs to resume; together with its recipe it determines the rest of the training.

    Attributes:
      step: int32 []; steps done, skipped ones included; also the index of the next batch.
      skipped: int32 []; steps whose update was not applied, because loss or gradient was not finite.
      bad_steps: int32 []; how many of the latest steps in a row were skipped.
      params: float32 parameters.
      opt_state: state of the optimizer.
      ema: exponential moving average (EMA) of the parameters.
    """

    step: jax.Array
    skipped: jax.Array
    bad_steps: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params


#: A jitted (state, frozen weights, batch) -> (state, {metric: scalar}).
TrainStep = jax.stages.Wrapped


def run_keys(recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """The key of the initial parameters, and the key from which that of every step is folded.

    The first stage of a run has the keys of the seed alone; stage ``number`` has the seed's, folded with its number.
    """
    key = jax.random.key(recipe.seed)
    if recipe.number:
        key = jax.random.fold_in(key, recipe.number)
    init_key, step_key = jax.random.split(key)
    return init_key, step_key


def init_state(objective: Objective, recipe: Recipe) -> TrainState:
    """A fresh state: parameters from the key of the recipe, the EMA equal to them."""
    return state_of(objective.init(run_keys(recipe)[0]), recipe)


def state_of(params: Params, recipe: Recipe) -> TrainState:
    """The state before the first step, with these parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        bad_steps=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(recipe).init(params),
        ema=jax.tree.map(jnp.copy, params),
    )


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW as the recipe has it."""
    return optim.make_optimizer(recipe.optimizer, recipe.train.steps)


def abstract_state(objective: Objective, recipe: Recipe, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state, without making it."""
    shapes = jax.eval_shape(lambda: init_state(objective, recipe))
    shardings = meshes.state_shardings(shapes, mesh, objective.rules)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def make_train_step(objective: Objective, recipe: Recipe, abstract: TrainState, frozen: Weights) -> TrainStep:
    """Compile (state, frozen, batch) -> (next state, metrics).

    The given state is donated: it cannot be used again. ``frozen`` is an argument, and not donated: a closure would
    write the weights into the program. The metrics are those of the loss, ``loss``, ``grad_norm`` (before clipping),
    ``skipped``, ``bad_steps``. If loss or gradient is not finite, parameters, optimizer and EMA stay as they were,
    bit for bit; after more than ``max_bad_steps`` such steps in a row all later updates are skipped as well, until the
    host raises.

    Args:
      objective: what is minimised.
      recipe: how; its keys, with ``state.step``, give the key of a step.
      abstract: shapes and shardings of the state, from `abstract_state`.
      frozen: weights of the earlier stages that the loss reads, or their shapes, each leaf with its sharding; {}
        without any.
    """
    optimizer, max_bad_steps = make_optimizer(recipe), recipe.train.max_bad_steps
    shardings: Any
    shardings, placed = (jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (abstract, dict(frozen)))
    mesh: Mesh = shardings.step.mesh

    def train_step(
        state: TrainState, frozen: Weights, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(run_keys(recipe)[1], state.step)
        differentiated = jax.value_and_grad(objective.loss, has_aux=True)
        (value, metrics), grads = differentiated(state.params, frozen, batch, key)
        grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optim.ema_update(recipe.ema, state.ema, params, state.step - state.skipped)
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
        in_shardings=(shardings, placed, meshes.batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
