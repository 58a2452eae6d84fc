"""FLOPs of the matrix products of a compiled program, as often as they run."""

import json
import math
import re

from loopjax.aot import hlo


def product_flops(module: hlo.Module) -> int:
    """FLOPs of all products outside of kernels: `dot`, `convolution` (a TPU's form), cuBLAS calls."""
    return sum(
        times * _flops(computation, instruction)
        for name, times in module.executions.items()
        for computation, instruction in module.all_instructions(name)
    )


def _flops(computation: hlo.Computation, instruction: hlo.Instruction) -> int:
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "dot":
        axes = _numbers(_field(instruction.attributes, r"lhs_contracting_dims=\{([\d,]*)\}"))
    elif instruction.opcode == "custom-call" and "__cublas$" in instruction.attributes:
        config = re.search(r"backend_config=(\{.*\})", instruction.attributes)
        gemm = json.loads(config[1]).get("gemm_backend_config", {}) if config else {}
        axes = gemm.get("dot_dimension_numbers", {}).get("lhs_contracting_dimensions", [])
        axes = [int(axis) for axis in axes]
    else:
        return 0
    left = computation.instructions[instruction.operands[0]].arrays[0]
    contracted = math.prod(left.dims[axis] for axis in axes)
    return 2 * math.prod(instruction.arrays[0].dims) * contracted


def _convolution(computation: hlo.Computation, instruction: hlo.Instruction) -> int:
    """FLOPs of a convolution: multiplications with padding are not counted.

    The TPU's compiler writes batched products as convolutions whose window is as large as a batch
    axis and whose padding leaves one element of it.
    """
    attributes = instruction.attributes
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    lhs, rhs = (computation.instructions[name].arrays[0].dims for name in instruction.operands[:2])
    result = instruction.arrays[0].dims
    window = _field(attributes, r"window=\{([^}]*)\}")
    options = dict(part.split("=") for part in window.split())
    flops = 2 * result[out.index("b")] * result[out.index("f")] * rhs[right.index("i")]
    for axis in sorted(label for label in out if label.isdigit()):
        n = int(axis)
        low, _high = map(int, _part(options, "pad", n, "0_0").split("_"))
        flops *= _taps(
            size=lhs[left.index(axis)],
            window=rhs[right.index(axis)],
            out=result[out.index(axis)],
            low=low,
            stride=int(_part(options, "stride", n, "1")),
            spread=int(_part(options, "lhs_dilate", n, "1")),
            window_spread=int(_part(options, "rhs_dilate", n, "1")),
        )
    groups = int(_field(attributes, r"batch_group_count=(\d+)") or 1)
    return flops // groups


def _taps(*, size, window, out, low, stride, spread, window_spread) -> int:
    """Pairs of an output position and a window position that meet an element of the input."""
    last = (size - 1) * spread
    places = (o * stride + w * window_spread - low for o in range(out) for w in range(window))
    return sum(0 <= place <= last and place % spread == 0 for place in places)


def _part(options: dict[str, str], key: str, n: int, default: str) -> str:
    return options[key].split("x")[n] if key in options else default


def _field(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
