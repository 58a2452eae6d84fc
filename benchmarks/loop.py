"""Cost of a loop relative to unlooped layers: step time per executed layer, compilation, memory.

python benchmarks/loop.py [--size laptop|360m|1.7b]
"""

import jax
import jax.numpy as jnp
from common import Step, alternate, config_of, emit, parser, ratio, spread

from loopjax import devices


def matmul_peak(dtype: str, n: int) -> float:
    """FLOP/s of a square matrix product on one device, measured."""
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    seconds = alternate({"matmul": lambda: product(a).block_until_ready()}, 5, calls=10)
    return 2 * n**3 / min(seconds["matmul"])


def main():
    args = parser(__doc__).parse_args()
    plans = {"24": "24", "4x6": "4x6", "4-4x4-4": "4-4x4-4", "4": "4"}
    steps = {name: Step(config_of(args.size, p, remat=args.remat)) for name, p in plans.items()}
    seconds = alternate(steps, args.rounds)
    dtype = steps["24"].run.cfg.dtype
    peak = matmul_peak(dtype, 2048 if args.size == "laptop" else 8192)
    chip = devices.of(jax.devices()[0])
    data_sheet = chip and chip.peak_flops
    reached = {n: spread(s.flops() / t for t in seconds[n]) for n, s in steps.items()}
    emit(
        "loop",
        args,
        step_s={name: spread(times) for name, times in seconds.items()},
        compile_s={name: step.compile_s for name, step in steps.items()},
        trace_s={name: step.trace_s for name, step in steps.items()},
        bytes={name: step.bytes() for name, step in steps.items()},
        # All three execute 24 layers: the ratio of steps is the ratio per executed layer.
        loop_4x6_to_24=ratio(seconds["4x6"], seconds["24"]),
        loop_4_4x4_4_to_24=ratio(seconds["4-4x4-4"], seconds["24"]),
        compile_24_to_4=steps["24"].compile_s / steps["4"].compile_s,
        flops_per_s=reached,
        matmul_flops_per_s=peak * jax.device_count(),
        fraction_of_matmul={
            name: value["median"] / (peak * jax.device_count()) for name, value in reached.items()
        },
        mfu=data_sheet
        and {n: v["median"] / (data_sheet * jax.device_count()) for n, v in reached.items()},
    )


if __name__ == "__main__":
    main()
