"""The protocol of an experiment that is too large for this machine, traced: nothing is trained.

For every run this traces the update at its shapes (forward and backward), estimates memory per
device on the machine of the scale (the papers' are 128 A100 of 40 GB; as many of them as a batch has
sequences), counts FLOPs and prints the command.
"""

import dataclasses
import shlex

MFU = 0.4


def check(module, study) -> list[dict]:
    """Prints a row for each run that an experiment declares, with its command."""
    module.runs(study)
    number, device = study.scale.machine
    print(f"{module.TITLE}: {len(study.declared)} runs on {number} {device}\n")
    return traced(study)


def traced(study) -> list[dict]:
    """Prints a row for each run that is declared, with its command."""
    configs: dict = {}
    for workdir, command in study.declared.items():
        configs[workdir] = config_of(command, configs)
    rows = []
    for workdir, command in study.declared.items():
        row = _traced(workdir.name, configs[workdir], *study.scale.machine)
        print(
            f"{row['run']}\n  plan {row['plan']}, {row['parameters']:,} parameters, "
            f"{row['pflops']:,.0f} PFLOPs, {row['gib']:.1f} GiB per device, {row['hours']:.2f} hours"
            f"\n  loopjax {shlex.join(command)}",
            flush=True,
        )
        rows.append(row)
    return rows


def config_of(command: list[str], configs: dict):
    """The config of a command that trains.

    Args:
      configs: {directory: config} of the runs before it. Fine-tuning takes the config of its base run from
        them, since no checkpoint exists yet.
    """
    from loopjax import finetune
    from loopjax.config import model_config
    from loopjax.config_flags import parse

    name, *flags = command
    if name == "train":
        return parse(name, "", flags, _workdir)[0]
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    base = next(c for w, c in configs.items() if str(w) == values["checkpoint"])
    meta = {
        "config": base.to_dict(),
        "model": dataclasses.asdict(model_config(base)),
        "plan": str(base.depth),
    }
    tuned = finetune.config_from(meta, values["checkpoint"], values["pairs"])
    overrides = [flag for flag in flags if flag.startswith("--config.")]
    return parse(name, "", overrides, make=lambda _: tuned)[0]


def _workdir(values) -> None:
    from absl import flags

    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)


def _traced(name: str, config, number: int, device: str) -> dict:
    from loopjax import cost

    machine = cost.Machine.of(device, min(number, config.batch_size), MFU)
    plan = cost.plan_of(config, machine)
    counted = cost.flops_of(config)
    return {
        "run": name,
        "plan": plan["phases"][-1]["plan"],
        "parameters": counted["params_unique"],
        "pflops": counted["training_pflops"],
        "gib": plan["peak"] / 2**30,
        "hours": plan["hours"],
    }
