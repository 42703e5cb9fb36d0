"""Parse the text of a compiled XLA program (HLO): computations, and the execution count of each instruction.

XLA's own cost analysis counts the body of a loop once. Here it is multiplied by the trip count.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

#: Bits of element types whose name does not state them.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
#: Instructions that leave the value of a scalar unchanged.
_TRANSPARENT = ("copy", "bitcast", "reshape", "convert", "copy-done", "opt-barrier")


class Array(NamedTuple):
    """Type of one array: dtype, shape, and whether it resides in main memory (HBM)."""

    dtype: str
    shape: tuple[int, ...]
    in_main_memory: bool = True

    @property
    def bytes(self) -> int:
        """Size without layout padding."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.search(r"\d+", self.dtype)[0])
        return math.ceil(math.prod(self.shape) * bits / 8)


def arrays(text: str) -> tuple[Array, ...]:
    """Parse the arrays of a type in HLO notation; tuples are flattened."""
    return tuple(
        Array(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n), "S(1)" not in layout)
        for dtype, dims, layout in _ARRAY.findall(text)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique within its computation.
      type: type of the result, as text.
      opcode: name of the operation.
      arguments: text between the parentheses.
      attributes: text behind the parentheses.
      root: whether it is the result of its computation.
    """

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str
    root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return tuple(_NAME.findall(self.arguments))

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Arrays of the result."""
        return arrays(self.type)

    @property
    def bytes(self) -> int:
        """Size of the result."""
        return sum(array.bytes for array in self.arrays)

    def attribute(self, pattern: str) -> str | None:
        """Match a pattern in the attributes and return its first group."""
        found = re.search(pattern, self.attributes)
        return found and found[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """A function of the program: its instructions by name, in textual order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """Instruction that yields the result."""
        return next(i for i in self.instructions.values() if i.root)

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Parameters in order."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.arguments)))

    def operands(self, instruction: Instruction) -> tuple[Instruction, ...]:
        """Instructions that produce the operands of an instruction."""
        return tuple(self.instructions[name] for name in instruction.operands)


class Frame(NamedTuple):
    """A stack frame: a computation, the instruction that calls it, and the caller's frame (None for the entry)."""

    computation: Computation
    caller: Instruction | None = None
    outer: "Frame | None" = None

    @property
    def site(self) -> "Frame":
        """Innermost frame outside all fusions and asynchronous wrappers."""
        wrapped = self.caller is not None and self.caller.opcode in ("fusion", "async-start")
        return self.outer.site if wrapped else self


class Execution(NamedTuple):
    """An instruction, its frame and its execution count; None if the trip count of an enclosing loop is unknown."""

    instruction: Instruction
    frame: Frame
    count: int | None


class Program:
    """A compiled program."""

    def __init__(self, text: str):
        self.header = text.partition("\n")[0]
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self._parse(text)

    @property
    def devices(self) -> int:
        """Number of devices that run it."""
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", self.header)
        return math.prod(map(int, counts))

    def _parse(self, text: str) -> None:
        name, lines = "", {}
        for line in text.splitlines():
            if opening := _COMPUTATION.match(line):
                name, lines = opening[2], {}
                self.entry = name if opening[1] else self.entry
            elif line.startswith("}"):
                self.computations[name] = Computation(name, lines)
            elif found := _INSTRUCTION.match(line):
                instruction = _instruction(found[2], re.sub(r"/\*.*?\*/", "", found[3]), bool(found[1]))
                lines[instruction.name] = instruction
        if self.entry not in self.computations:
            raise ValueError("expected the text of a compiled program, found no ENTRY computation")

    def executions(self) -> Iterator[Execution]:
        """Iterate over all executed instructions with their counts; every branch of a conditional counts as taken."""
        return self._walk(Frame(self.computations[self.entry]), 1)

    def _walk(self, frame: Frame, count: int | None) -> Iterator[Execution]:
        for instruction in frame.computation.instructions.values():
            yield Execution(instruction, frame, count)
            inner = count
            if instruction.opcode == "while":
                trips = self.trips(instruction, frame)
                inner = None if trips is None or count is None else count * trips
            for computation in self.called(instruction):
                yield from self._walk(Frame(computation, instruction, frame), inner)

    def called(self, instruction: Instruction) -> list[Computation]:
        """Computations that an instruction calls."""
        return [self.computations[name] for name in _called(instruction)]

    def trips(self, loop: Instruction, frame: Frame) -> int | None:
        """Trip count of a loop; None if it cannot be derived from the text.

        XLA's own annotation if present; else ceil((limit - start) / step) for a counter with constant start, step and
        limit.
        """
        if noted := _TRIPS.search(loop.attributes):
            return int(noted[1])
        condition = self.computations[loop.attribute(r"condition=%([\w.\-]+)")]
        inside = Frame(condition, loop, frame)
        test, inside = self._inline(condition.root, inside)
        if test.opcode != "compare" or test.attribute(r"direction=(\w+)") not in ("LT", "LE"):
            return None
        counter, _ = self._inline(inside.computation.instructions[test.operands[0]], inside)
        limit = self._scalar(inside.computation.instructions[test.operands[1]], inside)
        if counter.opcode != "get-tuple-element" or limit is None:
            return None
        index = int(counter.attribute(r"index=(\d+)"))
        start = self._element(frame.computation.instructions[loop.operands[0]], index, frame)
        step = self._step(loop, frame, index)
        if start is None or not step:
            return None
        limit += test.attribute(r"direction=(\w+)") == "LE"
        return max(0, math.ceil((limit - start) / step))

    def _step(self, loop: Instruction, frame: Frame, index: int) -> int | None:
        found, place = self._carried(loop, index, frame)
        if found.opcode != "add":
            return None
        parts = (self._scalar(place.computation.instructions[name], place) for name in found.operands)
        known = [part for part in parts if part is not None]
        return known[0] if len(known) == 1 else None

    def _carried(self, loop: Instruction, index: int, frame: Frame) -> tuple[Instruction, Frame]:
        """Instruction that yields the next value of an element of a loop's state."""
        body = Frame(self.called(loop)[0], loop, frame)
        result, place = self._inline(body.computation.root, body)
        if result.opcode != "tuple":
            return result, place
        return self._inline(place.computation.instructions[result.operands[index]], place)

    def _inline(self, instruction: Instruction, frame: Frame) -> tuple[Instruction, Frame]:
        """Resolve an instruction through copies and through the boundaries of fusions and calls."""
        while True:
            if instruction.opcode in _TRANSPARENT:
                instruction = frame.computation.instructions[instruction.operands[0]]
            elif instruction.opcode in ("fusion", "call"):
                frame = Frame(self.called(instruction)[0], instruction, frame)
                instruction = frame.computation.root
            elif (
                instruction.opcode == "parameter"
                and frame.caller
                and frame.caller.opcode in ("fusion", "call")
            ):
                name = frame.caller.operands[int(instruction.arguments)]
                frame = frame.outer
                instruction = frame.computation.instructions[name]
            else:
                return instruction, frame

    def _scalar(self, instruction: Instruction, frame: Frame) -> int | None:
        """Value of a compile-time constant integer, else None."""
        instruction, frame = self._inline(instruction, frame)
        if instruction.opcode == "constant":
            return int(instruction.arguments) if re.fullmatch(r"-?\d+", instruction.arguments) else None
        if instruction.opcode == "get-tuple-element":
            source = frame.computation.instructions[instruction.operands[0]]
            return self._element(source, int(instruction.attribute(r"index=(\d+)")), frame)
        return None

    def _element(self, source: Instruction, index: int, frame: Frame) -> int | None:
        """Constant value of a tuple element, set in the tuple or carried unchanged by a loop, else None."""
        source, frame = self._inline(source, frame)
        if source.opcode == "tuple":
            return self._scalar(frame.computation.instructions[source.operands[index]], frame)
        if source.opcode == "parameter" and frame.caller and frame.caller.opcode == "while":
            source, frame = frame.caller, frame.outer
        if source.opcode != "while":
            return None
        kept, place = self._carried(source, index, frame)
        if kept.opcode != "get-tuple-element" or int(kept.attribute(r"index=(\d+)")) != index:
            return None
        if place.computation.instructions[kept.operands[0]] not in place.computation.parameters:
            return None
        return self._element(frame.computation.instructions[source.operands[0]], index, frame)


def _called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction calls."""
    pattern = {
        "while": r"body=(%[\w.\-]+)",
        "call": r"to_apply=(%[\w.\-]+)",
        "fusion": r"calls=(%[\w.\-]+)",
        "async-start": r"calls=(%[\w.\-]+)",
        "conditional": r"(?:branch_computations=\{|_computation=)([^}]*)",
    }.get(instruction.opcode)
    if pattern is None:
        return []
    return [name for part in re.findall(pattern, instruction.attributes) for name in _NAME.findall(part)]


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    """Parse ``TYPE opcode(arguments), attributes``."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end + 1)
    closing = _closing(rest, opening)
    return Instruction(
        name, rest[:end], rest[end:opening].strip(), rest[opening + 1 : closing], rest[closing + 1 :], root
    )


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at or behind `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise ValueError(f"expected a closing parenthesis in {text[:80]!r}")
