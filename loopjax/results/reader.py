"""Reading the result files of `loopjax analyze`, `eval`, `icl`, `intervene` and `nll`.

A file gives one `Result` for each model and plan in it. Neither the evaluation harness nor the
models are needed.
"""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

from loopjax import json_shapes
from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.files import walk
from loopjax.json_shapes import count, number, plan
from loopjax.results import schema, store
from loopjax.results.schema import Unreadable

# Files beside results that are not results.
OTHERS = {
    "checkpoints.json", "config.json", "phases.json", "result.json", "sweep.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
}  # fmt: skip
CLOSED = {"checkpoints", "checkpoints.damaged", "tensorboard", "wandb"}


# What is read of each kind of file; the arrays of diagnostics are checked by `store.restore`.
_MODEL = {"step": count, "depth": plan}
_SETTINGS = {"checkpoint": str, "weights": (str, None)}
_TASK = {"metrics": {...: number}}
_GROUP = {"metric": str, "value": number, "stderr": (number, None)}
_POINT = {"shots": count, "accuracy": number, "interval": [number]}
_ACCURACY = {"accuracy": number}
_ROW = {"size": count, "start": count, "times": (count, None), "passes?": str,
        "tasks": {...: _ACCURACY}}  # fmt: skip
_DIFFERENCE = {"mean": number, "low": number, "high": number, "n": count}
_CHECKPOINT = {
    **_MODEL, "nll": number, "accuracy?": number, "bits_per_byte?": number, "sources?": dict,
}  # fmt: skip
_DIAGNOSTIC = {"about": {**_MODEL, **_SETTINGS}, "result": dict}
SHAPES = {
    "loopjax.eval": {
        "settings": _SETTINGS,
        "plans": {...: {"model": _MODEL, "tasks": {...: _TASK}, "groups": {...: _GROUP}}},
    },
    "loopjax.icl": {
        "settings": _SETTINGS, "model": _MODEL, "curves": {...: {"rows": [_POINT]}},
        "chance?": {...: (number, None)},
    },
    "loopjax.intervene": {
        "settings": {**_SETTINGS, "op": str}, "model": _MODEL, "metrics": {...: str},
        "chance": {...: (number, None)}, "unmodified": {...: _ACCURACY}, "rows": [_ROW],
        "choice?": {"intervention": str, "tried": count, "difference?": {...: _DIFFERENCE}},
    },
    "loopjax.nll": {
        "checkpoint": str, "mixture": {...: number}, "model": dict, "rows": [_CHECKPOINT],
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """A result of one model at one plan.

    Attributes:
      kind: a diagnostic's name, "eval", "icl", "nll", or "intervene OP".
      of: prompts and settings in words; results of one kind are comparable if these are equal.
      checkpoint, step: the model's checkpoint.
      weights: digest of the model's weights, or None.
      plan: the plan that the model was run by.
      value: the result as the figures take it.
      file: the file that it is from.
      about: description of the model (`LanguageModel.describe`); {} if the file has none.
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


def read(path: pathlib.Path) -> list[Result]:
    """The results in a file; raises `Unreadable`."""
    content = _json(path)
    identity = schema.identify(path, content)
    readers = {
        "loopjax.diagnostic": lambda: [_diagnostic(path, content, identity["diagnostic"])],
        "loopjax.eval": lambda: [
            _evaluation(path, content, "eval", plan["model"], plan)
            for plan in content["plans"].values()
        ],
        "loopjax.icl": lambda: [_evaluation(path, content, "icl", content["model"], content)],
        "loopjax.intervene": lambda: [
            _evaluation(
                path, content, f"intervene {content['settings']['op']}", content["model"], content
            )
        ],
        "loopjax.nll": lambda: _nll(path, content),
    }
    if identity["schema"] not in readers:
        raise Unreadable(f"a file of {identity['schema']} has no results to show")
    try:
        json_shapes.check(content, SHAPES.get(identity["schema"], {}))
        return readers[identity["schema"]]()
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        if isinstance(error, Unreadable):
            raise
        why = error if type(error) is ValueError else repr(error)
        raise Unreadable(f"it is damaged or incomplete: {why}") from None


def _json(path: pathlib.Path):
    try:
        return json.loads(path.read_text())
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise Unreadable(getattr(error, "strerror", None) or "it is not JSON") from None


def evaluations(directory: pathlib.Path) -> list[Result]:
    """The results of `loopjax eval` and `nll` in a directory and below it; others are ignored."""
    results = []
    for path in below(directory):
        with contextlib.suppress(Unreadable):
            if schema.identify(path, _json(path))["schema"] in ("loopjax.eval", "loopjax.nll"):
                results += read(path)
    return results


def below(directory: pathlib.Path) -> list[pathlib.Path]:
    """JSON files in a directory and below it that may be results, except those of other runs."""
    paths = []
    for here, folders, files in walk(directory):
        folders[:] = sorted(
            name
            for name in folders
            if name not in CLOSED and not name.startswith(".") and not is_run(here / name)
        )
        names = sorted(n for n in files if n.endswith(".json") and n not in OTHERS)
        paths += [here / name for name in names]
    return paths


def is_run(path: pathlib.Path) -> bool:
    return (path / "result.json").is_file() or (path / "checkpoints").is_dir()


def _diagnostic(path: pathlib.Path, content: dict, name: str) -> Result:
    if name not in DIAGNOSTICS:
        raise Unreadable(f"its diagnostic {name!r} is not one of {', '.join(DIAGNOSTICS)}")
    json_shapes.check(content, _DIAGNOSTIC)
    about = content["about"]
    value = store.restore(path, content, DIAGNOSTICS[name].result_type())
    return Result(
        kind=name,
        of=_conditions(about),
        checkpoint=about["checkpoint"],
        step=about["step"],
        weights=about["weights"],
        plan=about["depth"],
        value=value,
        file=path,
        about={},
    )


def _conditions(about: dict) -> str:
    """Prompts and settings of a diagnostic, in words."""
    settings = about.get("settings", {})
    words = []
    if prompts := about.get("prompts"):
        words.append(f"{pathlib.Path(prompts['name']).stem}, {prompts['n']} prompts")
    if "block" in settings:
        words.append(f"blocks of {settings['block']} layer{'s' * (settings['block'] > 1)}")
    if settings.get("repetitions"):
        words.append(f"{settings['repetitions']} repetitions")
    if lens := settings.get("training"):
        words.append(f"lens of {lens['steps']:,} steps of {lens['tokens']:,} tokens")
    if settings.get("limit"):
        words.append(f"first {settings['limit']:,} items")
    return ", ".join(words)


def _evaluation(path: pathlib.Path, content: dict, kind: str, about: dict, value: dict) -> Result:
    settings = content["settings"]
    words = []
    if settings.get("num_fewshot") is not None:
        shots = settings["num_fewshot"]
        words.append(f"{shots} shot{'s' * (shots != 1)}")
    if settings.get("limit"):
        words.append(f"first {settings['limit']:,} items")
    if settings.get("dev"):
        words.append(f"{settings['dev']:,} items to choose by")
    return Result(
        kind=kind,
        of=", ".join(words),
        checkpoint=settings["checkpoint"],
        step=about["step"],
        weights=settings["weights"],
        plan=about["depth"],
        value={"settings": settings, **value},
        file=path,
        about=about,
    )


def _nll(path: pathlib.Path, content: dict) -> list[Result]:
    of = ", ".join(f"{source} {weight:g}" for source, weight in content["mixture"].items())
    return [
        Result(
            kind="nll",
            of=of,
            checkpoint=f"{content['checkpoint']}/{row['step']}",
            step=row["step"],
            weights=row.get("weights"),
            plan=row["depth"],
            value=row,
            file=path,
            about=content["model"] | {"step": row["step"], "depth": row["depth"]},
        )
        for row in content["rows"]
    ]
