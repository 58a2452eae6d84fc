"""Command lines of `loopjax train` and `loopjax finetune`."""

import contextlib
import ctypes
import signal

from absl import flags

from loopjax import limits
from loopjax.signals import Signals


def train(argv: list[str]) -> int:
    """Train a model by a config, or resume a stopped run.

    Run the same command again to resume: the run continues from the newest checkpoint in --workdir.

    Examples:
      loopjax train --config=configs/tiny.py:lidas --workdir=runs/lidas
      loopjax train --config=configs/tiny.py --workdir=runs/wide --config.model.d_model=128
      loopjax train --config=configs/tiny.py --workdir=runs/traced --profile_steps=10:15
    """
    with Signals("train") as signals:
        limits.check()
        from loopjax.config_flags import parse

        config, values = parse("train", train.__doc__, argv, _define_run, required=("workdir",))
        with _meeting(values, signals) as processes:
            return _train(config, values, processes)


def finetune(argv: list[str]) -> int:
    """Fine-tune a checkpoint on prompts and completions.

    The loss is on completions. Training ends when the held-out loss no longer falls, and the best
    checkpoint is kept. The config is derived from the checkpoint; --config.KEY=VALUE overrides it.

    Examples:
      loopjax finetune --checkpoint=runs/lidas --pairs=math.jsonl --workdir=runs/math
      loopjax finetune --checkpoint=runs/lidas@4000 --pairs=var_assign_code_1:64 --workdir=runs/va
    """

    def define(values):
        one = {"flag_values": values}
        flags.DEFINE_string("checkpoint", None, "checkpoint to fine-tune", **one)
        flags.DEFINE_string(
            "pairs",
            None,
            "training data: JSONL files with prompts and completions, or reasoning primitives with "
            "the number of items",
            **one,
        )
        _define_run(values)

    def make(values):
        from loopjax.finetune import config_for

        # Before the checkpoint is read: reading it initializes JAX.
        met.append(stack.enter_context(_meeting(values, signals)))
        return config_for(values.checkpoint, values.pairs)

    met = []
    required = ("checkpoint", "pairs", "workdir")
    with Signals("finetune") as signals, contextlib.ExitStack() as stack:
        limits.check()
        from loopjax.config_flags import parse

        config, values = parse("finetune", finetune.__doc__, argv, define, required, make)
        return _train(config, values, met[0])


def _define_run(values) -> None:
    one = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "directory of the run", **one)
    flags.DEFINE_string(
        "coordinator", None, "address of process 0, for a run of several processes", **one
    )
    flags.DEFINE_integer("num_processes", None, "total number of processes", **one)
    flags.DEFINE_integer("process_id", None, "index of this process", **one)
    flags.DEFINE_float(
        "start_timeout", 300.0, "seconds to wait for the other processes to start", **one
    )
    flags.DEFINE_bool(
        "distributed", False, "several processes, found through the cluster (TPU, Slurm)", **one
    )
    flags.DEFINE_string(
        "profile_steps",
        None,
        "steps to trace into the workdir's profile/, for XProf, both included",
        **one,
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "directory of compiled programs, which later runs read; off: none (default "
        "JAX_COMPILATION_CACHE_DIR, else ~/.cache/loopjax/programs)",
        **one,
    )


@contextlib.contextmanager
def _meeting(values, signals: Signals):
    """The processes of the run, which have met when the block begins, and part when it ends."""
    from loopjax import cluster
    from loopjax.processes import Group, Processes

    place = cluster.place(
        values.coordinator, values.num_processes, values.process_id, values.distributed
    )
    if place is None:
        yield Processes(signals)
        return
    with Group(signals, place.coordinator, place.count, place.index, values.start_timeout) as group:
        group.meet()
        import jax
        from jax.experimental import multihost_utils

        # `signals` and `group` agree on the step to stop at.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            group.jax_address,
            place.count,
            place.index,
            place.local_device_ids,
            "deactivate",
            # `group` looks for signs of life, and says what it misses; JAX aborts.
            heartbeat_timeout_seconds=86_400,
        )
        _delay_aborts()
        group.agree("devices", {"devices": jax.local_device_count()})
        # All processes must enter the first collective within 30 s on the CPU (Gloo): do it here,
        # where they have just met, not after each has opened its data.
        multihost_utils.sync_global_devices("start")
        yield group
        jax.distributed.shutdown()


def _delay_aborts() -> None:
    """Leaves `group` the time to end this process with a sentence and its exit code.

    JAX aborts at once when it loses process 0, sometimes before `group` has its turn. The handler is
    sleep(signum) of C: the thread that aborts waits for 6 s, the others go on; then it aborts.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _train(config, values, processes) -> int:
    from loopjax import compilation_cache
    from loopjax import train as training

    compilation_cache.enable(values.compilation_cache)
    training.train(config, values.workdir, processes=processes, profile_steps=values.profile_steps)
    return 0
