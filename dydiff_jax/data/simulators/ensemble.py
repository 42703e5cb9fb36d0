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

from dydiff_jax.data.sources.source import SOURCES

#: Trajectories that an accelerator simulates side by side; a killed run loses no more than these.
SIDE_BY_SIDE = 256


def simulate_missing(options, indices, workers: int) -> None:
    """Write the parts of `options` named by `indices`, with a progress bar in frames.

    Args:
      options: a `data.simulated.Simulated`.
      workers: processes, on a CPU.

    Raises:
      FloatingPointError: the flow became non-finite.
      RuntimeError: a worker process failed; its last lines are in the message.
    """
    frames = options.spin_up_frames + options.frames
    title = f"Simulating {len(indices)} x {frames} frames of {options.title} into {options.folder}"
    print(title, file=sys.stderr)
    with tqdm(total=len(indices) * frames, unit="frame", smoothing=0.05) as bar:
        if jax.default_backend() == "cpu":
            run_workers(options, indices, min(workers, len(indices)), bar.update)
        else:
            for start in range(0, len(indices), SIDE_BY_SIDE):
                simulate(options, indices[start : start + SIDE_BY_SIDE], bar.update)


def simulate(options, indices, report) -> None:
    """Simulate the trajectories `indices` side by side on this process's device, and write their parts.

    Args:
      report: called with the number of frames that were finished since the last call.
    """
    states = jax.tree.map(lambda *each: jnp.stack(each), *(options.initial(index) for index in indices))
    kept = []
    for count in range(options.spin_up_frames + options.frames):
        states, frames = next_frames(options, states)
        frames = np.asarray(frames)
        if not np.isfinite(frames).all():
            raise FloatingPointError(
                f"trajectories {list(indices)} became non-finite within {count + 1} frames of "
                f"{options.interval} {options.remedy}"
            )
        if count >= options.spin_up_frames:
            kept.append(frames)
        report(len(indices))
    for index, array in zip(indices, np.stack(kept, axis=1), strict=True):
        options.parts()[index].write(array)


@functools.partial(jax.jit, static_argnums=0)
def next_frames(options, states):
    """The states one interval later and a frame of each, [n, ...]; all at once, or on a CPU one by one.

    The frame is of the later state, or of the earlier one where a data set records its start.
    """
    together = None if jax.default_backend() == "cpu" else len(jax.tree.leaves(states)[0])
    later = jax.lax.map(options.advance, states, batch_size=together)
    return later, jax.vmap(options.frame)(states if options.records_start else later)


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
    name = next(name for name, source in SOURCES.items() if source is type(options))
    arguments = [name, json.dumps(dataclasses.asdict(options)), *(str(index) for index in indices)]
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
