"""Which models a page compares, and what is known of each.

A path is a run, a checkpoint or results. Results go to the model that they say they are of, by the
digest of its weights or by its path; those of a model that is not given make one of their own. What
is drawn is a model at a plan: an `Entry`.
"""

import contextlib
import dataclasses
import pathlib
from typing import Any

from loopjax import lineage, run_record
from loopjax.checkpoint import locate, read_meta, run_directory, weights_digest
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.files import read_json, read_rows
from loopjax.model_config import ModelConfig
from loopjax.results import reader


@dataclasses.dataclass(kw_only=True)
class Model(run_record.Record):
    """A checkpoint, or a run and its last one: what is on record of it, and

    Attributes:
      name: as it is called on the page.
      checkpoint: what `--checkpoint` takes.
      directory: of the run; results beside it are its own.
      step, weights, plan: of the checkpoint; the digest of its weights is None where it is gone.
      events: its lineage, as checkpoints hold it.
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
        """The plan, with the way to it: "4 → 8 → 12 (lidas)"."""
        plans = list(dict.fromkeys(event["plan"] for event in self.events)) or [str(self.plan)]
        operators = {e["operator"] for e in self.events if e["plan"] != plans[0]} - {"data"}
        return " → ".join(plans) + (f" ({', '.join(sorted(operators))})" if operators else "")

    @property
    def stages(self) -> list[lineage.Stage]:
        return lineage.stages(self.events) if self.events else []


@dataclasses.dataclass
class Entry:
    """A model at a plan: what has a label, a color and results.

    Attributes:
      results: {kind: {conditions: value}}, as `reader.Found` names them.
    """

    label: str
    model: Model
    plan: DepthPlan
    results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether the plan is the one that the model was trained with."""
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
        """Held-out NLL in nats per token: of the training, else of `loopjax nll`."""
        if self.own and "nll" in self.model.heldout():
            return self.model.heldout()["nll"]
        return next((row["nll"] for row in self.results.get("nll", {}).values()), None)


def collect(paths) -> tuple[list[Entry], list[str]]:
    """(entries, notes on what was left out) of paths, each maybe "LABEL=PATH".

    Raises UserError for a path that is nothing of the kind.
    """
    shelf, named = _Shelf(), []
    for text in map(str, paths):
        label, path = _label(text)
        if _is_model(path):
            shelf.add(open_model(path, label))
        else:
            named.append((label, path, _files(path)))
    given = list(shelf.models)
    for label, path, files in named:
        held = 0
        for file in files:
            inside = (m for m in given if m.directory.resolve() in file.resolve().parents)
            held += shelf.read(file, next(inside, None), label, named=path == str(file))
        if not held:
            raise _nothing(path)
    for model in given:
        for file in reader.below(model.directory):
            shelf.read(file, owner=model)
    return shelf.entries(), shelf.notes


def _label(text: str) -> tuple[str, str]:
    label, equals, path = text.partition("=")
    if equals and label and "/" not in label and not pathlib.Path(text).exists():
        return label, path
    return "", text


def _is_model(path: str) -> bool:
    place, at, step = path.rpartition("@")
    place = pathlib.Path(place if at and step.isdecimal() else path)
    return place.is_dir() and (
        reader.is_run(place) or any(p.name.isdecimal() and p.is_dir() for p in place.iterdir())
    )


def _files(path: str) -> list[pathlib.Path]:
    place = pathlib.Path(path)
    files = [place] if place.is_file() else reader.below(place) if place.is_dir() else []
    if not files:
        raise _nothing(path)
    return files


def _nothing(path: str) -> UserError:
    return UserError(
        f"{path} is not the directory of a run, a checkpoint (DIR or DIR@STEP), nor results of "
        "loopjax analyze, intervene, eval, icl or nll"
    )


def open_model(path: str, label: str = "") -> Model:
    """The model of a run's directory or a checkpoint; raises UserError where it is damaged."""
    place = pathlib.Path(path)
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
    rows = [row for row in read_rows(home / "metrics.jsonl") if row["step"] <= step]
    return Model(
        name=label or home.resolve().name + (f"@{step}" if not place.is_dir() else ""),
        checkpoint=path, directory=home, step=step, weights=weights_digest(meta),
        plan=DepthPlan.parse(meta["plan"]), events=meta["lineage"], config=meta["config"],
        cfg=ModelConfig(**meta["model"]), result=run.result, rows=rows,
        flops_before=meta.get("flops_before", 0.0),
        seconds=run.seconds or (meta["wall_clock_s"] if rows else None),
    )  # fmt: skip


def _without_checkpoint(place: pathlib.Path, label: str, run: run_record.Record) -> Model:
    """A finished run, its last checkpoint gone."""
    phases = read_json(place / "phases.json") or []
    keys = ("operator", "plan", "order")
    events = [{"step": phase["start"], **{k: phase[k] for k in keys}} for phase in phases]
    for event in events[:1]:
        event["order"] = None  # of a branch: of what it made its first stack only checkpoints tell
    return Model(
        name=label or place.resolve().name, checkpoint=str(place), directory=place,
        step=run.result["steps"], weights=None, plan=DepthPlan.parse(run.result["plan"]),
        events=events, config=run.config, cfg=run.cfg, result=run.result,
        rows=read_rows(place / "metrics.jsonl"), flops_before=run.flops_before, seconds=run.seconds,
    )  # fmt: skip


