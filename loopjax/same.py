"""Whether the processes of a run have the same program, config, data and directory."""

import functools
import hashlib
import json
import pathlib
import time

from loopjax import config as config_lib
from loopjax.checkpoint import versions
from loopjax.errors import UserError
from loopjax.lock import Lock
from loopjax.processes import Processes
from loopjax.run import Run

# Fields that describe a machine. The data themselves are compared by their fingerprint.
LOCAL = ("data_dir", "tokenizer", "data_threads")
VISIBLE_S = 60.0  # until a new file is seen on other machines: network file systems cache


def check_program(processes: Processes, config) -> None:
    """Raises UserError when the processes run another config or other code; needs no device."""
    if processes.count == 1:
        return
    fields = config_lib.flatten(config.to_dict())
    processes.agree(
        "config",
        {f"config.{name}": value for name, value in fields.items() if name not in LOCAL}
        | {f"version of {name}": version for name, version in versions().items()}
        | {"code of loopjax (SHA-256)": _digest_of_code()},
    )


def check_data(processes: Processes, run: Run) -> None:
    """Raises UserError when the processes have other data."""
    if processes.count > 1:
        fingerprint = json.loads(json.dumps(run.stream.fingerprint(run.config.steps)))
        values = config_lib.flatten(fingerprint)
        processes.agree("data", {f"data fingerprint {name}": v for name, v in values.items()})


def check_workdir(processes: Processes, lock: Lock) -> None:
    """Raises UserError when the directory is not on storage that all processes share.

    Returns when process 0, which has the lock, has checked that it can be written.
    """
    if processes.count == 1:
        return
    owner = processes.exchange("lock", lock.owner())[0]
    deadline = time.monotonic() + VISIBLE_S
    while lock.owner() != owner:
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir {lock.path.parent} of {processes.name(processes.index)} is not that of "
                f"{processes.name(0)}; it must be on storage that all processes share"
            )
        time.sleep(0.5)
    processes.exchange("workdir", None)


@functools.cache
def _digest_of_code() -> str:
    folder = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
