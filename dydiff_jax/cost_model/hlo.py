"""Collectives and FLOPs per device of one execution of a compiled XLA program."""

import dataclasses
import math
import re

import numpy as np

from dydiff_jax.cost_model import groups
from dydiff_jax.cost_model.reader import Computation, Execution, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
      kind: one of `KINDS`.
      bytes: size on one device of the full array: the result of an all-gather, the operand of all other kinds.
      dtype: element type of its first array.
      groups: devices that communicate, numbered row by row in the mesh; pairs (from, to) for a collective-permute.
      count: number of executions.
      computation: name of the computation that contains it.
      source: XLA's name of the model's operation that it comes from.
    """

    kind: str
    bytes: int
    dtype: str
    groups: groups.Groups
    count: int
    computation: str
    source: str

    @property
    def group_size(self) -> int:
        """Number of devices in a group."""
        return len(self.groups[0])


def collectives(text: str) -> list[Collective]:
    """List the collectives of a compiled program in execution order.

    An asynchronous collective counts once, at its start; if it is split over fusions, as on a TPU, its parts share a
    channel. A TPU program has a reduce-scatter as a fusion named all-reduce-scatter: an all-reduce and a slice.

    Raises:
      ValueError: the trip count of a loop around one is unknown, or the notation of its groups is.
    """
    program = Program(text)
    found, seen = [], set()
    for execution in program.executions():
        instruction, frame = execution.instruction, execution.frame
        if instruction.opcode.removesuffix("-start") not in KINDS:
            continue
        channel = instruction.attribute(r"channel_id=(\d+)")
        if channel is not None and (frame.site, channel) in seen:
            continue
        seen.add((frame.site, channel))
        found.append(_collective(execution, program.devices))
    return found


def _collective(execution: Execution, devices: int) -> Collective:
    instruction, computation = execution.instruction, execution.frame.computation
    kind = instruction.opcode.removesuffix("-start")
    if kind == "collective-permute":
        members = groups.lists(instruction.attribute(r"source_target_pairs=\{([\d,{}]*)\}"))
    else:
        members = groups.parse(instruction.attribute(r"replica_groups=(.*)"), devices)
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    operands = computation.operands(instruction)
    size = sum(operand.bytes for operand in operands)
    return Collective(
        kind=kind,
        bytes=size * len(members[0]) if kind == "all-gather" else size,
        dtype=operands[0].arrays[0].dtype,
        groups=members,
        count=_count(execution),
        computation=execution.frame.site.computation.name,
        source=instruction.attribute(r'op_name="([^"]*)"') or "",
    )


def _count(execution: Execution) -> int:
    if execution.count is None:
        raise ValueError(
            f"{execution.instruction.name} in {execution.frame.computation.name}: expected loops around it whose "
            "count the program tells, found one that stops by data"
        )
    return execution.count


def flops(text: str) -> int:
    """FLOPs of the matrix products and convolutions, per device.

    A product of [m, k] and [k, n] takes 2 m k n. A convolution takes 2 for each input feature and each pair of output
    and input element that its window connects; products with padding or with the zeros of a dilation do not count.

    Raises:
      ValueError: the trip count of a loop around one is unknown.
    """
    work = {"dot": _dot, "convolution": _convolution}
    return sum(
        work[execution.instruction.opcode](execution.instruction, execution.frame.computation)
        * _count(execution)
        for execution in Program(text).executions()
        if execution.instruction.opcode in work
    )


def _dot(instruction: Instruction, computation: Computation) -> int:
    left = computation.operands(instruction)[0].arrays[0].shape
    contracted = re.findall(r"\d+", instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "")
    return 2 * math.prod(instruction.arrays[0].shape) * math.prod(left[int(d)] for d in contracted)


def _convolution(instruction: Instruction, computation: Computation) -> int:
    left, kernel = (operand.arrays[0].shape for operand in computation.operands(instruction)[:2])
    out = instruction.arrays[0].shape
    inputs, weights, outputs = re.split(r"_|->", instruction.attribute(r"dim_labels=([^,\s]+)"))
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    options = dict(part.split("=") for part in window.split())
    spatial = sorted(label for label in outputs if label.isdigit())
    pairs = 1
    for number, label in enumerate(spatial):
        values = {key: value.split("x")[number] for key, value in options.items()}
        pairs *= window_pairs(
            left[inputs.index(label)],
            kernel[weights.index(label)],
            out[outputs.index(label)],
            low=int(values.get("pad", "0_0").split("_")[0]),
            stride=int(values.get("stride", 1)),
            holes=(int(values.get("lhs_dilate", 1)), int(values.get("rhs_dilate", 1))),
        )
    return 2 * out[outputs.index("b")] * out[outputs.index("f")] * kernel[weights.index("i")] * pairs


def window_pairs(size: int, window: int, out: int, low: int, stride: int, holes: tuple[int, int]) -> int:
    """Number of pairs (o, w) of output and window positions for which o stride + w holes_w - low is an element."""
    few, many = sorted(((out, stride), (window, holes[1])))
    places = np.arange(many[0]) * many[1] - low
    inside = (places + step * few[1] for step in range(few[0]))
    return sum(int(np.sum((at >= 0) & (at <= (size - 1) * holes[0]) & (at % holes[0] == 0))) for at in inside)
