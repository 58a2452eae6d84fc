"""Every test sees 8 fake CPU devices, so nothing about sharding is skipped."""

import gzip
import json
import signal

import jax

jax.config.update("jax_num_cpu_devices", 8)
# Tests compile much and compute little.
jax.config.update("jax_disable_most_optimizations", True)

# Tests send it; what nohup starts ignores it, and so do its own processes.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from loopjax.config import default  # noqa: E402

settings.register_profile("loopjax", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("loopjax")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the golden files of expected text instead of comparing with them",
    )


def tiny_run():
    """A run of 12 steps that a test can afford: 3 stages by LIDAS, a mixture switch, p-hop."""
    config = default()
    config.steps = 12
    config.batch_size = 8
    config.seq_len = 9
    config.depth = "3"
    config.growth.update(operator="lidas", block=1)
    config.cooldown.steps = 3
    config.mixture = {"p_hop_1": 3.0, "p_hop_2": 1.0}
    config.cooldown.mixture = {"p_hop_1": 1.0, "p_hop_3": 1.0}
    config.data_threads = 1
    config.learning_rate = 1e-2
    config.warmup_steps = 2
    config.checkpoint_every = 2
    config.keep_last = 0
    config.eval_batches = 1
    config.model.update(
        vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2, dtype="float32"
    )
    return config


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
