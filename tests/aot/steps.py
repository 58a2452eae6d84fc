"""A training step of a small model with the structure of the published ones, compiled."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Two layers run twice: nested scans, as in all looped models. T, D, F and V differ, also divided by
# the devices, so that a buffer says by its shape what it holds. A part of D is at least 128.
SMALL = {
    "batch_size": 8, "seq_len": 384, "depth": "2x2", "microbatches": 1, "model.d_model": 512,
    "model.d_ff": 1024, "model.n_heads": 8, "model.n_kv_heads": 4, "model.vocab_size": 6144,
}  # fmt: skip


def compiled_step(topology: str, directory: pathlib.Path, **fields) -> dict:
    """The update of a small model, as `loopjax compile` describes it.

    It runs in a process of its own: a compiler must be chosen before JAX is imported, and the tests
    switch off optimizations. Skips the test where there is no such compiler.
    """
    package = "jax_cuda13_plugin" if topology.startswith(("h", "a", "b")) else "libtpu"
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed")
    settings = {**SMALL, **{key.replace("__", "."): value for key, value in fields.items()}}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    out = directory / "compiled.json"
    command = ["compile", f"--config={ROOT / 'configs' / 'smollm.py'}:1.7b,baseline", *flags]
    command += [f"--topology={topology}", "--programs=update", f"--json={out}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    ran = subprocess.run(
        [sys.executable, "-m", "loopjax.cli.main", *command],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines() == [f"compiling update of plan 2x2 for {topology}"]
    return json.loads(out.read_text())
