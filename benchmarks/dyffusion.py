"""What DYffusion's sampler takes beside its calls timed apart, and its compilation with more steps.

    python -m benchmarks.dyffusion --features=64 --rounds=20

A block of h frames is drawn with the compiled sampler, and the same calls of F and I are made one by one by programs of
their own; the ratio of neighbours is taken, and its median over the rounds is printed. Compilation is timed for N = 8
and N = 64 diffusion steps of 8 frames, afresh each time, and the shortest of three is taken.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.diffusion.dyffusion import Leads, Step
from dydiff_jax.diffusion.walk import WalkSampler, sample
from dydiff_jax.models.cnn import CNNOptions
from dydiff_jax.models.network import Inputs


def functions(features: int, side: int, rows: int):
    """(F, I) of CNNs with the kernels of the spring mesh, parameters, and a frame of 4 channels."""
    network = CNNOptions(features=features).build(4)
    x0 = np.random.default_rng(0).normal(size=(rows, side, side, 4)).astype(np.float32)

    def seen(frames, time):
        return Inputs(jnp.stack(frames, axis=1), jnp.full((rows, 1), time, jnp.float32))

    params = network.init(jax.random.key(0), seen([x0, x0], 0.0))

    def forecast(params, x, lead):
        return network.apply(params, seen([x, x], lead))[:, -1]

    def draw(params, draw, x0, xh, lead):
        del draw
        return network.apply(params, seen([x0, xh], lead))[:, -1]

    return forecast, draw, params, x0


class Interpolator:
    """I without randomness, with the parameters that it is given."""

    has_moments = False

    def __init__(self, draw, params):
        self.draw = lambda number, x0, xh, lead: draw(params, number, x0, xh, lead)

    moments = noise = snr_ratio = None


def walker(forecast, draw, leads):
    """The sampler as a function of parameters and x_0."""

    def run(params, x0):
        def bound(x, step: Step):
            return forecast(params, x, step.lead)

        return sample(bound, Interpolator(draw, params), x0, leads, WalkSampler()).frames

    return run


def timed(function, *arguments):
    """Seconds of a call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def main():
    """Prints the ratio of the sampler to its calls, and that of compilation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--side", type=int, default=10)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    forecast, draw, params, x0 = functions(args.features, args.side, args.rows)
    leads = Leads(args.horizon)
    whole = jax.jit(walker(forecast, draw, leads))
    of_f, of_i = jax.jit(forecast), jax.jit(draw)
    counts = WalkSampler().calls(leads)

    def apart():
        for _ in range(counts[0]):
            x = of_f(params, x0, 1.0)
        for _ in range(counts[1]):
            x = of_i(params, 0, x0, x0, 1.0)
        return x

    timed(whole, params, x0), timed(apart)
    ratios, seconds = [], []
    for _ in range(args.rounds):
        seconds.append(timed(whole, params, x0))
        ratios.append(seconds[-1] / timed(apart))
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"{jax.devices()[0]}, jax {jax.__version__}, {args}, calls of F and I: {counts}")
    print(
        f"sampler / calls apart: {middle:.3f} (median; interquartile {low:.3f} to {high:.3f}), "
        f"{np.median(seconds):.4f} s a block"
    )
    jax.config.update("jax_enable_compilation_cache", False)
    taken = {}
    for steps in (8, 64):
        run, spent = walker(forecast, draw, Leads(8, extra=steps - 8)), []
        for _ in range(3):
            start = time.perf_counter()
            jax.jit(run).lower(params, x0).compile()
            spent.append(time.perf_counter() - start)
            jax.clear_caches()
        taken[steps] = min(spent)
    print(f"compilation: N = 8 {taken[8]:.2f} s, N = 64 {taken[64]:.2f} s, ratio {taken[64] / taken[8]:.3f}")


if __name__ == "__main__":
    main()
