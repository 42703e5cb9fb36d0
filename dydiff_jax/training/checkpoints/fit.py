"""Check a checkpoint's tree, shapes and dtypes against the model."""

from typing import Any

import jax

from dydiff_jax.distributed import mesh as meshes

#: Leaves that a message names.
SHOWN = 8


def check(path: Any, part: str, found: Any, expected: Any) -> None:
    """Compare shapes and dtypes leaf by leaf: orbax itself would cast a dtype without a word.

    Args:
      path: of the checkpoint.
      part: of it that is compared.
      found: its tree of shapes and dtypes, or arrays.
      expected: the tree that it is to fill.

    Raises:
      ValueError: names the leaves that differ.
    """
    listing = mismatches(part, found, expected)
    if listing:
        raise ValueError(
            f"checkpoint {path} does not fit the model:\n{listing}\n"
            "Use the configuration it was made with, or another work directory."
        )


def mismatches(part: str, found: Any, expected: Any) -> str:
    """A line for each of the first leaves whose shape or dtype differs; empty if all agree."""
    found, expected = _describe(found), _describe(expected)
    lines = [
        f"  {part}/{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted(found | expected)
        if found.get(name) != expected.get(name)
    ]
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def _describe(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {meshes.leaf_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
