"""Times a training step (loss and gradient) of the U-ViT, variants side by side, as ratios to the first.

    python benchmarks/uvit_step.py                       # variants of `tiny` on one device
    python benchmarks/uvit_step.py --sizes tiny,S        # sizes
    JAX_NUM_CPU_DEVICES=2 python benchmarks/uvit_step.py --devices 2   # data parallel against one device

Variants take turns, and the least of all turns counts, so that a busy machine disturbs the ratios little.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dydiff_jax.models.uvit import SIZES, UViT3D, UViTOptions

VARIANTS = {
    "as it is": {},
    "scan": dict(scan=True),
    "remat dots": dict(remat="dots"),
    "remat full": dict(remat="full"),
    "bfloat16": dict(dtype="bfloat16"),
    "xla attention": dict(attention="xla"),
    "full for axial": dict(kinds=("conv", "full")),
    "three levels": dict(
        channels=(48, 96, 96), blocks=(1, 1, 1), kinds=("conv", "axial", "full"), dropout=(0.0, 0.0, 0.0)
    ),
}


def step(options: dict, shape: tuple[int, ...], devices: int):
    """A function without arguments that runs one step, and the number of parameters."""
    model = UViT3D(UViTOptions(**options), out_channels=shape[-1])
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    z = np.random.default_rng(0).standard_normal(shape, np.float32)
    copies = np.concatenate([z, z], axis=-1)
    with jax.set_mesh(mesh):
        params = jax.jit(model.init)(jax.random.key(0), z, z[:, :, 0, 0, 0], copies)
        batch = jax.device_put((z, z[:, :, 0, 0, 0], copies), NamedSharding(mesh, P("data")))

    def loss(params, z, logsnr, channels):
        keys, rngs = jax.random.split(jax.random.key(1), len(z)), {"dropout": jax.random.key(1)}
        return jnp.mean((model.apply(params, z, logsnr, channels, keys=keys, rngs=rngs) - z) ** 2)

    gradient = jax.jit(jax.value_and_grad(loss))

    def run():
        with jax.set_mesh(mesh):
            jax.block_until_ready(gradient(params, *batch))

    return run, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def compare(steps: dict, repeats: int):
    """Prints the least time of each step and its ratio to the first."""
    start = {name: time.perf_counter() for name in steps}
    for name, (run, _) in steps.items():
        start[name] = time.perf_counter()
        run()
        start[name] = time.perf_counter() - start[name]
    best = dict.fromkeys(steps, math.inf)
    for _ in range(repeats):
        for name, (run, _) in steps.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    first = next(iter(best.values()))
    print(f"{'':20} {'parameters':>12} {'first call s':>13} {'ms a step':>10} {'ratio':>6}")
    for name, (_, count) in steps.items():
        milliseconds = 1e3 * best[name]
        print(f"{name:20} {count:12,} {start[name]:13.1f} {milliseconds:10.0f} {best[name] / first:6.2f}")


def main():
    """Reads the arguments and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", default="", help="comma separated; compares sizes instead of variants of tiny"
    )
    parser.add_argument("--devices", type=int, default=1, help="compares this many devices with one")
    parser.add_argument("--shape", default="4,10,32,32,2", help="batch, frames, height, width, channels")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    shape = tuple(int(size) for size in arguments.shape.split(","))
    if arguments.sizes:
        steps = {size: step(SIZES[size], shape, 1) for size in arguments.sizes.split(",")}
    elif arguments.devices > 1:
        steps = {f"{count} devices": step(SIZES["tiny"], shape, count) for count in (1, arguments.devices)}
    else:
        steps = {name: step(SIZES["tiny"] | changes, shape, 1) for name, changes in VARIANTS.items()}
    compare(steps, arguments.repeats)


if __name__ == "__main__":
    main()
