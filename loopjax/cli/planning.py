"""Command lines of `loopjax flops` and `loopjax plan`."""

import argparse
import dataclasses
import json
import math

from absl import flags

from loopjax import devices
from loopjax.cli import arguments
from loopjax.config_flags import parse
from loopjax.errors import UserError


def flops(argv: list[str]) -> int:
    """Count the parameters and FLOPs of a config, next to the standard model of its depth.

    Example:
      loopjax flops --config=configs/smollm.py:1.7b,lidas
    """

    def define(values):
        flags.DEFINE_bool("json", False, "output as one JSON object", flag_values=values)

    config, values = parse("flops", flops.__doc__, argv, define)
    from loopjax import cost

    result = cost.flops_of(config)
    print(json.dumps(result) if values.json else cost.flops_text(result))
    return 0


def plan(argv: list[str]) -> int:
    """Estimate sharding, memory and time of a config on devices that need not be present.

    Nothing is compiled or allocated. The peaks of published models are 0.9 to 1.1 times those of the
    compilers for TPUs and GPUs, which `loopjax compile` asks.

    Example:
      loopjax plan --config=configs/smollm.py:1.7b,lidas --devices=64 --device=v5p
    """

    def define(values):
        one = {"flag_values": values}
        flags.DEFINE_integer("devices", 1, "number of devices", lower_bound=1, **one)
        flags.DEFINE_string("device", "h100", f"chip: {', '.join(devices.CHIPS)}", **one)
        flags.DEFINE_string(
            "memory", None, "memory per device, such as 80GB or 40GiB, instead of the chip's", **one
        )
        flags.DEFINE_float(
            "peak-tflops",
            None,
            "peak TFLOP/s per device at bfloat16, instead of the chip's",
            lower_bound=1e-6,
            **one,
        )
        flags.DEFINE_float(
            "mfu",
            0.4,
            "model FLOPs utilization: fraction of the peak that is reached",
            1e-6,
            1.0,
            **one,
        )
        flags.DEFINE_bool(
            "causal", False, "half of the FLOPs of attention, in the time and in --mfu", **one
        )
        flags.DEFINE_bool("json", False, "output as one JSON object", **one)

    config, values = parse("plan", plan.__doc__, argv, define)
    from loopjax import cost

    machine = cost.Machine.of(values.device, values.devices, values.mfu)
    changes = {}
    try:
        if values.memory is not None:
            changes["memory"] = arguments.size(values.memory)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--memory: {error}") from None
    peak = values["peak-tflops"].value
    for name, value in (("peak-tflops", peak), ("mfu", values.mfu)):
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name}={value} must be finite")
    if peak is not None:
        changes["peak_flops"] = 1e12 * peak
    machine = dataclasses.replace(machine, **changes)
    result = cost.plan_of(config, machine, causal=values.causal)
    print(json.dumps(result) if values.json else cost.plan_text(result))
    return 0
