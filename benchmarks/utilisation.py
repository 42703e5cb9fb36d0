"""Model FLOPs utilisation of a training step: what share of a device's measured matrix rate the network reaches.

    python -m benchmarks.utilisation --sizes=S,B --out=utilisation.md           # on a GPU or TPU, bfloat16
    python -m benchmarks.utilisation --sizes=B --remats=dots --attentions=cudnn --profile=DIR
    python -m benchmarks.utilisation --sizes=tiny --attentions=einsum,xla --matrix=1024 --last-batch=4     # on a CPU

The rate is that of the best of several bfloat16 products of two square matrices. The work of a step is three times that
of the forward pass, as written, without what remat computes again. The batch doubles until the memory is full. A row
per variant: utilisation of each batch, time of a step and windows a second at the best. With --profile, a trace of the
last variant's steps at its best batch is written there: `xprof DIR` or TensorBoard say what bounds the step.
"""

import argparse
import itertools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sharding import Denoising, sharded
from dydiff_jax.cost_model.work import model_flops
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.models.uvit import REMAT, SIZES, UViT3D, UViTOptions

ATTENTIONS = ("einsum", "xla", "cudnn")
HEADER = "| size | remat | attention | batch: utilisation | best | step | windows/s |\n|---|---|---|---|---:|---:|---:|"


def matrix_rate(side: int, repeats: int = 10) -> float:
    """Operations a second of the best of several bfloat16 products of side x side matrices."""
    left = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    product = jax.jit(lambda a, b: (a @ b) * jnp.bfloat16(side**-0.5))
    right, best = jax.block_until_ready(product(left, left)), np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(4):
            right = product(left, right)
        jax.block_until_ready(right)
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * side**3 / best


def forward_flops(size: str, shape: tuple[int, ...]) -> int:
    """Of the forward pass on frames of this shape, however attention is computed."""
    model = UViT3D(UViTOptions(**(SIZES[size] | dict(attention="einsum"))), shape[-1])
    frames, logsnr = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:2], jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), frames, logsnr)
    return model_flops(model.apply, params, frames, logsnr)


def make_step(options: UViTOptions, shape: tuple[int, ...]):
    """(step, state, batch) of the training step on one device."""
    frames = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return sharded(Denoising(UViT3D(options, shape[-1]), shape), frames)


def step_seconds(options: UViTOptions, shape: tuple[int, ...], steps: int, profile: str | None) -> float:
    """Seconds of a step: the least of three runs of so many steps; the third is traced, if asked for.

    Raises:
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, if the step does not fit into memory.
    """
    step, now, batch = make_step(options, shape)
    now, _ = jax.block_until_ready(step(now, batch))
    best = np.inf
    for run in range(3):
        if profile and run == 2:
            jax.profiler.start_trace(profile)
        start = time.perf_counter()
        for _ in range(steps):
            now, _ = step(now, batch)
        jax.block_until_ready(now)
        best = min(best, (time.perf_counter() - start) / steps)
    if profile:
        jax.profiler.stop_trace()
    return best


def variant(size: str, remat: str, attention: str, args: argparse.Namespace, rate: float) -> tuple[str, int]:
    """A row of the table, and the batch that was best."""
    options = UViTOptions(**(SIZES[size] | dict(dtype="bfloat16", remat=remat, attention=attention)))
    window = tuple(map(int, args.shape.split(",")))
    flops = 3 * forward_flops(size, (1, *window))
    found, batch, end = {}, args.first_batch, f"stopped at {args.last_batch}"
    while batch <= args.last_batch:
        try:
            found[batch] = step_seconds(options, (batch, *window), args.steps, None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            end = f"{batch}: out of memory"
            break
        print(f"{size} {remat} {attention} batch {batch}: {found[batch]:.4f} s", flush=True)
        batch *= 2
    if not found:
        return f"| {size} | {remat} | {attention} | {end} | | | |", 0
    use = {batch: batch * flops / seconds / rate for batch, seconds in found.items()}
    best = max(use, key=use.get)
    cells = ", ".join(f"{batch}: {100 * value:.1f} %" for batch, value in use.items())
    row = f"| {size} | {remat} | {attention} | {cells}; {end} | {100 * use[best]:.1f} % |"
    return f"{row} {1e3 * found[best]:.1f} ms | {best / found[best]:.2f} |", best


def main():
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="S,B")
    parser.add_argument("--remats", default=",".join(["none", *REMAT]))
    parser.add_argument("--attentions", default=",".join(ATTENTIONS))
    parser.add_argument("--shape", default="16,64,64,2", help="of a window: frames, height, width, channels")
    parser.add_argument("--first-batch", type=int, default=1)
    parser.add_argument("--last-batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5, help="in a timed run")
    parser.add_argument("--matrix", type=int, default=8192, help="side of the matrices of the measured rate")
    parser.add_argument("--profile", help="folder for a trace of the last variant")
    parser.add_argument("--out", type=pathlib.Path, help="markdown file")
    args = parser.parse_args()
    variants = list(
        itertools.product(*(text.split(",") for text in (args.sizes, args.remats, args.attentions)))
    )
    with jax.set_mesh(meshes.make_mesh(meshes.MeshOptions(data=1))):
        rate = matrix_rate(args.matrix)
        title = f"{jax.devices()[0].device_kind}, jax {jax.__version__}, windows of {args.shape}, bfloat16: "
        title += f"{rate / 1e12:.2f} TFLOP/s in products of {args.matrix} x {args.matrix} matrices"
        lines = [title, "", HEADER]
        for chosen in variants:
            row, best = variant(*chosen, args, rate)
            lines.append(row)
            print(row, flush=True)
        if args.profile and best:
            size, remat, attention = chosen
            options = UViTOptions(**(SIZES[size] | dict(dtype="bfloat16", remat=remat, attention=attention)))
            step_seconds(options, (best, *map(int, args.shape.split(","))), args.steps, args.profile)
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
