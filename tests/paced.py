"""A config, or imported by one: every step takes 20 ms or more, so that a run still trains when a
signal that was sent at one of its first steps arrives, however fast the machine."""

import sys
import time

from configs.tiny import get_config  # noqa: F401
from loopjax.step_metrics import StepMetrics

push = StepMetrics.push


def paced(self, *args, **kwargs):
    time.sleep(0.02)
    return push(self, *args, **kwargs)


if sys.argv[1:2] == ["train"]:  # not in a process of tests that reads the points of a sweep
    StepMetrics.push = paced
