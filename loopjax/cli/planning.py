"""Command lines of `loopjax flops` and `loopjax plan`."""

import argparse
import json
import math

from absl import flags

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

    Nothing is compiled or allocated.

    Example:
      loopjax plan --config=configs/smollm.py:1.7b,lidas --devices=64 --memory=80GB
    """

    def define(values):
        one = {"flag_values": values}
        flags.DEFINE_integer("devices", 1, "number of devices", lower_bound=1, **one)
        flags.DEFINE_string("memory", "", "memory per device, such as 80GB or 40GiB", **one)
        flags.DEFINE_float("peak-tflops", 990.0, "peak TFLOP/s per device", lower_bound=1e-6, **one)
        flags.DEFINE_float(
            "mfu",
            0.4,
            "model FLOPs utilization: fraction of --peak-tflops reached",
            1e-6,
            1.0,
            **one,
        )
        flags.DEFINE_enum("platform", "gpu", ["gpu", "tpu", "cpu"], "kind of device", **one)
        flags.DEFINE_bool("json", False, "output as one JSON object", **one)

    config, values = parse("plan", plan.__doc__, argv, define)
    try:
        size = arguments.size(values.memory) if values.memory else 0
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--memory: {error}") from None
    for name in ("peak-tflops", "mfu"):
        if not math.isfinite(values[name].value):
            raise UserError(f"--{name}={values[name].value} must be finite")
    from loopjax import cost

    peak = 1e12 * values["peak-tflops"].value
    machine = cost.Machine(values.devices, size, peak, values.mfu, values.platform)
    result = cost.plan_of(config, machine)
    print(json.dumps(result) if values.json else cost.plan_text(result))
    return 0
