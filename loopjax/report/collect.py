"""The models that a page compares, and their results.

A path is a run, a checkpoint or results. Results are matched to a model by the digest of its
weights, else by its path; results of a model that is not among the paths become a model of their
own. A page shows models at a plan: an `Entry` each.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from loopjax import json_shapes, lineage, paths, run_record
from loopjax.checkpoint import locate, read_meta, run_directory
from loopjax.checkpoint_files import weights_digest
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.files import can_be_seen, read_json
from loopjax.model_config import ModelConfig
from loopjax.results import reader

PHASE = {"start": json_shapes.count, "operator": str, "plan": json_shapes.plan,
         "order": ([json_shapes.count], None)}  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class Model(run_record.Record):
    """A checkpoint, or a run with its last checkpoint: the fields of a `Record`, and

    Attributes:
      name: name on the page.
      checkpoint: value for `--checkpoint`.
      directory: directory of the run; results in it belong to this model.
      step, plan: those of the checkpoint.
      weights: digest of the checkpoint's weights, None if the checkpoint was deleted.
      events: lineage, as stored in checkpoints.
      history: {step: row} of `loopjax nll` at other steps.
    """

    name: str
    checkpoint: str
    directory: pathlib.Path
    step: int
    weights: str | None
    plan: DepthPlan
    events: list[dict] = dataclasses.field(default_factory=list)
    history: dict[int, dict] = dataclasses.field(default_factory=dict)

    @property
    def way(self) -> str:
        """The plan and the plans before it: "4 → 8 → 12 (lidas)"."""
        plans = list(dict.fromkeys(event["plan"] for event in self.events)) or [str(self.plan)]
        operators = {e["operator"] for e in self.events if e["plan"] != plans[0]} - {"data"}
        return " → ".join(plans) + (f" ({', '.join(sorted(operators))})" if operators else "")

    @property
    def stages(self) -> list[lineage.Stage]:
        return lineage.stages(self.events) if self.events else []


@dataclasses.dataclass
class Entry:
    """A model at a plan, with a label, a color and results.

    Attributes:
      results: {kind: {conditions: value}}, with the names of `reader.Result`.
    """

    label: str
    model: Model
    plan: DepthPlan
    results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether the plan is that of the training."""
        return self.plan == self.model.plan

    @property
    def costs(self) -> dict:
        """{key of `run_record.COSTS`: value or None}."""
        return self.model.costs(self.plan)

    @property
    def parameters(self) -> int | None:
        return self.costs["parameters"]

    @property
    def nll(self) -> float | None:
        """Held-out NLL in nats per token: from the training, else from `loopjax nll`."""
        if self.own and "nll" in self.model.heldout():
            return self.model.heldout()["nll"]
        return next((row["nll"] for row in self.results.get("nll", {}).values()), None)


class Collection(NamedTuple):
    """Entries of a page, and what was not read.

    Attributes:
      entries: in the order of the page.
      notes: one sentence for each file that was skipped.
    """

    entries: list[Entry]
    notes: Sequence[str] = ()

    def conditions(self, kind: str) -> list[str]:
        """The conditions for which any entry has results of a kind, each once."""
        return list(dict.fromkeys(of for e in self.entries for of in e.results.get(kind, {})))

    def results(self, kind: str, of: str) -> dict[str, Any]:
        """{label: result} of a kind under these conditions."""
        return {e.label: e.results[kind][of] for e in self.entries if of in e.results.get(kind, {})}


def collect(texts) -> Collection:
    """The models and results at paths, each optionally "LABEL=PATH".

    Raises UserError for a path that is neither.
    """
    shelf, named = _Shelf(), []
    for text in map(str, texts):
        label, path = _label(text)
        if _is_model(path):
            shelf.add(open_model(path, label))
        else:
            named.append((label, path, _files(path)))
    given = list(shelf.models)
    for label, path, files in named:
        count = 0
        for file in files:
            inside = (m for m in given if m.directory.resolve() in file.resolve().parents)
            count += shelf.read(file, next(inside, None), label, named=path == str(file))
        if not count:
            raise _nothing(path)
    for model in given:
        for file in reader.below(model.directory):
            shelf.read(file, owner=model)
    return Collection(shelf.entries(), shelf.notes)


