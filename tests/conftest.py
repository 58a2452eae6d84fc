"""Every test sees 8 fake CPU devices, so nothing about sharding is skipped."""

import atexit
import gc
import gzip
import importlib.metadata
import json
import os
import pathlib
import shutil
import signal
import tempfile

# Many tests, and the processes that they start, compile the same programs. The cache lasts as long
# as the process that starts the suite; its workers inherit the variable.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="loopjax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Tests and the processes that they start compile much and compute little. XLA's fusion emitters take most of
# the time of a compilation; later versions have no others, and refuse the flag.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

# Each worker of pytest-xdist has cores of its own: the threads of a program wait for each other in every
# operation, so workers that share all cores stop each other.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: workers] or cores)

import jax

jax.config.update("jax_num_cpu_devices", 8)

# Tests send it; what nohup starts ignores it, and so do its own processes.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.tiny_config import get_config as tiny_run  # noqa: E402

settings.register_profile("loopjax", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("loopjax")


@pytest.fixture(autouse=True, scope="module")
def _programs_are_freed():
    """A process may have 65,530 memory mappings (Linux), which thousands of compiled programs would fill."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 25_000:
        jax.clear_caches()
        gc.collect()


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the golden files of expected text instead of comparing with them",
    )


@pytest.fixture
def tiny_config():
    return tiny_run()


@pytest.fixture
def corpus(tmp_path):
    """300 documents of 13 to 87 characters in two files, and the files."""
    documents = [f"document {i}: " + "lorem ipsum " * (i % 7) for i in range(300)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": d}) + "\n" for d in documents[:200])
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents[200:]))
    return documents, [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"]
