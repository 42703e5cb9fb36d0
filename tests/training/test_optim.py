"""The optimizer and the average against their formulas, in numpy and double precision."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dydiff_jax import system
from dydiff_jax.training import optim


def options(**changes):
    defaults = dict(learning_rate=0.1, warmup_steps=4, decay="constant", clip_norm=1e9)
    return system.OptimizerOptions(**(defaults | changes))


def test_adamw_follows_its_algorithm(x64):
    """Loshchilov and Hutter 2019, Algorithm 2, over five updates; only the kernel decays."""
    config = options(weight_decay=0.3, b1=0.8, b2=0.9, eps=1e-3)
    optimizer = optim.make_optimizer(config, 100)
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": jnp.asarray(rng.normal(size=(3, 2))), "bias": jnp.asarray(rng.normal(size=2))}
    }
    expected = {name: np.array(value) for name, value in params["dense"].items()}
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in expected.items()}
    opt_state = optimizer.init(params)
    for n in range(5):
        grads = {name: rng.normal(size=value.shape) for name, value in expected.items()}
        updates, opt_state = optimizer.update({"dense": grads}, opt_state, params)
        params = optax.apply_updates(params, updates)
        rate = 0.1 * min(n / 4, 1)
        for name, grad in grads.items():
            m, v = moments[name]
            m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
            moments[name] = m, v
            step = (m / (1 - 0.8 ** (n + 1))) / (np.sqrt(v / (1 - 0.9 ** (n + 1))) + 1e-3)
            step += 0.3 * expected[name] * (name == "kernel")
            expected[name] = expected[name] - rate * step
    for name, value in expected.items():
        np.testing.assert_allclose(params["dense"][name], value, rtol=1e-6)  # optax: b^n in float32


def test_clipping_bounds_the_global_norm(x64):
    """A gradient of norm 10 clipped to 2 moves the parameters like one divided by 5, a short one as it is."""
    grads = {"a": {"kernel": jnp.array([[6.0, 0.0]])}, "b": {"kernel": jnp.array([[8.0]])}}
    scaled = {"a": {"kernel": jnp.array([[1.2, 0.0]])}, "b": {"kernel": jnp.array([[1.6]])}}
    clipping = optim.make_optimizer(options(clip_norm=2.0, warmup_steps=0, eps=1.0), 10)
    free = optim.make_optimizer(options(warmup_steps=0, eps=1.0), 10)
    for given, equal in ((grads, scaled), (scaled, scaled)):
        clipped, _ = clipping.update(given, clipping.init(grads), grads)
        plain, _ = free.update(equal, free.init(grads), grads)
        np.testing.assert_allclose(clipped["a"]["kernel"], plain["a"]["kernel"], rtol=1e-14)
        np.testing.assert_allclose(clipped["b"]["kernel"], plain["b"]["kernel"], rtol=1e-14)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_learning_rate(x64, decay):
    n = np.arange(21)
    tail = 0.1 if decay == "constant" else 0.05 * (1 + np.cos(np.pi * (n - 4) / 16))
    schedule = optim.learning_rate(options(decay=decay), total_steps=20)
    np.testing.assert_allclose([schedule(i) for i in n], np.where(n < 4, 0.1 * n / 4, tail), atol=1e-15)


def test_ema_closed_form(x64):
    """ema_n = sum_i w_i params_i with w_i = (1 - d_i) prod_{j > i} d_j, and the weights sum to 1."""
    config = system.EmaOptions(decay=0.9)
    rng = np.random.default_rng(1)
    params = rng.normal(size=(101, 3))
    ema = {"w": jnp.asarray(params[0])}
    for n in range(100):
        ema = optim.ema_update(config, ema, {"w": jnp.asarray(params[n + 1])}, jnp.asarray(n))
    decays = np.minimum(0.9, (1 + np.arange(100)) / (10 + np.arange(100)))
    later = np.append(np.cumprod(decays[::-1])[::-1][1:], 1)
    weights = np.append(np.prod(decays), (1 - decays) * later)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(ema["w"], weights @ params, rtol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"clip_norm": 0.0},
        {"b2": 1.0},
    ],
)
def test_bad_values_are_named(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: "):
        options(**changes)


def test_bad_ema_and_warmup_are_named():
    with pytest.raises(ValueError, match=r"^decay: "):
        system.EmaOptions(decay=1.0)
    with pytest.raises(ValueError, match=r"^warmup_steps: .* 4 steps"):
        optim.make_optimizer(options(), total_steps=4)
