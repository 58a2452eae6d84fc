"""Memory, threads and open files stay flat: over the batches of a long run, and over its steps."""

import gc
import os
import threading

import numpy as np

from loopjax.callbacks import Callback
from loopjax.run import plan_run
from loopjax.train import train
from tests.faults import EVERYTHING
from tests.tiny_config import get_config

BATCHES = 100_000 if EVERYTHING else 20_000
STEPS = 5_000 if EVERYTHING else 1_000


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(values: list[float]) -> float:
    """What the last quarter holds more than the second one, on average."""
    quarter = len(values) // 4
    return float(np.mean(values[-quarter:]) - np.mean(values[quarter : 2 * quarter]))


def test_the_memory_of_the_data_pipeline_is_flat(outcome):
    config = get_config()
    config.steps = BATCHES
    config.growth.operator = ""
    run = plan_run(config)
    batches = run.stream.batches(np.arange(8), 0)
    sizes = []
    for n in range(BATCHES):
        next(batches)
        if n % (BATCHES // 100) == 0:
            gc.collect()
            sizes.append(resident_mb())
    assert growth(sizes) < 5, sizes
    outcome("endurance", f"{BATCHES:,} batches", f"{growth(sizes):+.1f} MB")


class Watch(Callback):
    """Memory, threads and open files at every hundredth of a run."""

    def __init__(self):
        self.sizes, self.threads, self.files = [], [], []

    def on_step(self, row):
        if row["step"] % (STEPS // 100) == 0:
            gc.collect()
            self.sizes.append(resident_mb())
            self.threads.append(threading.active_count())
            self.files.append(len(os.listdir("/proc/self/fd")))


def test_the_memory_of_a_long_run_is_flat(tmp_path, outcome):
    config = get_config()
    config.steps = STEPS
    config.growth.operator = ""
    config.checkpoint_every = STEPS // 20
    config.keep_last = 2
    config.eval_every = STEPS // 20
    watch = Watch()
    train(config, tmp_path, [watch])
    assert growth(watch.sizes) < 10, watch.sizes
    assert growth(watch.files) < 2, watch.files
    assert growth(watch.threads) < 2, watch.threads
    outcome("endurance", f"{STEPS:,} steps", f"{growth(watch.sizes):+.1f} MB")
