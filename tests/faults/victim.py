"""`loopjax train` that sends itself a signal at a chosen moment.

    python -m tests.faults.victim MOMENT NTH SIGNAL FLAG...

MOMENT is a key of `MOMENTS`: a function whose NTH call the signal interrupts, before it or after it.
"random" interrupts after NTH milliseconds instead. The flags are those of `loopjax train`.
VICTIM_LIMITS, e.g. {"RLIMIT_NOFILE": 64}, limits what the process may use.
"""

import importlib
import json
import os
import resource
import signal
import sys
import threading
import time

# moment: (module, attribute, before or after the call)
MOMENTS = {
    "restore": ("loopjax.checkpoint", "Checkpoints.restore_latest", "before"),
    "restored": ("loopjax.checkpoint", "Checkpoints.restore_latest", "after"),
    "compile": ("loopjax.run", "Run.jitted_update", "before"),
    "grow": ("loopjax.surgery", "grow", "before"),
    "grown": ("loopjax.surgery", "grow", "after"),
    "new phase": ("loopjax.step_metrics", "StepMetrics.start_phase", "before"),
    "step": ("loopjax.step_metrics", "StepMetrics.push", "after"),
    "evaluate": ("loopjax.heldout", "HeldoutEvaluation.__call__", "before"),
    "evaluated": ("loopjax.heldout", "HeldoutEvaluation.__call__", "after"),
    "save": ("loopjax.checkpoint", "Checkpoints.save", "before"),
    "write": ("loopjax.checkpoint", "Checkpoints.save", "after"),  # a thread is writing
    "finish": ("loopjax.checkpoint", "Checkpoints.wait", "before"),
    "result": ("loopjax.train", "write_json", "before"),
}
MARK = "victim: interrupted at"


def interrupt(moment: str, signum: int) -> None:
    print(f"{MARK} {moment}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signum)


def wrap(moment: str, nth: int, signum: int) -> None:
    module, attribute, when = MOMENTS[moment]
    *owners, name = attribute.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        if name == "write_json" and args[0].name != "result.json":
            return function(*args, **kwargs)
        calls.append(1)
        if when == "before" and len(calls) == nth:
            interrupt(moment, signum)
        value = function(*args, **kwargs)
        if when == "after" and len(calls) == nth:
            interrupt(moment, signum)
        return value

    setattr(owner, name, wrapped)


def later(milliseconds: int, signum: int) -> None:
    def run():
        time.sleep(milliseconds / 1000)
        interrupt("random", signum)

    threading.Thread(target=run, daemon=True).start()


if __name__ == "__main__":
    moment, nth, name, *argv = sys.argv[1:]
    signum = signal.Signals[name]
    for limit, value in json.loads(os.environ.get("VICTIM_LIMITS", "{}")).items():
        resource.setrlimit(getattr(resource, limit), (value, value))
    if moment == "random":
        later(int(nth), signum)
    elif moment != "never":
        wrap(moment, int(nth), signum)
    from loopjax.cli import main as cli

    sys.argv = ["loopjax", "train", *argv]
    cli.run()
