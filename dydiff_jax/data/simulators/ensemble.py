"""Several trajectories of one flow: on an accelerator all at once, on a CPU in one process for each core."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dydiff_jax.data.simulators import rayleigh_benard as solver


def simulate_missing(options, indices, workers: int) -> None:
    """Write the parts of `options` named by `indices`, with a progress bar in frames.

    Raises:
      FloatingPointError: the flow became non-finite.
      RuntimeError: a worker process failed; its last lines are in the message.
    """
    frames = num_spin_up(options) + options.frames
    print(f"Simulating {len(indices)} x {frames} frames of convection into {options.folder}", file=sys.stderr)
    with tqdm(total=len(indices) * frames, unit="frame", smoothing=0.05) as bar:
        if jax.default_backend() == "cpu":
            run_workers(options, indices, min(workers, len(indices)), bar.update)
        else:
            simulate(options, indices, bar.update)


def simulate(options, indices, report) -> None:
    """Simulate the trajectories `indices` side by side on this process's device, and write their parts.

    Args:
      report: called with the number of frames that were finished since the last call.
    """
    keys = [jax.random.fold_in(jax.random.key(options.seed), i) for i in indices]
    starts = [solver.initial(key, options.rows, options.columns) for key in keys]
    fluids = jax.tree.map(lambda *each: jnp.stack(each), *starts)

    films = []
    for count in range(num_spin_up(options) + options.frames):
        fluids, frames = next_frames(options, fluids)
        frames = np.asarray(frames)
        if not np.isfinite(frames).all():
            raise FloatingPointError(
                f"trajectories {list(indices)} became non-finite within {count + 1} frames of "
                f"{options.interval} at Ra = {options.rayleigh:g} on {options.rows} x {options.columns} "
                "cells; use more rows"
            )
        if count >= num_spin_up(options):
            films.append(frames)
        report(len(indices))
    for index, film in zip(indices, np.stack(films, axis=1), strict=True):
        options.parts()[index].write(film)


@functools.partial(jax.jit, static_argnums=0)
def next_frames(options, fluids: solver.Fluid) -> tuple[solver.Fluid, jax.Array]:
    """The states one interval later and their frames, [n, ...]; all at once, or on a CPU one by one."""
    flow = solver.physics(options.rayleigh, options.prandtl)
    together = None if jax.default_backend() == "cpu" else len(fluids.u)
    fluids = jax.lax.map(
        lambda fluid: solver.advance(fluid, flow, options.interval), fluids, batch_size=together
    )
    return fluids, jax.vmap(lambda fluid: downsample(solver.velocity(fluid), options))(fluids)


def num_spin_up(options) -> int:
    """Frames that are simulated and not kept."""
    return round(options.spin_up / options.interval)


def downsample(frame: jax.Array, options) -> jax.Array:
    """[rows, columns, c] to [out_rows, columns out_rows / rows, c], by block means or by a stride."""
    factor = options.rows // options.out_rows
    if options.downsample == "stride":
        return frame[::factor, ::factor]
    rows, columns, channels = frame.shape
    blocks = frame.reshape(rows // factor, factor, columns // factor, factor, channels)
    return blocks.mean(axis=(1, 3))


def run_workers(options, indices, workers: int, report) -> None:
    """Share the trajectories among single-core processes of this interpreter."""
    shares = [indices[i::workers] for i in range(workers)]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(start_worker(options, share)) for share in shares]
        lines: queue.Queue = queue.Queue()
        for process in running:
            threading.Thread(target=_pass_on, args=(process, lines), daemon=True).start()
        told = {process.pid: [] for process in running}
        for _ in running:
            while (line := lines.get()) is not None:
                process, text = line
                if text.strip() == ".":
                    report(1)
                else:
                    told[process.pid].append(text)
        for process in running:
            if process.wait():
                raise RuntimeError("a simulation worker failed:\n" + "".join(told[process.pid][-20:]))


@contextlib.contextmanager
def start_worker(options, indices):
    """A process that simulates `indices` on one core; ended when the block is left."""
    package = pathlib.Path(__file__).parents[3]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "NPROC": "1",  # threads of the CPU backend
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
    }
    arguments = [json.dumps(dataclasses.asdict(options)), *(str(index) for index in indices)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dydiff_jax.data.simulators.worker", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _pass_on(process, lines):
    for text in process.stdout:
        lines.put((process, text))
    lines.put(None)
