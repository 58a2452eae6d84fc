"""Files of results, as `loopjax analyze`, `eval`, `icl`, `intervene` and `nll` write them.

A file becomes one `Found` for each model and plan that it is about. They are read without the
classes that they were made of, so that a page needs neither the models nor the harness.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import types
from typing import Any

import numpy as np

from loopjax.plots.diagnostics import PLOTS
from loopjax.results import store

# What lies beside results and is none.
OTHERS = {
    "config.json", "phases.json", "result.json", "sweep.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
}  # fmt: skip
CLOSED = {"checkpoints", "checkpoints.damaged", "tensorboard", "wandb"}


class Foreign(ValueError):
    """A file that holds no result; says why."""


@dataclasses.dataclass(frozen=True)
class Found:
    """One result.

    Attributes:
      kind: what it is: a diagnostic's name, "eval", "icl", "nll", or "intervene swap".
      of: prompts and settings in words; results of one kind are comparable where these are equal.
      checkpoint, step, weights, plan: of which model; the weights are a digest, or None.
      value: what the pictures take.
      file: where it was found.
      about: what it says of the model ("model" of an evaluation), {} where it says nothing.
    """

    kind: str
    of: str
    checkpoint: str
    step: int
    weights: str | None
    plan: str
    value: Any
    file: pathlib.Path
    about: dict


def read(path: pathlib.Path) -> list[Found]:
    """The results in a file; raises Foreign where it holds none that can be read."""
    held = _json(path)
    try:
        if "kind" in held:
            return [_diagnostic(path, held)]
        if "plans" in held:
            return [
                _evaluated(path, held, "eval", plan["model"], plan)
                for plan in held["plans"].values()
            ]
        if "curves" in held:
            return [_evaluated(path, held, "icl", held["model"], held)]
        if "unmodified" in held:
            kind = f"intervene {held['settings']['op']}"
            return [_evaluated(path, held, kind, held["model"], held)]
        if "rows" in held:
            return _nll(path, held)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise Foreign(f"it cannot be read: {error!r}") from None
    raise Foreign("it holds no result")


def _json(path: pathlib.Path) -> dict:
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Foreign(getattr(error, "strerror", None) or "it is not JSON") from None
    if not isinstance(held, dict):
        raise Foreign("it holds no result")
    return held


def evaluations(directory: pathlib.Path) -> list[Found]:
    """What `loopjax eval` wrote in a directory and below it; other files are passed over."""
    found = []
    for path in below(directory):
        with contextlib.suppress(Foreign):
            if "plans" in _json(path):
                found += read(path)
    return found


def below(directory: pathlib.Path) -> list[pathlib.Path]:
    """JSON files in a directory and below it that may hold results; other runs are left out."""
    found = []
    for place, folders, files in os.walk(directory):
        here = pathlib.Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if name not in CLOSED and not name.startswith(".") and not is_run(here / name)
        )
        names = sorted(n for n in files if n.endswith(".json") and n not in OTHERS)
        found += [here / name for name in names]
    return found


def is_run(path: pathlib.Path) -> bool:
    return (path / "result.json").is_file() or (path / "checkpoints").is_dir()


def _diagnostic(path: pathlib.Path, held: dict) -> Found:
    name = next((n for n in PLOTS if path.stem == n or path.stem.startswith(f"{n}-")), None)
    if name is None:
        raise Foreign(f"its name begins with no diagnostic ({', '.join(PLOTS)})")
    if held["format"] != store.FORMAT:
        raise Foreign(f"it has format {held['format']}, this version reads {store.FORMAT}")
    about, fields = held["about"], dict(held["result"])
    for key, value in fields.items():
        if isinstance(value, str) and value.endswith(".npz"):
            with np.load(path.parent / value) as arrays:
                fields[key] = arrays[key]
        elif isinstance(value, list) and key != "tasks":
            fields[key] = np.array(value)
    made = types.SimpleNamespace(**fields)
    return Found(
        name, _conditions(about), about["checkpoint"], about["step"], about["weights"],
        about["depth"], made, path, {},
    )  # fmt: skip


def _conditions(about: dict) -> str:
    """Prompts and settings of a diagnostic, in words."""
    settings, words = about.get("settings", {}), []
    if prompts := about.get("prompts"):
        words.append(f"{pathlib.Path(prompts['name']).stem}, {prompts['n']} prompts")
    if "block" in settings:
        words.append(f"blocks of {settings['block']} layer{'s' * (settings['block'] > 1)}")
    if lens := settings.get("training"):
        words.append(f"lens of {lens['steps']:,} steps of {lens['tokens']:,} tokens")
    if settings.get("limit"):
        words.append(f"first {settings['limit']:,} items")
    return ", ".join(words)


def _evaluated(path: pathlib.Path, held: dict, kind: str, about: dict, value) -> Found:
    settings, words = held["settings"], []
    if settings.get("num_fewshot") is not None:
        words.append(f"{settings['num_fewshot']} examples")
    if settings.get("limit"):
        words.append(f"first {settings['limit']:,} items")
    return Found(
        kind, ", ".join(words), settings["checkpoint"], about["step"], settings["weights"],
        about["depth"], {"settings": settings, **value}, path, about,
    )  # fmt: skip


def _nll(path: pathlib.Path, held: dict) -> list[Found]:
    of = ", ".join(f"{source} {weight:g}" for source, weight in held["mixture"].items())
    return [
        Found(
            "nll", of, f"{held['checkpoint']}/{row['step']}", row["step"], None, row["depth"],
            row, path, held["model"] | {"step": row["step"], "depth": row["depth"]},
        )
        for row in held["rows"]
    ]  # fmt: skip
