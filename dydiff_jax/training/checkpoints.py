"""Checkpoints: written in the background, whole or not at all, readable on any mesh.

A checkpoint is a directory ``checkpoints/N``, N the steps done, of four parts that are readable one by one:
``params``, ``opt_state``, ``ema`` and ``counters``.
"""

import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from dydiff_jax.training import sharding
from dydiff_jax.training.state import Params, TrainState

COUNTERS = ("step", "skipped", "bad_steps")


class Checkpoints:
    """The checkpoints of a run that is being trained; on leaving its context it waits for the last one.

    Opening removes what a killed run left half-written, so only the run that trains may open them; others use
    `load_ema`.
    """

    def __init__(self, directory: pathlib.Path, keep_last: int, keep_every: int | None):
        """Keeps the newest ``keep_last`` checkpoints and those whose step ``keep_every`` divides."""
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(keep_last)]
        if keep_every is not None:
            keep.append(policies.EveryNSteps(keep_every))
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._checkpointer.close()

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None without any."""
        return None if self._checkpointer.latest is None else self._checkpointer.latest.step

    def save(self, step: int, state: TrainState, notes: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the state may be donated. Waits for the one before.

        Args:
          step: steps done.
          state: the state after them.
          notes: JSON that belongs to the checkpoint; `restore` returns it.
        """
        self._checkpointer.save_checkpointables_async(
            step, _parts(state), force=True, custom_metadata={"notes": notes}
        )

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Loads a state (the newest without ``step``) onto the shardings of ``abstract``, and its notes.

        Raises:
          ValueError: a leaf has another shape or dtype, is missing or has no place, or a file cannot be read.
        """
        self._checkpointer.wait()
        step = self._checkpointer.latest.step if step is None else step
        parts = _load(self._checkpointer, step, _parts(abstract))
        state = TrainState(**parts.pop("counters"), **parts)
        metadata = self._checkpointer.checkpointables_metadata(step).custom_metadata
        if "notes" not in metadata:
            raise ValueError(_unreadable(self._checkpointer.directory / str(step), "its metadata is damaged"))
        return state, metadata["notes"]


def load_ema(directory: pathlib.Path, abstract: Params, step: int | None = None) -> tuple[Params, int]:
    """Loads only the averaged parameters, without touching anything: safe while the run is training.

    Args:
      directory: the run's ``checkpoints``.
      abstract: shapes, dtypes and shardings of the parameters.
      step: which checkpoint; the newest by default.

    Returns:
      The averaged parameters and the step of the checkpoint.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: the checkpoint does not fit.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: expected a directory of checkpoints; train first")
    with ocp.training.Checkpointer(directory.absolute()) as checkpointer:
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
        if not steps or (step is not None and step not in steps):
            raise FileNotFoundError(
                f"{directory}: expected checkpoint {step or 'of any step'}, found {steps}"
            )
        step = steps[-1] if step is None else step
        return _load(checkpointer, step, {"ema": abstract})["ema"], step


def _parts(state: TrainState) -> dict[str, Any]:
    counters = {name: getattr(state, name) for name in COUNTERS}
    return {"params": state.params, "opt_state": state.opt_state, "ema": state.ema, "counters": counters}


def _load(checkpointer: ocp.training.Checkpointer, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    path = checkpointer.directory / str(step)
    try:
        found = checkpointer.checkpointables_metadata(step).metadata
    except Exception as error:  # orbax and tensorstore raise whatever their layers raise
        raise ValueError(_unreadable(path, error)) from error
    for name, expected in abstract.items():
        if found.get(name) is None:
            raise ValueError(_unreadable(path / name, "missing or damaged"))
        _check_fit(path, name, found[name], expected)
    try:
        return checkpointer.load_checkpointables(step, abstract)
    except Exception as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Any, reason: Any) -> str:
    return (
        f"checkpoint {path} cannot be read: remove the directory of its step, and the same command goes on "
        f"from the checkpoint before it. The reason: {str(reason)[:200]}"
    )


def _check_fit(path: Any, part: str, found: Any, expected: Any) -> None:
    """Compares shapes and dtypes leaf by leaf: orbax itself would cast a dtype without a word."""
    found, expected = _describe(found), _describe(expected)
    lines = [
        f"  {part}/{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted(found | expected)
        if found.get(name) != expected.get(name)
    ]
    if lines:
        more = [f"  and {len(lines) - 8} more"] if len(lines) > 8 else []
        listing = "\n".join(lines[:8] + more)
        raise ValueError(
            f"checkpoint {path} does not fit the model:\n{listing}\n"
            "Use the configuration it was made with, or another work directory."
        )


def _describe(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.leaf_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