class _Shelf:
    """Models, and results that are put to them."""

    def __init__(self):
        self.models: list[Model] = []
        self.notes: list[str] = []
        self.found: list[tuple[Model, reader.Found]] = []
        self.seen: set[pathlib.Path] = set()

    def add(self, model: Model) -> Model:
        for other in self.models:
            same = (other.directory.resolve(), other.step)
            if same == (model.directory.resolve(), model.step):
                self.notes.append(f"{model.checkpoint} is {other.name} once more")
                return other
        self.models.append(model)
        return model

    def read(self, file: pathlib.Path, owner=None, label: str = "", named: bool = False) -> int:
        """Puts what a file holds to its models, and says how many results that are.

        `owner` is the model in whose directory it lies; a `named` file must hold a result.
        """
        if file.resolve() in self.seen:
            return 1
        self.seen.add(file.resolve())
        try:
            held = reader.read(file)
        except reader.Foreign as error:
            if named:
                raise UserError(f"{file} is no result of loopjax: {error}") from None
            self.notes.append(f"{file} was left out: {error}")
            return 0
        for found in reversed(held):  # of a run's checkpoints the last one is the model
            model = self._of(found, owner)
            if model is None and found.kind == "nll" and (model := self._run_of(found, owner)):
                model.history[found.step] = found.value
            else:
                self.found.append((model or self._new(found, label), found))
        return len(held)

    def _of(self, found: reader.Found, owner: Model | None) -> Model | None:
        """The model that a result is of: by its weights, its path, or the run that it lies in."""
        models = [*filter(None, [owner]), *self.models]
        for model in models:
            if found.weights and model.weights == found.weights:
                return model
        for model in models:
            if found.weights and model.weights:
                continue  # they differ
            if model.step == found.step and _run_of(found) == model.directory.resolve():
                return model
        moved = owner and not found.weights and not pathlib.Path(found.checkpoint).exists()
        return owner if moved and owner.step == found.step else None

    def _run_of(self, found: reader.Found, owner: Model | None) -> Model | None:
        """A model of the same run at another step."""
        same = (m for m in self.models if m.directory.resolve() == _run_of(found))
        return next(same, None if pathlib.Path(found.checkpoint).exists() else owner)

    def _new(self, found: reader.Found, label: str) -> Model:
        """The model of results alone, as much of it as there is."""
        checkpoint = pathlib.Path(found.checkpoint)
        with contextlib.suppress(UserError):
            model = open_model(f"{checkpoint.parent}@{checkpoint.name}", label)
            if found.weights in (None, model.weights):
                return self.add(model)
        about, run = found.about, run_directory(checkpoint.parent)
        plan = about.get("trained_depth") or found.plan
        model = Model(
            name=label or f"{run.name}@{found.step}", checkpoint=f"{run}@{found.step}", directory=run,
            step=found.step, weights=found.weights, plan=DepthPlan.parse(plan),
            events=about.get("lineage", []), config=about.get("config", {}),
            cfg=ModelConfig(**about["model"]) if about else None,
        )  # fmt: skip
        self.models.append(model)
        return model

    def entries(self) -> list[Entry]:
        """Each model at its own plan, then at the other plans that results are of."""
        names = dict(zip(map(id, self.models), _distinct(self.models), strict=True))
        made: dict[tuple, Entry] = {}
        for model in self.models:
            model.name = names[id(model)]
            made[id(model), model.plan] = Entry(model.name, model, model.plan)
            for owner, found in self.found:
                plan = DepthPlan.parse(found.plan)
                if owner is model and (id(model), plan) not in made:
                    made[id(model), plan] = Entry(f"{model.name} at {plan}", model, plan)
        for owner, found in self.found:
            entry = made[id(owner), DepthPlan.parse(found.plan)]
            held = entry.results.setdefault(found.kind, {})
            if found.of not in held:
                held[found.of] = found.value
            elif not _joined(found.kind, held[found.of], found.value):
                self.notes.append(
                    f"{found.file} was left out: {entry.label} has {found.kind} twice"
                )
        return list(made.values())


def _run_of(found: reader.Found) -> pathlib.Path:
    return run_directory(pathlib.Path(found.checkpoint).parent).resolve()


def _joined(kind: str, held: dict, more: dict) -> bool:
    """Adds an evaluation to one of other tasks, sizes or numbers of examples; says if that can be."""
    if kind == "eval":
        held["tasks"] |= more["tasks"]
        held["groups"] |= more["groups"]
    elif kind == "icl":
        for part in ("curves", "chance"):
            held[part] = held.get(part, {}) | more.get(part, {})
    elif kind.startswith("intervene "):
        for part in ("metrics", "chance", "unmodified"):
            held[part] = more[part] | held[part]
        held["rows"] += more["rows"]
    else:
        return False
    return True


def _distinct(models: list[Model]) -> list[str]:
    """Their names; of equal ones with the folder before them, or numbered."""
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        names = [
            f"{model.directory.resolve().parent.name}/{name}" if names.count(name) > 1 else name
            for model, name in zip(models, names, strict=True)
        ]
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return made
