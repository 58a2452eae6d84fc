"""The files of a run of any config, with the result that a test wants, without training."""

import json

from loopjax import config as config_lib
from loopjax import flops, run
from loopjax.files import write_json


def finished_run(directory, heldout, *, until=None, log=None, **fields):
    """Writes the directory of a run.

    Args:
      heldout: held-out metrics of its end.
      until: step that an unfinished run has reached; None for a finished one.
      log: content of train.log.
      fields: what differs from a small model; "__" stands for a dot, `growth__operator="lidas"`.
    """
    config = config_lib.default()
    config.update(steps=20, batch_size=8, seq_len=9, depth="4", warmup_steps=2)
    config.cooldown.steps = 3
    config.model.update(vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2)
    for name, value in fields.items():
        *folders, name = name.split("__")
        node = config
        for folder in folders:
            node = node[folder]
        node[name] = value
    outline = run.outline(config)
    plan, steps = outline.phases[-1].plan, config.steps
    directory.mkdir(parents=True)
    write_json(directory / "config.json", outline.config.to_dict())
    write_json(directory / "phases.json", [phase.to_json() for phase in outline.phases])
    (directory / "metrics.jsonl").write_text(
        json.dumps({"step": until or steps, "loss": 1.0, "flops": 1.0}) + "\n"
    )
    if log is not None:
        (directory / "train.log").write_text(log)
    if until is None:
        spent = sum(
            (phase.stop - phase.start) * flops.training_flops(outline.cfg, phase.plan, config)
            for phase in outline.phases
        )
        write_json(directory / "result.json", {
            "steps": steps, "plan": str(plan), "unique_layers": plan.n_unique,
            "effective_layers": plan.n_effective, "heldout": heldout, "wall_clock_s": 61.0,
            "parameters": flops.count_params(outline.cfg, plan.n_unique),
            "training_flops": float(spent), "flops_before": 0.0,
        })  # fmt: skip
    return directory
