"""Supervised fine-tuning: the config of a run initialized from a checkpoint's weights.

`loopjax finetune` is `loopjax train` with this config, and every field can be overridden. The loss
is on completions; the run stops early when the held-out loss no longer falls, and keeps its best
checkpoint.
"""

import re

from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax import paths, resume
from loopjax.data import pairs as pairs_lib
from loopjax.errors import UserError
from loopjax.loop_config import TRAINING

RATE = 0.1  # learning rate relative to that of the checkpoint's training


def config_for(checkpoint: str, pairs: str) -> ConfigDict:
    """The config of a fine-tuning run, every field of which may then be changed.

    Args:
      checkpoint: DIR or DIR@STEP of a run or an imported model.
      pairs: training data, separated by commas: files of prompts and completions in one directory
        (chat.jsonl, or chat.jsonl:N for the first N pairs), or items of reasoning primitives
        (var_assign_code_1:64). The path of a file is that file, whatever its name.
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
    trained_model = dict(meta["model"])
    loop = trained_model.pop("loop", {})
    if trained_model.pop("exit_gate", False):
        config.losses.exit_gate = "joint"  # the gate is fine-tuned with the model
    config.model.update(trained_model)
    config.loop.update({name: loop[name] for name in loop if name not in TRAINING})
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
    for path, count in _parts(pairs):
        if _is_file(path):
            file = paths.of(path)
            folders.add(str(file.parent))
            path = pairs_lib.name_of(file)
        elif not re.fullmatch(r"[\w:+-]+", path):
            raise UserError(f"--pairs {path} is not a file")
        names.append(path + count)
    if len(folders) > 1:
        raise UserError(f"--pairs names files of several directories: {', '.join(sorted(folders))}")
    return folders.pop() if folders else "", "+".join(names)


def _parts(pairs: str):
    """Yields (path or name, ":N" or "") of the parts between commas; a file may have one itself."""
    words = pairs.split(",")
    while words:
        joined = (_counted(",".join(words[:n])) for n in range(len(words), 1, -1))
        path, count = next((part for part in joined if _is_file(part[0])), _counted(words[0]))
        yield path, count
        words = words[path.count(",") + 1 :]


def _counted(part: str) -> tuple[str, str]:
    counted = re.fullmatch(r"(.+)(:[1-9][0-9]*)", part, re.DOTALL)
    return (part, "") if _is_file(part) or not counted else counted.groups()


def _is_file(path: str) -> bool:
    try:
        return paths.of(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False
