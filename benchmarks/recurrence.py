"""Four ways to compute the mixing recursion y^s = sqrt(1 - gamma^s) y^{s-1} + sqrt(gamma^s) x^s, timed side by side.

    python benchmarks/recurrence.py

prints a markdown table of times relative to the library's ``lax.scan``, forward and with its gradient, the least of
interleaved repeats. ``einsum`` multiplies by the triangular matrix D, which it builds from gamma each time.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.diffusion.dynamics import dynamics

SHAPES = {"latents 16x15x16x16x3": (16, 15, 16, 16, 3), "frames 16x15x64x64x2": (16, 15, 64, 64, 2)}
REPEATS, CALLS = 15, 5


def _columns(x, gamma):
    """sqrt(1 - gamma) and sqrt(gamma) as [b, f, 1, 1, 1]; the first frame enters whole."""
    gamma = gamma.at[:, 0].set(1).reshape(gamma.shape + (1,) * (x.ndim - 2))
    return jnp.sqrt(1 - gamma), jnp.sqrt(gamma)


def unrolled(x, gamma):
    keep, take = _columns(x, gamma)
    frames = [x[:, 0]]
    for s in range(1, x.shape[1]):
        frames.append(keep[:, s] * frames[-1] + take[:, s] * x[:, s])
    return jnp.stack(frames, axis=1)


def associative(x, gamma):
    keep, take = _columns(x, gamma)

    def compose(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(compose, (jnp.broadcast_to(keep, x.shape), take * x), axis=1)[1]


def einsum(x, gamma):
    keep, take = (column[:, :, 0, 0, 0] for column in _columns(x, gamma))
    logs = jnp.cumsum(jnp.log(keep.at[:, 0].set(1)), axis=1)
    lower = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    decay = jnp.exp(jnp.where(lower, logs[:, :, None] - logs[:, None, :], -jnp.inf))
    return jnp.einsum("bij,bjhwc->bihwc", decay * take[:, None, :], x, precision="highest")


METHODS = {
    "scan (library)": dynamics,
    "unrolled": unrolled,
    "associative scan": associative,
    "einsum": einsum,
}


def seconds(functions, x, gamma):
    """Least time of a call of each function, the functions taking turns."""
    least = dict.fromkeys(functions, np.inf)
    for function in functions.values():
        jax.block_until_ready(function(x, gamma))
    for _ in range(REPEATS):
        for name, function in functions.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                out = function(x, gamma)
            jax.block_until_ready(out)
            least[name] = min(least[name], (time.perf_counter() - begin) / CALLS)
    return least


def with_gradient(function):
    return jax.jit(jax.value_and_grad(lambda x, gamma: jnp.sum(jnp.square(function(x, gamma)))))


def main():
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; times relative to the scan\n")
    print("| shape | pass | scan, ms | " + " | ".join(list(METHODS)[1:]) + " |")
    print("|---" * (len(METHODS) + 2) + "|")
    for label, shape in SHAPES.items():
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        gamma = jnp.asarray(rng.uniform(0.5, 0.95, shape[:2]), jnp.float32)
        for function in METHODS.values():
            np.testing.assert_allclose(function(x, gamma), dynamics(x, gamma), atol=1e-5)
        for direction, wrap in {"forward": jax.jit, "and gradient": with_gradient}.items():
            times = seconds({name: wrap(function) for name, function in METHODS.items()}, x, gamma)
            scan, *others = times.values()
            ratios = " | ".join(f"{other / scan:.2f}" for other in others)
            print(f"| {label} | {direction} | {1e3 * scan:.3f} | {ratios} |")


if __name__ == "__main__":
    main()
