"""Cost of a grown run relative to a standard run of equal steps, and of a growth step in updates.

python benchmarks/growth.py [--steps 300]
"""

import collections
import itertools
import pathlib
import shutil
import statistics
import tempfile
import time

import jax
from common import Step, alternate, config_of, emit, parser, ratio, spread
from jax.experimental.compilation_cache import compilation_cache

from loopjax import surgery
from loopjax.depth import lidas
from loopjax.files import read_rows
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
    """Wall-clock of whole runs in turn, without and with a filled compilation cache."""
    results = {cache: {"standard": [], "lidas": []} for cache in ("cold", "warm")}
    for number in range(args.repeats):
        names = ["standard", "lidas"][:: 1 if number % 2 else -1]
        directories = {name: tempfile.mkdtemp() for name in names}
        for by_name in results.values():
            for name in names:
                by_name[name].append(one_run(args, name, directories[name]))
        for directory in directories.values():
            shutil.rmtree(directory)
    flops = {name: results["cold"][name][0]["training_flops"] for name in ("standard", "lidas")}
    ratio_of_flops = flops["lidas"] / flops["standard"]
    return {"flops_ratio": ratio_of_flops} | {
        cache: compared(by_name, ratio_of_flops) for cache, by_name in results.items()
    }


def one_run(args, name: str, programs: str) -> dict:
    """The result of a run that keeps its programs in a directory, with its "seconds" and "stalls"."""
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    config = config_of(args.size, "12", remat=args.remat, steps=args.steps, warmup_steps=-1)
    config.cooldown.steps = -1
    config.checkpoint_every = config.log_every = 10**6
    config.growth.operator = "" if name == "standard" else name
    workdir = pathlib.Path(tempfile.mkdtemp())
    begun = time.perf_counter()
    result = train(config, workdir)
    result["seconds"] = time.perf_counter() - begun
    result["stalls"] = stalls(workdir)
    shutil.rmtree(workdir)
    return result


def stalls(workdir: pathlib.Path) -> list[float]:
    """Time that the first step of each later plan took longer, in median steps of that plan."""
    pairs = list(itertools.pairwise(read_rows(workdir / "metrics.jsonl")))
    seconds, first = collections.defaultdict(list), {}
    for before, row in pairs:
        took = row["wall_clock_s"] - before["wall_clock_s"]
        if row["plan"] != before["plan"]:
            first[row["plan"]] = took
        else:
            seconds[row["plan"]].append(took)
    return [took / statistics.median(seconds[plan]) - 1 for plan, took in first.items()]


def compared(by_name: dict, ratio_of_flops: float) -> dict:
    """Seconds of the runs, and the wall-clock of grown ones relative to their FLOPs."""

    def of(key):
        return {name: [result[key] for result in results] for name, results in by_name.items()}

    seconds, compiling = of("seconds"), of("compile_s")
    whole = ratio(seconds["lidas"], seconds["standard"])
    return {
        "wall_clock_s": {name: spread(values) for name, values in seconds.items()},
        "waited_for_compilation_s": {name: spread(values) for name, values in compiling.items()},
        "wall_clock_ratio": whole,
        "over_the_flops_ratio": whole["median"] / ratio_of_flops,
        "stalls_in_steps": [result["stalls"] for result in by_name["lidas"]],
    }


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--repeats", type=int, default=3)
    args = arguments.parse_args()
    emit("growth", args, transition=transition(args), runs=runs(args))


if __name__ == "__main__":
    main()
