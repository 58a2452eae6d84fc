"""Supervised fine-tuning: the config of a run initialized from a checkpoint's weights.

`loopjax finetune` is `loopjax train` with this config, and every field can be overridden. The loss
is on completions; the run stops early when the held-out loss no longer falls, and keeps its best
checkpoint.
"""

import pathlib

from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax import resume
from loopjax.errors import UserError

RATE = 0.1  # learning rate relative to that of the checkpoint's training


def config_for(checkpoint: str, pairs: str) -> ConfigDict:
    """The config of a fine-tuning run, every field of which may then be changed.

    Args:
      checkpoint: DIR or DIR@STEP of a run or an imported model.
      pairs: training data, separated by commas: files of prompts and completions in one directory
        (NAME.jsonl, or NAME.jsonl:N for the first N pairs), or items of reasoning primitives
        (var_assign_code_1:64).
    """
    config = config_lib.default()
    config.init_from = checkpoint
    return config_from(resume.find(config).meta, checkpoint, pairs)


def config_from(meta: dict, checkpoint: str, pairs: str) -> ConfigDict:
    """The same, from the metadata of the checkpoint."""
    config = config_lib.default()
    trained = meta["config"]
    config.init_from = checkpoint
    config.init = "weights"
    config.model.update(meta["model"])
    config.depth = meta["plan"]
    config.data_dir, name = source_of(pairs)
    config.mixture = ConfigDict({name: 1.0})
    config.seq_len = trained["seq_len"]
    config.batch_size = 8
    config.steps = 1000
    config.warmup_steps = 10
    config.cooldown.steps = 0
    config.learning_rate = RATE * trained["learning_rate"]
    config.eval_every = 10
    config.eval_batches = 8
    config.patience = 5
    config.keep_last = 1  # with patience, the newest checkpoint is the best one
    return config


def source_of(pairs: str) -> tuple[str, str]:
    """(data_dir, name of the source) of the data named on the command line."""
    folders = set()
    names = []
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
