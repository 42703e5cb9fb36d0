"""AdamW with warm-up, decay and clipping, and the exponential moving average of the parameters."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from dydiff_jax.types import Array


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """AdamW (Loshchilov and Hutter 2019, Algorithm 2).

    Attributes:
      learning_rate: peak learning rate.
      warmup_steps: updates over which the learning rate grows linearly from 0 to its peak.
      decay: what follows the warm-up: the peak, or half a cosine that ends at 0 with the last step.
      weight_decay: decoupled weight decay of kernels; biases, scales and embeddings have none.
      clip_norm: largest global norm of the gradient; a longer gradient is scaled down to it.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        for name in ("learning_rate", "clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, found {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class EmaOptions:
    """Moving average of the parameters; the weights that forecasts are made with.

    Attributes:
      decay: weight of the past once warmed up; 0 follows the parameters.
    """

    decay: float = 0.9999

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), found {self.decay}")


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
    """Clips the gradient to a global norm, then takes a step of AdamW."""
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
