"""All that it takes to repeat a step that was not finite.

``bad_step_STAGE_N`` in the work directory holds ``state``, a checkpoint of the state before step N of a stage;
``batch.npz``, the batch; and ``step.json``, what the run saw of it, written last.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dydiff_jax.distributed import collectives, global_batch
from dydiff_jax.runs import files
from dydiff_jax.system import Stage, Weights
from dydiff_jax.training.checkpoints.manager import Checkpoints
from dydiff_jax.training.state import TrainState, abstract_state, run_keys
from dydiff_jax.types import Batch

FACTS = "step.json"


def folder_of(directory: pathlib.Path, stage: str, step: int) -> pathlib.Path:
    """The bundle of a step."""
    return directory / f"bad_step_{stage}_{step}"


def write(folder: pathlib.Path, stage: Stage, state: TrainState, batch: Batch, facts: dict[str, Any]) -> None:
    """Write a bundle, unless it is there.

    Args:
      folder: of the bundle.
      stage: that is trained.
      state: whose parameters are those before the step; every process has its part.
      batch: the whole batch, in numpy.
      facts: what JSON can hold of the step; ``step``, its number, among them.
    """
    if collectives.on_main((folder / FACTS).exists):
        return
    with Checkpoints(folder / "state", 1, None) as checkpoints:
        checkpoints.save(facts["step"], state, {})

    def rest() -> None:
        arrays = {name: leaf for name, leaf in batch._asdict().items() if leaf is not None}
        with open(folder / "batch.npz", "wb") as file:
            np.savez(file, **arrays)
        named = {"stage": stage.name, "number": stage.recipe.number}
        files.write_json(folder / FACTS, named | facts | versions())

    collectives.on_main(rest)


def bundles(directory: pathlib.Path) -> list[pathlib.Path]:
    """The whole bundles of a work directory, in the order of their stages and steps."""

    def order(folder: pathlib.Path) -> tuple[int, int]:
        facts = read_facts(folder)
        return facts["number"], facts["step"]

    return sorted((path.parent for path in directory.glob(f"bad_step_*/{FACTS}")), key=order)


def read_facts(folder: pathlib.Path) -> dict[str, Any]:
    """What the run saw of the step; ``stage`` is the name of its stage."""
    return json.loads((folder / FACTS).read_text(encoding="utf-8"))


def repeat(
    folder: pathlib.Path, stage: Stage, frozen: Weights, mesh: Mesh
) -> tuple[dict[str, Any], list[str]]:
    """Compute loss and gradient of a bundle again.

    Args:
      folder: of the bundle.
      stage: that was trained; ``facts["stage"]`` of the bundle names it.
      frozen: {stage: its EMA} of the stages that it needs, on the mesh.
      mesh: the device mesh.

    Returns:
      What the run saw, and a line for each finding now: the batch, the loss and every leaf of the gradient that
      is not finite.

    Raises:
      ValueError: the bundle is of another stage.
    """
    facts = read_facts(folder)
    if facts["stage"] != stage.name:
        raise ValueError(f"{folder}: expected a step of stage {stage.name}, found one of {facts['stage']}")
    recipe = stage.recipe.folded(facts["number"])
    abstract = abstract_state(stage.objective, recipe, mesh)
    with np.load(folder / "batch.npz") as archive:
        whole = Batch(**archive)
    size = len(whole.frames)
    rows = global_batch.local_rows(size, mesh)
    with jax.set_mesh(mesh), Checkpoints(folder / "state", 1, None) as checkpoints:
        restored = checkpoints.restore(abstract)
        assert restored is not None  # the bundle holds a checkpoint
        state, _ = restored
        batch = global_batch.assemble(jax.tree.map(lambda leaf: leaf[rows], whole), rows, size, mesh)
        key = jax.random.fold_in(run_keys(recipe)[1], facts["step"])
        differentiated = jax.jit(jax.value_and_grad(stage.objective.loss, has_aux=True))
        (value, _), grads = differentiated(state.params, dict(frozen), batch, key)
        wrong = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), tree))
        lines = [f"loss: {value.item()}"]
        lines += _listing("batch", whole) + _listing("parameter", wrong(state.params), counted=True)
        lines += _listing("gradient of", wrong(grads), counted=True)
    return facts, lines


def _listing(what: str, tree: Any, counted: bool = False) -> list[str]:
    """A line for each leaf that holds values that are not finite."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    counts = [(path, int(leaf) if counted else int(np.sum(~np.isfinite(leaf)))) for path, leaf in leaves]
    names = ((jax.tree_util.keystr(path, simple=True, separator="/"), count) for path, count in counts)
    return [f"{what} {name}: {count} values are not finite" for name, count in names if count]


def versions() -> dict[str, Any]:
    """The version of jax and the devices."""
    return {"jax": jax.__version__, "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
