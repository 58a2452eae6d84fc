"""Train a model, or go on with a run that was stopped.

    loopjax train --config=configs/tiny.py:lidas --workdir=DIR [--config.key=value ...]

The keys, and what they mean, are in loopjax/config.py.
"""

import re

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import config_flags

from loopjax import config as config_lib
from loopjax.errors import UserError


def define(values: flags.FlagValues, argv: list[str]):
    """Defines the flags of `train` on `values`."""
    config = config_flags.DEFINE_config_file(
        "config",
        help_string="a file of configs/, with a variant behind a colon",
        flag_values=values,
        sys_argv=argv,
        lock_config=True,
    )
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    flags.DEFINE_string(
        "coordinator", None, "host:port of process 0, for several processes", flag_values=values
    )
    flags.DEFINE_integer("num_processes", None, "how many processes", flag_values=values)
    flags.DEFINE_integer("process_id", None, "which one this is", flag_values=values)
    flags.DEFINE_bool(
        "distributed", False, "several processes, found by the cluster (TPU, Slurm)",
        flag_values=values,
    )  # fmt: skip
    return config


def parse(argv: list[str]):
    """(config, flags) of a command line; raises UserError in one sentence."""
    values = flags.FlagValues()
    argv = ["loopjax train", *argv]
    define(values, argv)
    if any(arg in ("-h", "--help", "--helpfull") for arg in argv):
        print(__doc__)
        print(values.module_help(__name__))
        raise SystemExit(0)
    try:
        rest = values(argv)[1:]
        config = values.config
        if config is not None:
            config.to_dict()  # a file that failed to load says so only when it is used
    except (AttributeError, KeyError, flags.Error, OSError, TypeError, ValueError) as error:
        raise UserError(_explain(argv, error)) from None
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag; write --config=FILE --workdir=DIR")
    for name in ("config", "workdir"):
        if values[name].value is None:
            raise UserError(f"--{name} is missing; write --config=FILE --workdir=DIR")
    return config, values


def _explain(argv, error) -> str:
    """One sentence for what absl and ml_collections raise."""
    path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), None)
    text = " ".join(str(error).split())
    if "Traceback" in text:  # an error of the config file itself: its last line says what
        return f"--config={path}: " + str(error).strip().splitlines()[-1]
    if isinstance(error, OSError) and path:
        reason = re.search(r"\[Errno \d+\] ([^:']+)", text)
        return f"--config={path} cannot be loaded: {reason[1] if reason else text}"
    if path and isinstance(error, AttributeError | KeyError):
        for arg in argv:
            match = re.match(r"--config\.([\w.]+)", arg)
            if match and not _exists(config_lib.default(), match[1]):
                return config_lib.unknown_field(config_lib.default(), match[1])
    return text


def _exists(config, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(config, "keys") or part not in config:
            return False
        config = config[part]
    return True


def main(argv: list[str]) -> int:
    config, values = parse(argv)
    if values.coordinator or values.distributed:
        jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)
        # The first collective has to be entered by all within 30 s on the CPU (Gloo): make it
        # here, where the processes have just met, not after each has opened its data.
        multihost_utils.sync_global_devices("start")
    # Imported after the start of the distributed system: the backend must not be up before it.
    from loopjax.train import train

    train(config, values.workdir)
    return 0
