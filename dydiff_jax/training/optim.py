"""AdamW with warm-up, decay and clipping, and the exponential moving average (EMA) of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dydiff_jax.system import EmaOptions, OptimizerOptions
from dydiff_jax.types import Array


def learning_rate(options: OptimizerOptions, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates made.

    With peak r, warm-up w and s steps in all, update n uses r n / w for n < w, then r, or, with cosine decay,
    r (1 + cos(pi (n - w) / (s - w))) / 2.

    Raises:
      ValueError: the warm-up is not shorter than the run.
    """
    if options.warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps: expected fewer than the {total_steps} steps, found {options.warmup_steps}"
        )
    warmup = optax.linear_schedule(0.0, options.learning_rate, options.warmup_steps)
    if options.decay == "cosine":
        after = optax.cosine_decay_schedule(options.learning_rate, total_steps - options.warmup_steps)
    else:
        after = optax.constant_schedule(options.learning_rate)
    return optax.join_schedules([warmup, after], [options.warmup_steps])


def make_optimizer(options: OptimizerOptions, total_steps: int) -> optax.GradientTransformation:
    """Clip the gradient to a global norm, then take a step of AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            learning_rate(options, total_steps),
            b1=options.b1,
            b2=options.b2,
            eps=options.eps,
            weight_decay=options.weight_decay,
            mask=kernels,
        ),
    )


def kernels(params: Any) -> Any:
    """A tree of bools: True on the leaves named ``kernel``, the ones with weight decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def ema_decay(options: EmaOptions, updates: Array) -> Array:
    """d_n = min(decay, (1 + n) / (10 + n)) with n updates made before, so that it forgets its start."""
    return jnp.minimum(options.decay, (1 + updates) / (10 + updates))


def ema_update(options: EmaOptions, ema: Any, params: Any, updates: Array) -> Any:
    """ema_{n+1} = d_n ema_n + (1 - d_n) params_{n+1}, with d_n of `ema_decay`."""
    weight = 1 - ema_decay(options, updates)
    return jax.tree.map(lambda average, new: average + weight * (new - average), ema, params)
