"""Cost of a grown run relative to a standard run of equal steps, and of a growth step in updates.

python benchmarks/growth.py [--steps 300]
"""

import shutil
import tempfile
import time

import jax
from common import Step, alternate, config_of, emit, parser, ratio, spread

from loopjax import surgery
from loopjax.depth import lidas
from loopjax.train import train


def transition(args) -> dict:
    """Seconds of growing 20 layers to 24, moments included, in updates of the 24."""
    step = Step(config_of(args.size, "24", remat=args.remat))
    shallow = Step(config_of(args.size, "20", remat=args.remat)).state
    order = lidas(20, 4)

    def grow():
        grown = surgery.grow(shallow, order)
        jax.block_until_ready(grown)

    seconds = alternate({"step": step, "grow": grow}, args.rounds)
    return {"step_s": spread(seconds["step"]), "grow_s": spread(seconds["grow"]),
            "grow_in_steps": ratio(seconds["grow"], seconds["step"])}  # fmt: skip


def runs(args) -> dict:
    """Wall-clock of whole runs, in turn."""
    seconds, compiles, flops = ({"standard": [], "lidas": []} for _ in range(3))
    for number in range(args.repeats):
        names = list(seconds)[:: 1 if number % 2 else -1]
        for name in names:
            config = config_of(args.size, "12", remat=args.remat, steps=args.steps, warmup_steps=-1)
            config.cooldown.steps = -1
            config.checkpoint_every = config.log_every = 10**6
            config.growth.operator = "" if name == "standard" else name
            workdir = tempfile.mkdtemp()
            begun = time.perf_counter()
            result = train(config, workdir)
            seconds[name].append(time.perf_counter() - begun)
            compiles[name].append(result["compile_s"])
            flops[name].append(result["training_flops"])
            shutil.rmtree(workdir)
    rest = {n: [s - c for s, c in zip(seconds[n], compiles[n], strict=True)] for n in seconds}
    flops_ratio = flops["lidas"][0] / flops["standard"][0]
    whole, without = (ratio(s["lidas"], s["standard"]) for s in (seconds, rest))
    return {
        "wall_clock_s": {name: spread(values) for name, values in seconds.items()},
        "compile_s": {name: spread(values) for name, values in compiles.items()},
        "flops_ratio": flops_ratio,
        "wall_clock_ratio": whole,
        "wall_clock_ratio_without_compilation": without,
        "over_the_flops_ratio": whole["median"] / flops_ratio,
        "over_the_flops_ratio_without_compilation": without["median"] / flops_ratio,
    }


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--repeats", type=int, default=3)
    args = arguments.parse_args()
    emit("growth", args, transition=transition(args), runs=runs(args))


if __name__ == "__main__":
    main()
