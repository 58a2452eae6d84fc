"""Shared by the benchmarks: a model to time, alternating measurements, JSON with the hardware."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import jax

from loopjax import run as run_lib
from loopjax.checkpoint import versions
from loopjax.config import default
from loopjax.model_config import REMAT
from loopjax.step import abstract_state, sharded_init

SIZES = {  # D, F, heads, KV heads, V, sequences, T, compute type
    "laptop": (256, 704, 4, 4, 4096, 8, 256, "float32"),
    "360m": (960, 2560, 15, 5, 49152, 32, 2048, "bfloat16"),
    "1.7b": (2048, 8192, 32, 32, 49152, 8, 2048, "bfloat16"),
}


def parser(text: str) -> argparse.ArgumentParser:
    """Arguments of every benchmark."""
    out = argparse.ArgumentParser(description=text)
    out.add_argument("--size", choices=SIZES, default="laptop")
    out.add_argument("--rounds", type=int, default=7, help="number of alternating measurements")
    out.add_argument("--remat", default="dots", choices=REMAT)
    return out


def config_of(size: str, depth: str, **settings):
    """A config of the benchmark's shapes on all devices, random text of the standard library."""
    D, F, H, K, V, B, T, dtype = SIZES[size]
    config = default()
    config.update(depth=depth, batch_size=B, seq_len=T, eval_batches=0)
    config.model.update(vocab_size=V, d_model=D, d_ff=F, n_heads=H, n_kv_heads=K, dtype=dtype)
    config.mesh.update(data=1, fsdp=-1)
    config.model.update({k: settings.pop(k) for k in list(settings) if k in config.model})
    config.update(settings)
    return config


class Step:
    """One compiled update of a plan, its state, and a constant batch."""

    def __init__(self, config):
        self.run = run_lib.plan_run(config)
        run, plan = self.run, self.run.phases[-1].plan
        self.plan, depth = plan, plan.n_unique
        with run_lib.on_mesh(run):
            abstract = abstract_state(run.cfg, depth, run.optimizer, run.mesh, run.rules)
            self.state = sharded_init(run.cfg, abstract, depth, run.optimizer, 0)
            self.batch = run.to_device(next(run.stream.batches(run.rows, 0)))
            begun = time.perf_counter()
            lowered = run.jitted_update(plan, self.state).lower(self.state, self.batch)
            self.trace_s = time.perf_counter() - begun
            self.compiled = lowered.compile()
            self.compile_s = time.perf_counter() - begun - self.trace_s

    def __call__(self):
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready(metrics)

    def bytes(self) -> int:
        """State and temporaries, as XLA reports them."""
        sizes = self.compiled.memory_analysis()
        return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes

    def flops(self) -> int:
        return self.run.flops_per_step(self.run.phases[-1])


def alternate(functions: dict, rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """Seconds per call of each function in every round; each is called in turn in each round."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for number in range(rounds):
        # Every other round runs backwards, so that the order of execution has no effect.
        for name in list(functions)[:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            for _ in range(calls):
                functions[name]()
            seconds[name].append((time.perf_counter() - begun) / calls)
        print(f"round {number + 1}/{rounds}", file=sys.stderr)
    return seconds


def spread(values) -> dict:
    """{"median", "min", "max"}."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(above: list[float], below: list[float], scale: float = 1.0) -> dict:
    """Ratio of two lists of seconds, round by round."""
    return spread(scale * a / b for a, b in zip(above, below, strict=True))


def hardware() -> dict:
    """The machine and versions of a measurement."""
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"devices": devices, "cpu": f"{os.cpu_count()} x {cpu}", "versions": versions()}


def emit(name: str, args, **figures) -> None:
    """Prints the result as JSON."""
    print(json.dumps({"benchmark": name, **vars(args), **figures, **hardware()}, indent=1))
