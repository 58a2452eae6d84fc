"""The paper's evaluation suite, as tasks of the lm-evaluation-harness.

    loaded = suite.load(["paper_suite"], data_dir="eval-data")
    lm_eval.evaluator.evaluate(model, loaded)

Tasks whose metric in the harness is that of the paper are used unmodified; the others are the YAML
files in `tasks/`, which `lm_eval --include_path` reads too. Documents come from the Hugging Face
hub, or from local files (`raw_files.py`) with the same prompts. Tasks are zero-shot unless their
YAML sets `num_fewshot`. Every other task of the harness can be used as well, from the hub only.
"""

import contextlib
import difflib
import functools
import logging
import pathlib
from collections.abc import Sequence

import yaml

from loopjax.errors import UserError, first_line, require
from loopjax.evals import primitives, raw_files

TASKS = pathlib.Path(__file__).parent / "tasks"
# Tasks of the harness used unmodified, and their folders in it.
HARNESS = {
    "drop": "drop",
    "gsm8k": "gsm8k",
    "hellaswag": "hellaswag",
    "lambada_openai": "lambada",
    "tydiqa_goldp_en": "tydiqa",
}

_CONFIGS = [yaml.safe_load(path.read_text()) for path in sorted(TASKS.glob("group_*.yaml"))]
# Members of each group; the members of paper_suite are groups themselves.
GROUPS = {config["group"]: tuple(config["task"]) for config in _CONFIGS}
# Metric of each group whose tasks share one in the paper.
METRICS = {
    config["group"]: config["aggregate_metric_list"][0]["metric"]
    for config in _CONFIGS
    if "aggregate_metric_list" in config
}


def names() -> list[str]:
    """All groups and tasks of the paper's suite."""
    files = {path.stem for path in TASKS.glob("[!_]*.yaml")}
    own = {name for name in files if not name.startswith("group_")}
    return sorted(own | set(GROUPS) | set(HARNESS))


def load(
    names: Sequence[str],
    data_dir=None,
    num_fewshot: int | None = None,
    primitives_seed: int = primitives.SEED,
    fewshot_seed: int = 1234,
) -> dict:
    """Tasks and groups, ready for `lm_eval.evaluator.evaluate`.

    Args:
      names: names of tasks and groups.
      data_dir: directory of the documents (default: the Hugging Face hub).
      num_fewshot: number of shots of every task (default: that of each task).
      primitives_seed: seed of the items of reasoning primitives.
      fewshot_seed: seed of the choice of shots.

    Returns the harness's TaskDict: `tasks`, `groups`, `group_map`.

    Raises UserError for an unknown name, a missing or unreadable file, documents that cannot be
    downloaded, too few documents for the shots, and a missing harness.
    """
    known = [name for name in names if _known(name)]
    others = [name for name in names if not _known(name)]
    leaves = list(dict.fromkeys(leaf for name in known for leaf in _leaves(name)))
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"num_fewshot={num_fewshot} must be at least 0")
    files = raw_files.Files(data_dir) if data_dir else None
    manager = _manager()
    tasks = {leaf: _task(manager, leaf, files, num_fewshot, primitives_seed) for leaf in leaves}
    tasks |= _of_the_harness(others, files, num_fewshot)
    for task in tasks.values():
        task.set_fewshot_seed(fewshot_seed)
    groups = {}
    for name in known:
        _group(manager, name, tasks, groups)
    group_map = {name: group.child_names for name, group in groups.items()}
    return {"tasks": tasks, "groups": groups, "group_map": group_map}


def check_metric(tasks: dict, metric: str) -> None:
    """Raises UserError for a task that does not have a metric ("acc")."""
    for name, task in tasks.items():
        metrics = [entry["metric"] for entry in task.config.metric_list or []]
        if metric not in metrics:
            known = ", ".join(metrics) or "none"
            raise UserError(f"task {name} has no metric {metric}; its metrics: {known}")


def _known(name: str) -> bool:
    """Whether a task or group is of this suite; raises UserError if the harness has none either."""
    own = names()
    if name in own:
        return True
    index = _everything().task_index
    if name not in index:
        close = difflib.get_close_matches(name, own, n=1) or difflib.get_close_matches(name, index)
        hint = f"did you mean {close[0]}?" if close else f"tasks of the paper: {', '.join(own)}"
        raise UserError(f"task {name!r} does not exist; {hint}")
    return False


