"""Runs of `tiny_config.py` in processes of their own, and what they leave."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from loopjax import checkpoint
from loopjax.files import read_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "tests/tiny_config.py"


class Cluster:
    """Starts processes that share a compilation cache, so that a restart takes seconds."""

    def __init__(self, cache: pathlib.Path):
        self.env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, workdir, *flags, moment="never", nth=1, signal="SIGKILL", devices=2, limits=()):
        command = [
            sys.executable, "-m", "tests.faults.victim", moment, str(nth), signal,
            f"--config={CONFIG}", f"--workdir={workdir}", "--config.eval_every=2", *flags,
        ]  # fmt: skip
        own = {"JAX_NUM_CPU_DEVICES": str(devices), "VICTIM_LIMITS": json.dumps(dict(limits))}
        return subprocess.Popen(
            command, cwd=ROOT, env={**self.env, **own},
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, workdir, *flags, timeout=120, **kwargs) -> tuple[int, str]:
        """(exit code, standard error) of one process."""
        return end(self.start(workdir, *flags, **kwargs), timeout)


def end(process, timeout=120) -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, err


def rows(workdir) -> list[dict]:
    """All that was logged, without what depends on the clock."""
    timing = ("tokens_per_s", "step_s", "seconds", "mfu", "compile_s", "wall_clock_s", "eta_s")
    kept = read_rows(pathlib.Path(workdir) / "metrics.jsonl")
    return [
        {k: v for k, v in row.items() if k not in timing and not k.startswith("time")}
        for row in kept
    ]


def result(workdir) -> dict:
    """result.json without what depends on the clock."""
    content = json.loads((pathlib.Path(workdir) / "result.json").read_text())
    return {k: v for k, v in content.items() if not k.endswith("_s")}


def newest(workdir) -> pathlib.Path:
    """The directory of the newest checkpoint."""
    directory, step = checkpoint.locate(str(workdir))
    return directory / str(step)


def bits(workdir, step=None) -> dict[str, bytes]:
    """Every array of a checkpoint, parameters, moments and step counter: its bits by its name."""
    directory, step = checkpoint.locate(str(workdir), step)
    path = directory / str(step)
    names = checkpoint.read_meta(directory, step)["checksums"]
    futures = {name: checkpoint.array(path, name) for name in names}
    return {
        name: np.asarray(future.result().read().result()).tobytes()
        for name, future in futures.items()
    }


def assert_same(workdir, whole) -> None:
    """The final state, every logged value and the result of two runs are equal to the bit."""
    assert rows(workdir) == rows(whole)
    assert bits(workdir) == bits(whole)
    assert result(workdir) == result(whole)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]
