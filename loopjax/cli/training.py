"""Command lines of `loopjax train` and `loopjax finetune`."""

from absl import flags

from loopjax.config_flags import parse


def train(argv: list[str]) -> int:
    """Train a model by a config, or resume a stopped run.

    Run the same command again to resume: the run continues from the newest checkpoint in --workdir.

    Examples:
      loopjax train --config=configs/tiny.py:lidas --workdir=runs/lidas
      loopjax train --config=configs/tiny.py --workdir=runs/wide --config.model.d_model=128
    """
    config, values = parse("train", train.__doc__, argv, _define_run, required=("workdir",))
    return _train(config, values)


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

        _meet(values)  # before the checkpoint is read: reading it initializes JAX
        return config_for(values.checkpoint, values.pairs)

    required = ("checkpoint", "pairs", "workdir")
    config, values = parse("finetune", finetune.__doc__, argv, define, required, make)
    return _train(config, values, meet=False)


def _define_run(values) -> None:
    one = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "directory of the run", **one)
    flags.DEFINE_string(
        "coordinator", None, "address of process 0, for a run of several processes", **one
    )
    flags.DEFINE_integer("num_processes", None, "total number of processes", **one)
    flags.DEFINE_integer("process_id", None, "index of this process", **one)
    flags.DEFINE_bool(
        "distributed", False, "several processes, found through the cluster (TPU, Slurm)", **one
    )


def _meet(values) -> None:
    """Brings several processes together."""
    import jax
    from jax.experimental import multihost_utils

    if values.coordinator or values.distributed:
        jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)
        # All processes must enter the first collective within 30 s on the CPU (Gloo): do it here,
        # where they have just met, not after each has opened its data.
        multihost_utils.sync_global_devices("start")


def _train(config, values, meet: bool = True) -> int:
    if meet:
        _meet(values)
    from loopjax import train as training

    training.train(config, values.workdir)
    return 0