def _leaves(name: str) -> list[str]:
    """Names of the tasks of a group, or the name of the task itself."""
    if name in GROUPS:
        return [leaf for member in GROUPS[name] for leaf in _leaves(member)]
    return [name]


@functools.cache
def _manager():
    """The harness's index of the tasks of this suite; an index of all tasks takes seconds."""
    tasks = _harness()
    folder = pathlib.Path(tasks.__file__).parent
    return tasks.TaskManager(
        include_path=[*(folder / name for name in HARNESS.values()), TASKS],
        include_defaults=False,
    )


@functools.cache
def _everything():
    """The harness's index of all its tasks."""
    return _harness().TaskManager()


def _harness():
    """The module `lm_eval.tasks`."""
    tasks = require("lm_eval.tasks", "eval", "evaluating tasks")
    require("datasets", "eval", "evaluating tasks").disable_progress_bars()
    # The harness warns of the overrides that this suite makes on purpose.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return tasks


def _of_the_harness(
    names: list[str], files: raw_files.Files | None, num_fewshot: int | None
) -> dict:
    """{name: task} of tasks outside this suite, as the harness defines them."""
    if names and files:
        raise UserError(f"task {names[0]} cannot be read from local files; omit data_dir")
    tasks = {}
    for name in names:
        with _as_user_error(name, None, hint=""):
            tasks |= _everything().load([name])["tasks"]
    for task in tasks.values():
        shots = task.get_config("num_fewshot") if num_fewshot is None else num_fewshot
        task.set_config(key="num_fewshot", value=shots or 0)
    return tasks


def _task(manager, name: str, files: raw_files.Files | None, num_fewshot: int | None, seed: int):
    config = manager.task_index[name].cfg
    shots = (config.get("num_fewshot") or 0) if num_fewshot is None else num_fewshot
    changes = {"task": name, "num_fewshot": shots}
    if "custom_dataset" in config:
        changes["dataset_kwargs"] = config["dataset_kwargs"] | {"primitives_seed": seed}
    elif files:
        changes |= _local(name, config, files, shots)
    elif not shots:
        # The training split is not needed, and it can be long.
        changes |= {"training_split": None, "fewshot_split": None}
    # The harness applies changes to a task's YAML only if the task is a member of a group.
    with _as_user_error(name, files):
        loaded = manager.load({"group": "one", "task": [changes]})
    task = loaded["tasks"][name]
    pool = len(task.sampler.df)
    # A document is never its own shot.
    needed = shots + (task.fewshot_cfg.split == task.config.test_split)
    if shots and pool < needed:
        raise UserError(
            f"task {name}: num_fewshot={shots} needs {needed} documents to draw from, there are {pool}"
        )
    return task


def _local(name: str, config: dict, files: raw_files.Files, shots: int) -> dict:
    """The changes to a task's YAML that read its documents from local files.

    Without a file of shots they are drawn from the documents. The harness then excludes the document
    under evaluation, if the split of the shots is the test split (or neither is named).
    """
    test = config.get("test_split")
    splits = {test or config["validation_split"]: files.documents(name)}
    changes = {"training_split": None, "fewshot_split": test}
    if shots and (examples := files.examples(name)):
        splits["fewshot"] = examples
        changes["fewshot_split"] = "fewshot"

    def from_files(**_):
        import datasets

        return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    return changes | {"custom_dataset": from_files}


@contextlib.contextmanager
def _as_user_error(name: str, files: raw_files.Files | None, hint: str = "; or set a data_dir"):
    """Turns any error of the hub, the network or malformed documents into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        if files:
            problem = f"the documents below {files.root} lack fields of this task ({reason})"
        else:
            problem = (
                f"its documents cannot be downloaded from the Hugging Face hub ({reason}){hint}"
            )
        raise UserError(f"task {name}: {problem}") from error


def _group(manager, name: str, tasks: dict, groups: dict):
    """The task, or the group with its members; groups are added to `groups`."""
    if name in tasks:
        return tasks[name]
    from lm_eval.api.group import Group

    groups[name] = group = Group.from_config(dict(manager.task_index[name].cfg))
    for member in GROUPS[name]:
        group.add(_group(manager, member, tasks, groups))
    return group
