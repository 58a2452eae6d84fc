"""Bytes that a compiled program moves through the memory of a device, and the buffers it makes."""

import math

from loopjax.aot import collectives, hlo

# These move nothing: they name parts of buffers, or set buffers aside.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency", "iota",
}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding")
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(module: hlo.Module, platform: str) -> int:
    """Bytes that a run of a program reads from and writes to the main memory of its device.

    Each instruction reads its operands and writes its results once; a fusion keeps what is inside
    it on the chip. Of an operand of which only a slice is used, the slice counts, and of an array
    that is updated in place, the update. Bodies of loops count as often as they run. Caches are
    not modelled, nor what a Pallas or cuDNN kernel reads more than once.
    """
    return sum(
        times * _moved(module, module.computations[name], instruction, platform)
        for name, times in module.executions.items()
        for instruction in module.computations[name].instructions.values()
    )


def buffers(module: hlo.Module) -> set[hlo.Array]:
    """The arrays that a program keeps in buffers, wherever: results of all but fused instructions."""
    return {
        array
        for name in module.executions
        for instruction in module.computations[name].instructions.values()
        if instruction.opcode not in _FREE - {"constant", "iota", "while"}
        for array in instruction.arrays
    }


def _in_hbm(array: hlo.Array, platform: str) -> bool:
    """Whether an array is in the main memory: on a TPU memory space 0, on a GPU all but the host's."""
    return array.space == 0 if platform == "tpu" else array.space != 5


def _size(arrays, platform: str) -> int:
    return sum(array.bytes for array in arrays if _in_hbm(array, platform))


def _moved(module, computation, instruction: hlo.Instruction, platform: str) -> int:
    """Bytes of one execution of an instruction that is not inside a fusion."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    if opcode == "custom-call" and any(call in instruction.attributes for call in _FREE_CALLS):
        return 0
    if opcode in ("fusion", "async-start") and instruction.called:
        fused = module.computations[instruction.called]
        return _fusion(module, computation, instruction, fused, platform)
    source = computation.instructions[instruction.operands[0]] if instruction.operands else None
    if opcode == "send":  # the operand, a token
        return _size(source.arrays, platform)
    if opcode == "copy-start":
        return _size([*source.arrays, instruction.arrays[0]], platform)
    if opcode == "slice-start":  # ((operand), result, context)
        result = instruction.arrays[len(computation.types(instruction.operands))]
        read = result.bytes if _in_hbm(source.arrays[0], platform) else 0
        return read + _size([result], platform)
    if opcode in _SLICES:
        read = sum(a.bytes for a in instruction.arrays) if _size(source.arrays, platform) else 0
        return read + _size(instruction.arrays, platform)
    if opcode == "dynamic-update-slice":
        update = computation.instructions[instruction.operands[1]].arrays[0]
        written = update.bytes if _size(instruction.arrays, platform) else 0
        return _size([update], platform) + written
    results = instruction.arrays
    if opcode.endswith("-start"):  # (operands, results, context)
        results = results[len(computation.types(instruction.operands)) :] or results
    return _size(computation.types(instruction.operands), platform) + _size(results, platform)


def _fusion(module, computation, instruction, fused: hlo.Computation, platform: str) -> int:
    """Bytes that a fusion reads and writes."""
    total = 0
    for number, operand in enumerate(instruction.operands):
        for array in computation.instructions[operand].arrays:
            if _in_hbm(array, platform):
                total += int(min(array.bytes, _read(module, fused, number)))
    results = instruction.arrays
    if instruction.opcode == "async-start":  # (operands, results, context)
        results = results[len(computation.types(instruction.operands)) :]
    for array, bytes_written in zip(results, _written(module, fused, fused.root), strict=False):
        total += bytes_written if _in_hbm(array, platform) else 0
    return total


def _read(module, fused: hlo.Computation, number: int) -> float:
    """Bytes that a fusion reads of its operand `number`; infinity for all of it."""
    if number >= len(fused.parameters):
        return math.inf
    return _read_of(module, fused, fused.parameters[number].name)


def _read_of(module, fused: hlo.Computation, name: str) -> float:
    total = 0.0
    for user in fused.users.get(name, []):
        first = user.operands[0] == name
        if collectives.continues(fused, user):
            continue
        if user.opcode == "bitcast":
            total += _read_of(module, fused, user.name)
        elif user.opcode in _SLICES and first:
            total += sum(array.bytes for array in user.arrays)
        elif user.opcode == "dynamic-update-slice" and first:
            continue
        elif user.opcode == "fusion":
            inner = module.computations[user.called]
            places = [n for n, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(module, inner, n) for n in places)
        elif user.opcode == "tuple" and user.name == fused.root:
            continue  # handed on
        else:
            return math.inf
    return total


def _written(module, fused: hlo.Computation, name: str) -> list[int]:
    """Bytes that a fusion writes of each array of an instruction of its own."""
    instruction = fused.instructions[name]
    if instruction.opcode == "tuple":
        return [
            size for operand in instruction.operands for size in _written(module, fused, operand)
        ]
    if instruction.opcode == "parameter":
        return [0 for _ in instruction.arrays]  # handed on
    whole = [array.bytes for array in instruction.arrays]
    if collectives.continues(fused, instruction):
        return [0 for _ in whole]
    if "AsyncCollectiveStart" in instruction.attributes:  # (operand, result, semaphores)
        return [0, *whole[1:]]
    if instruction.opcode == "bitcast":
        return [min(whole[0], _written(module, fused, instruction.operands[0])[0]) or whole[0]]
    if instruction.opcode == "dynamic-update-slice":
        return [fused.instructions[instruction.operands[1]].arrays[0].bytes]
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called]
        return _written(module, inner, inner.root)
    return whole
