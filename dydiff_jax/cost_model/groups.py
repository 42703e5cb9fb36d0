"""Parse XLA's notations for groups of devices that take part in a collective."""

import itertools
import math
import re

import numpy as np

Groups = tuple[tuple[int, ...], ...]


def parse(text: str, devices: int) -> Groups:
    """Parse the groups at the start of a text, as one tuple of device numbers each.

    ``{{0,1},{2,3}}`` lists them; ``{}`` is one group of all devices; ``[2,4]<=[4,2]T(1,0)`` is an iota of shape [4, 2],
    transposed, reshaped to [2, 4], each row a group; ``mesh['a'=4,'b'=2] {'b'}`` is a mesh and the axes along which a
    group varies.

    Args:
      text: the value of ``replica_groups=``, and anything behind it.
      devices: number of devices that run the program.

    Raises:
      ValueError: the notation is unknown.
    """
    if text.startswith("{}"):
        return (tuple(range(devices)),)
    if found := re.match(r"\{(\{[\d,{}]*\})\}", text):
        return lists(found[1])
    if found := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _rows(_iota(found[2]).reshape(_numbers(found[1])))
    if found := re.match(r"mesh\[(.*?)\](?:, device_ids=\((\[.*?|[\d,]*)\)(?= \{))? \{(.*?)\}", text):
        return _mesh(*found.groups())
    raise ValueError(f"expected replica groups in a known notation, found {text[:120]!r}")


def lists(text: str) -> Groups:
    """Parse ``{0,1},{2,3}``."""
    return tuple(_numbers(part) for part in re.findall(r"\{([\d,]+)\}", text))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _rows(table: np.ndarray) -> Groups:
    return tuple(map(tuple, table.tolist()))


def _iota(text: str) -> np.ndarray:
    """``[2,4]T(1,0)``: an iota of this shape, transposed."""
    shape, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    sizes = _numbers(shape)
    return (
        np.arange(math.prod(sizes)).reshape(sizes).transpose(_numbers(order) if order else range(len(sizes)))
    )


def _mesh(axes: str, ids: str | None, chosen: str) -> Groups:
    """``mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}``: the last chosen axis varies fastest within a group.

    A part of an axis may be chosen: ``'a':(2)2`` is the factor of 2 behind a leading factor of 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    picked = [
        (name, int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    ]
    factors = []  # (axis, product of the factors before it in that axis, size), in the order of the axes
    for name, whole in sizes.items():
        cuts = sorted({1, whole}.union(*((before, before * size) for n, before, size in picked if n == name)))
        factors += [(name, low, high // low) for low, high in itertools.pairwise(cuts)]
    inner = [
        number
        for axis, before, size in picked
        for number, (name, low, _) in enumerate(factors)
        if name == axis and before <= low < before * size
    ]
    outer = [number for number in range(len(factors)) if number not in inner]
    count = math.prod(sizes.values())
    order = np.arange(count)
    if ids is not None:
        order = _iota(ids) if ids.startswith("[") else np.asarray(_numbers(ids))
    table = order.reshape([size for _, _, size in factors]).transpose(outer + inner)
    return _rows(table.reshape(-1, math.prod(factors[number][2] for number in inner)))
