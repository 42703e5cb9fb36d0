"""What a compiled XLA program does in one run: its collectives, and the arithmetic of each device."""

import dataclasses
import math
import re

import numpy as np

from dydiff_jax.cost_model import groups
from dydiff_jax.cost_model.reader import Computation, Execution, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer among devices.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole array that a group gathers, reduces or exchanges, on one device: the result of an
        all-gather, the operand of everything else.
      dtype: of its first array.
      groups: devices that exchange with each other, by their place in the mesh, row by row; pairs (from, to) for a
        collective-permute.
      count: how often it runs.
      computation: where it stands.
      source: the operation of the model that it belongs to, as XLA names it.
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
        """Devices in a group."""
        return len(self.groups[0])


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, in the order in which they run.

    An asynchronous one counts once, by its start. Where its parts are spread over fusions, as on a TPU, they share a
    channel. A TPU program writes a reduce-scatter as a fusion named all-reduce-scatter, of a sum and its slice.

    Raises:
      ValueError: a loop around one has no readable count, or its groups are written in an unknown way.
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
    """Multiplications and additions of the matrix products and convolutions, per device.

    A product of [m, k] and [k, n] is 2 m k n. A convolution is 2 for each input feature and each pair of an output and
    an input element that its window joins: products with padding, or with the holes of a dilation, are not counted.

    Raises:
      ValueError: a loop around one has no readable count.
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
    """Pairs (o, w) of an output and a place in the window for which o stride + w holes_w - low is an element."""
    few, many = sorted(((out, stride), (window, holes[1])))
    places = np.arange(many[0]) * many[1] - low
    inside = (places + step * few[1] for step in range(few[0]))
    return sum(int(np.sum((at >= 0) & (at <= (size - 1) * holes[0]) & (at % holes[0] == 0))) for at in inside)
