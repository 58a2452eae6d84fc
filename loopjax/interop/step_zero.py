"""The metadata of an imported model: a checkpoint as of a run of zero steps."""

import dataclasses

from loopjax import config as config_lib
from loopjax.checkpoint import versions
from loopjax.model_config import ModelConfig


def about(cfg: ModelConfig, plan: str, seq_len: int, tokenizer: str | None) -> dict:
    """`meta` of a checkpoint of step 0, without "source".

    Args:
      plan: order in which the layers run.
      seq_len: context length in tokens.
      tokenizer: its name, as `tokenizers.name_of` has it; "bytes"; None without one.
    """
    config = config_lib.default()
    model = dataclasses.asdict(cfg)
    config.loop.update(model.pop("loop"))
    if model.pop("exit_gate"):  # training it further trains the gate with it
        config.losses.exit_gate = "joint"
    config.model.update(model)
    config.update(depth=plan, seq_len=seq_len, steps=0)
    return {
        "plan": plan,
        "lineage": [{"step": 0, "operator": "import", "plan": plan, "order": None}],
        "phases": [],
        "data": {},
        "tokenizer": tokenizer,
        "model": dataclasses.asdict(cfg),
        "config": config.to_dict(),
        "branched_from": "",
        "wall_clock_s": 0.0,
        "versions": versions(),
    }
