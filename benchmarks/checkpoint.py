"""What checkpoints cost: the time for which `save` holds up the loop, and the comparison with the manifest at restore.

    python -m benchmarks.checkpoint --sizes=tiny,S --rounds=5

A round is a step, a save, a step while the save goes on in the background, and the wait for its end. Printed are
medians over the rounds; the share is that of the held-up time in an interval between two saves, at the default interval
and at that of the miniature, and in brackets that of all time lost, the slower step beside the save included.
Restoring is timed with the files in the page cache and, for the manifest alone, also without.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import jax

from benchmarks.methods import make_step, timed
from configs import turbulence
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training.checkpoints import manifest
from dydiff_jax.training.checkpoints.manager import Checkpoints

TARGET = 0.02


def intervals() -> dict[str, int]:
    """Steps between two saves: the default and the miniature's."""
    return {
        name: turbulence.get_config(f"dynamical,size={size}").train.checkpoint_every
        for name, size in (("default", "S"), ("miniature", "tiny"))
    }


def saves(opened: Checkpoints, step, state, batch, rounds: int) -> tuple[dict[str, float], object]:
    """Medians of the seconds of a step, of a save, of the step beside it and of all until it is whole; the state."""
    found = {"step": [], "blocked": [], "beside": [], "whole": []}
    for number in range(rounds + 1):
        spent, state = timed(step, state, batch)
        found["step"].append(spent)
        begin = time.perf_counter()
        opened.save(number + 1, state, {})
        found["blocked"].append(time.perf_counter() - begin)
        spent, state = timed(step, state, batch)
        found["beside"].append(spent)
        opened.wait()
        found["whole"].append(time.perf_counter() - begin)
    return {
        name: statistics.median(values[1:]) for name, values in found.items()
    }, state  # the first warms up


def evict(folder: pathlib.Path) -> None:
    """Drops the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def restores(opened: Checkpoints, folder: pathlib.Path, abstract, rounds: int) -> dict[str, float]:
    """Medians of the seconds to verify, to verify without the page cache, and to verify and load."""
    found = {"verify": [], "cold": [], "restore": []}
    for _ in range(rounds):
        evict(folder)
        for name, act in (
            ("cold", lambda: manifest.verify(folder)),
            ("verify", lambda: manifest.verify(folder)),
            ("restore", lambda: jax.block_until_ready(opened.restore(abstract))),
        ):
            begin = time.perf_counter()
            act()
            found[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in found.items()}


def report(size: str, batch_size: int, rounds: int) -> None:
    """Measures and prints one size."""
    step, state, batch = make_step("dynamical", size, batch_size)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    _, state = timed(step, state, batch)
    with tempfile.TemporaryDirectory() as directory, Checkpoints(pathlib.Path(directory), 1, None) as opened:
        seconds, state = saves(opened, step, state, batch, rounds)
        folder = pathlib.Path(directory) / str(rounds + 1)
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        read = restores(opened, folder, abstract, rounds)
    print(
        f"{size}: {count / 1e6:.1f} M parameters, a checkpoint of {written / 1e6:.0f} MB; a step takes "
        f"{seconds['step']:.3f} s ({seconds['beside']:.3f} s beside a save), a save holds it up for "
        f"{seconds['blocked']:.3f} s and is whole {seconds['whole']:.2f} s later at most"
    )
    lost = seconds["blocked"] + max(0.0, seconds["beside"] - seconds["step"])
    for name, steps in intervals().items():
        share = seconds["blocked"] / (steps * seconds["step"])
        print(
            f"  every {steps} steps ({name}): {share:.4%} ({lost / (steps * seconds['step']):.4%}), "
            f"{'under' if share < TARGET else 'OVER'} the target of {TARGET:.0%}"
        )
    print(
        f"  manifest compared in {read['verify']:.3f} s ({written / 1e9 / read['verify']:.2f} GB/s; "
        f"{written / 1e9 / read['cold']:.2f} GB/s from the disk); compared and loaded in {read['restore']:.3f} s"
    )


def main():
    """Reads the arguments and prints the figures of every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="tiny,S")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{jax.devices()[0]}, jax {jax.__version__}, batch {args.batch}, {args.rounds} rounds")
    with jax.set_mesh(meshes.make_mesh(meshes.MeshOptions(data=1))):
        for size in args.sizes.split(","):
            report(size, args.batch, args.rounds)


if __name__ == "__main__":
    main()