def _label(text: str) -> tuple[str, str]:
    label, equals, path = text.partition("=")
    place, _, step = text.rpartition("@")
    # Names of a sweep's runs have "=" too: a path that exists is no label.
    known = any(_exists(path) for path in (text, place if step.isdecimal() else text))
    if equals and label and "/" not in label and not known:
        return label, path
    return "", text


def _exists(path: str) -> bool:
    return paths.is_remote(path) or os.path.exists(path)


def _is_model(path: str) -> bool:
    place, at, step = path.rpartition("@")
    place = paths.of(place if at and step.isdecimal() else path)
    return place.is_dir() and (
        reader.is_run(place) or any(p.name.isdecimal() and p.is_dir() for p in place.iterdir())
    )


def _files(path: str) -> list[pathlib.Path]:
    place = paths.of(path)
    files = [place] if place.is_file() else reader.below(place) if place.is_dir() else []
    if not files:
        raise _nothing(path)
    return files


def _nothing(path: str) -> UserError:
    return UserError(
        f"{path} is not the directory of a run, a checkpoint (DIR or DIR@STEP), or results of "
        "loopjax analyze, intervene, eval, icl or nll"
    )


def open_model(path: str, label: str = "") -> Model:
    """The model of a run's directory or a checkpoint; raises UserError for a damaged one."""
    place = paths.of(path)
    run = (run_record.of_directory(place) if place.is_dir() else None) or run_record.Record()
    try:
        directory, step = locate(path)
    except UserError:
        if not run.result:
            raise
        return _without_checkpoint(place, label, run)
    meta = read_meta(directory, step)
    if run.result and run.result["steps"] != step:
        return _without_checkpoint(place, label, run)
    home = run_directory(directory)
    rows = [row for row in run_record.metrics_of(home) if row["step"] <= step]
    return Model(
        name=label or home.resolve().name + (f"@{step}" if not place.is_dir() else ""),
        checkpoint=path, directory=home, step=step, weights=weights_digest(meta),
        plan=DepthPlan.parse(meta["plan"]), events=meta["lineage"], config=meta["config"],
        cfg=ModelConfig(**meta["model"]), result=run.result, rows=rows,
        flops_before=meta.get("flops_before", 0.0),
        seconds=run.seconds or (meta["wall_clock_s"] if rows else None),
    )  # fmt: skip


def _without_checkpoint(place: pathlib.Path, label: str, run: run_record.Record) -> Model:
    """A finished run whose last checkpoint was deleted."""
    phases = read_json(place / "phases.json") or []
    json_shapes.check_file(place / "phases.json", phases, [PHASE])
    keys = ("operator", "plan", "order")
    events = [{"step": phase["start"], **{k: phase[k] for k in keys}} for phase in phases]
    for event in events[:1]:
        event["order"] = None  # only checkpoints record what a branch made its first stack from
    return Model(
        name=label or place.resolve().name, checkpoint=str(place), directory=place,
        step=run.result["steps"], weights=None, plan=DepthPlan.parse(run.result["plan"]),
        events=events, config=run.config, cfg=run.cfg, result=run.result,
        rows=run_record.metrics_of(place), flops_before=run.flops_before, seconds=run.seconds,
    )  # fmt: skip


