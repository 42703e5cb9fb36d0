"""Main memory traffic of a compiled XLA program."""

import math

from dydiff_jax.cost_model.reader import Array, Computation, Instruction, Program

#: Instructions without traffic of their own; for those that call computations, the contents count.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "iota",
    "after-all", "partition-id", "replica-id", "opt-barrier", "async-start", "async-update",
}  # fmt: skip


def traffic(text: str) -> int:
    """Bytes read from and written to main memory in one execution of a compiled program, per device.

    Every instruction reads its operands and writes its result. Intermediates of a fusion and on-chip buffers of a TPU
    are free; of an array that is only sliced, or updated in place, the slice counts. Loops are multiplied by their trip
    count, or by 1 if it is unknown. With caches that keep reused data, this is an upper bound.
    """
    program, total = Program(text), 0
    for instruction, frame, count in program.executions():
        if (
            frame.site is frame
            and instruction.opcode not in _FREE
            and not instruction.opcode.endswith("-done")
        ):
            total += _moved(instruction, frame.computation, program) * (1 if count is None else count)
    return total


def products(text: str, itemsize: int) -> int:
    """Bytes of operands and results of all matrix products and convolutions: a lower bound of the traffic.

    It is attained if everything else is fused with them.

    Args:
      text: the compiled program.
      itemsize: bytes of an element, in place of the program's own: XLA:CPU widens the operands of products.
    """
    total = 0
    for instruction, frame, count in Program(text).executions():
        if instruction.opcode in ("dot", "convolution"):
            taking_part = (instruction, *frame.computation.operands(instruction))
            elements = sum(math.prod(array.shape) for part in taking_part for array in part.arrays)
            total += elements * itemsize * (1 if count is None else count)
    return total


def _moved(instruction: Instruction, computation: Computation, program: Program) -> int:
    if instruction.opcode == "fusion":
        (fused,) = program.called(instruction)
        return sum(_read(parameter, fused) for parameter in fused.parameters) + _written(fused)
    operands = computation.operands(instruction)
    read = sum(_bytes(operand.arrays) for operand in operands)
    if instruction.opcode in ("copy-start", "slice-start"):
        ends = instruction.arrays[:2]
        return min(end.bytes for end in ends) * sum(end.in_main_memory for end in ends)
    if instruction.opcode in ("dynamic-slice", "gather") or instruction.opcode.endswith("-start"):
        return 2 * min(read, _bytes(instruction.arrays))
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _bytes(operands[1].arrays)
    return read + _bytes(instruction.arrays) * ("AllocateBuffer" not in instruction.attributes)


def _bytes(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.in_main_memory)


def _read(parameter: Instruction, fused: Computation) -> int:
    """Bytes that a fusion reads of one of its parameters."""
    whole, parts = _bytes(parameter.arrays), 0
    for user in fused.instructions.values():
        if parameter.name in user.operands:
            if (
                user.opcode not in ("dynamic-slice", "dynamic-update-slice")
                or parameter.name in user.operands[1:]
            ):
                return whole
            parts += user.bytes if user.opcode == "dynamic-slice" else 0
    return min(parts, whole)


def _written(fused: Computation) -> int:
    """Bytes that a fusion writes: its result, or the slice of it that is updated in place."""
    results = fused.operands(fused.root) if fused.root.opcode == "tuple" else (fused.root,)
    updates = (fused.operands(r)[1] if r.opcode == "dynamic-update-slice" else r for r in results)
    whole = (_bytes(result.arrays) for result in results)
    return sum(min(update.bytes, size) for update, size in zip(updates, whole, strict=True))
