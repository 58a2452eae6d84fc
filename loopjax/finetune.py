"""Supervised fine-tuning: the config of a run that begins with a checkpoint's weights.

`loopjax finetune` is `loopjax train` with this config, of which every field can be overridden. The
loss is on completions; the run ends when the held-out loss no longer falls, and its checkpoint is
the best one.
"""

import pathlib

from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax import resume
from loopjax.errors import UserError

RATE = 0.1  # of the learning rate that the checkpoint was trained with


def config_for(checkpoint: str, pairs: str) -> ConfigDict:
    """The config of a fine-tuning run; depth, operator, rate and all others may then be changed.

    Args:
      checkpoint: DIR or DIR@STEP, of a run or imported.
      pairs: what it is trained on, joined by commas: files of prompts and completions
        (NAME.jsonl, of one directory; NAME.jsonl:N for the first N), or items of reasoning
        primitives (var_assign_code_1:64).
    """
    config = config_lib.default()
    config.init_from = checkpoint
    return config_from(resume.find(config).meta, checkpoint, pairs)


def config_from(meta: dict, checkpoint: str, pairs: str) -> ConfigDict:
    """The same of what the checkpoint says about itself."""
    config = config_lib.default()
    config.init_from, config.init = checkpoint, "weights"
    made_by = meta["config"]
    config.model.update(meta["model"])
    config.depth = meta["plan"]
    config.data_dir, name = source_of(pairs)
    config.mixture = ConfigDict({name: 1.0})
    config.seq_len, config.batch_size = made_by["seq_len"], 8
    config.steps, config.warmup_steps, config.cooldown.steps = 1000, 10, 0
    config.learning_rate = RATE * made_by["learning_rate"]
    config.eval_every, config.eval_batches, config.patience = 10, 8, 5
    config.keep_last = 1
    return config


def source_of(pairs: str) -> tuple[str, str]:
    """(data_dir, name of the source) of what the command line says."""
    folders, names = set(), []
    for part in pairs.split(","):
        path, colon, count = part.partition(":")
        if path.endswith(".jsonl"):
            file = pathlib.Path(path)
            if not file.is_file():
                raise UserError(f"--pairs {path} is not a file")
            folders.add(str(file.parent))
            path = file.name.removesuffix(".jsonl")
        names.append(path + colon + count)
    if len(folders) > 1:
        raise UserError(f"--pairs names files of several directories: {', '.join(sorted(folders))}")
    return folders.pop() if folders else "", "+".join(names)