class _Shelf:
    """Models, and the results assigned to them."""

    def __init__(self):
        self.models: list[Model] = []
        self.notes: list[str] = []
        self.results: list[tuple[Model, reader.Result]] = []
        self.seen: set[pathlib.Path] = set()

    def add(self, model: Model) -> Model:
        for other in self.models:
            same = (other.directory.resolve(), other.step)
            if same == (model.directory.resolve(), model.step):
                self.notes.append(f"{model.checkpoint} is the same model as {other.name}")
                return other
        self.models.append(model)
        return model

    def read(self, file: pathlib.Path, owner=None, label: str = "", named: bool = False) -> int:
        """Assigns the results in a file to their models; returns the number of results.

        Args:
          owner: the model in whose directory the file is.
          label: name of a new model.
          named: whether the user named this file, so that it must have a result.
        """
        if file.resolve() in self.seen:
            return 1
        self.seen.add(file.resolve())
        try:
            results = reader.read(file)
        except reader.Unreadable as error:
            if named:
                raise UserError(f"{file} cannot be read as a result: {error}") from None
            self.notes.append(f"{file} was skipped: {error}")
            return 0
        for result in reversed(results):  # the last checkpoint of a run is its model
            model = self._of(result, owner)
            trained = result.kind == "nll" and not result.about.get("ema")
            if model is None and trained and (model := self._run_of(result, owner)):
                model.history[result.step] = result.value
            else:
                self.results.append((model or self._new(result, label), result))
        return len(results)

    def _of(self, result: reader.Result, owner: Model | None) -> Model | None:
        """The model of a result: by weights, by path, or by the run whose directory it is in."""
        models = [*filter(None, [owner]), *self.models]
        for model in models:
            if result.weights and model.weights == result.weights:
                return model
        for model in models:
            if result.weights and model.weights:
                continue  # they differ
            if model.step == result.step and _run_of(result) == model.directory.resolve():
                return model
        moved = owner and not result.weights and not can_be_seen(result.checkpoint)
        return owner if moved and owner.step == result.step else None

    def _run_of(self, result: reader.Result, owner: Model | None) -> Model | None:
        """A model of the same run at another step."""
        same = (m for m in self.models if m.directory.resolve() == _run_of(result))
        return next(same, None if can_be_seen(result.checkpoint) else owner)

    def _new(self, result: reader.Result, label: str) -> Model:
        """A model for results of a model that is not among the paths, as far as it is known."""
        checkpoint = paths.of(result.checkpoint)
        with contextlib.suppress(UserError):
            model = open_model(f"{checkpoint.parent}@{checkpoint.name}", label)
            if result.weights in (None, model.weights):
                return self.add(model)
        about = result.about
        run = run_directory(checkpoint.parent)
        plan = about.get("trained_depth") or result.plan
        model = Model(
            name=label or f"{run.name}@{result.step}" + " average" * bool(about.get("ema")),
            checkpoint=f"{run}@{result.step}", directory=run,
            step=result.step, weights=result.weights, plan=DepthPlan.parse(plan),
            events=about.get("lineage", []), config=about.get("config", {}),
            cfg=ModelConfig(**about["model"]) if about else None,
        )  # fmt: skip
        self.models.append(model)
        return model

    def entries(self) -> list[Entry]:
        """Each model at its own plan, then at the other plans that results were computed with."""
        names = dict(zip(map(id, self.models), _distinct(self.models), strict=True))
        entries: dict[tuple, Entry] = {}
        for model in self.models:
            model.name = names[id(model)]
            entries[id(model), model.plan] = Entry(model.name, model, model.plan)
            for owner, result in self.results:
                plan = DepthPlan.parse(result.plan)
                if owner is model and (id(model), plan) not in entries:
                    entries[id(model), plan] = Entry(f"{model.name} at {plan}", model, plan)
        for owner, result in self.results:
            entry = entries[id(owner), DepthPlan.parse(result.plan)]
            values = entry.results.setdefault(result.kind, {})
            if result.of not in values:
                values[result.of] = result.value
            elif not _merged(result.kind, values[result.of], result.value):
                self.notes.append(
                    f"{result.file} was skipped: {entry.label} has another result of {result.kind}"
                )
        return list(entries.values())


def _run_of(result: reader.Result) -> pathlib.Path:
    return run_directory(paths.of(result.checkpoint).parent).resolve()


def _merged(kind: str, value: dict, more: dict) -> bool:
    """Merges an evaluation into one of other tasks, sizes or shots; False if that is impossible."""
    if kind == "eval":
        value["tasks"] |= more["tasks"]
        value["groups"] |= more["groups"]
    elif kind == "icl":
        for part in ("curves", "chance"):
            value[part] = value.get(part, {}) | more.get(part, {})
    elif kind.startswith("intervene "):
        for part in ("metrics", "chance", "unmodified"):
            value[part] = more[part] | value[part]
        value["rows"] += more["rows"]
    else:
        return False
    return True


def _distinct(models: list[Model]) -> list[str]:
    """The models' names; equal names get their folder in front, or a number."""
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        names = [
            f"{model.directory.resolve().parent.name}/{name}" if names.count(name) > 1 else name
            for model, name in zip(models, names, strict=True)
        ]
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct
