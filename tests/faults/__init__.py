"""Attacks on runs: kills, damaged files, other devices, full disks, odd command lines.

All are marked slow. `FAULTS=all` (`make test-faults`) tries every fault instead of a sample of them.
"""

import os

EVERYTHING = os.environ.get("FAULTS") == "all"
