"""`loopjax intervene`: accuracy after layers are swapped, skipped, reversed or repeated.

An intervention is an order over the executed layers, at all positions and all steps of decoding
(`depth.INTERVENTIONS`). It is evaluated at every start (Kapl et al. 2025, Figures 3, 6, 9-11; Kapl
et al. 2026, Figures 5, 6, 11, 12), and compared with the unmodified model. Repetitions may also be
damped, or of one kind of sublayer (`depth.Window`).
"""

import contextlib
import dataclasses
import functools
import io
import itertools
from collections.abc import Sequence

from loopjax import outputs, paths
from loopjax.analysis import choice
from loopjax.depth import INTERVENTIONS, MOST_LAYERS, starts
from loopjax.errors import UserError
from loopjax.evals import suite
from loopjax.evals.evaluate import begin, chance, metric_of, run_task
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm.loaded_model import LanguageModel
from loopjax.passes import PLAIN, Passes
from loopjax.progress import duration

TASKS = ("lambada_openai", "var_assign_math_0")
ACCURACIES = ("acc", "exact_match")  # metrics that are shares of items; the first available counts


@dataclasses.dataclass(frozen=True)
class Intervention:
    """`op` on a sub-block of `size` executed layers from `start`; the rest is only for repeat.

    Attributes:
      times: passes after the first.
      passes: how the passes are applied.
    """

    op: str
    size: int
    start: int
    times: int | None = None
    passes: Passes = PLAIN

    def order(self, n_layers: int) -> tuple[int, ...]:
        """The executed layers, in their new order."""
        more = () if self.times is None else (self.times,)
        return INTERVENTIONS[self.op](n_layers, self.start, self.size, *more)

    def edited(self, lm: LanguageModel) -> LanguageModel:
        """The model with the intervention. Plain ones of one length share compiled programs."""
        if self.passes == PLAIN:
            return lm.with_order(self.order(lm.plan.n_effective))
        return lm.with_window(self.start, self.size, self.times + 1, self.passes)

    def __str__(self) -> str:
        times = "" if self.times is None else f", {self.times} more"
        passes = "" if self.passes == PLAIN else f", {self.passes}"
        return f"{self.op} {self.size} at {self.start}{times}{passes}"


def interventions(
    op: str,
    n_layers: int,
    sizes: Sequence[int],
    times: Sequence[int] = (1,),
    at: Sequence[int] | None = None,
    passes: Sequence[Passes] = (PLAIN,),
) -> list[Intervention]:
    """The interventions of each size (and number of times, and passes) at each start, or those `at`.

    Raises UserError for a size that does not fit, and for a start where a size does not fit.
    """
    chosen = []
    ways = itertools.product(times, passes) if op == "repeat" else [(None, PLAIN)]
    for size, (more, how) in itertools.product(sizes, ways):
        valid = starts(op, n_layers, size)
        if not valid:
            raise UserError(
                f"--size {size} leaves no start: {op} of it needs more than the {n_layers} layers "
                "that are executed"
            )
        executed = n_layers + size * (more or 0)
        if executed > MOST_LAYERS:
            raise UserError(
                f"--times {more} of --size {size} executes {executed:,} layers; at most "
                f"{MOST_LAYERS:,} are possible"
            )
        for start in valid if at is None else at:
            if start not in valid:
                raise UserError(
                    f"--starts {start} must lie within 0..{valid[-1]} for {op} of size {size} in "
                    f"{n_layers} executed layers"
                )
            chosen.append(Intervention(op, size, start, more, how))
    return chosen


def intervene(
    lm: LanguageModel,
    chosen: Sequence[Intervention],
    tasks: Sequence[str],
    output,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    data_dir=None,
    batch_tokens: int | None = None,
    dev: int | None = None,
    say=print,
) -> dict:
    """Evaluates the unmodified model, then each intervention; returns what `output` (JSON) holds.

    The file is written after every evaluation; evaluations that it holds are not repeated.

    With `dev`, all this is on that many items of each task, drawn once. The intervention that is
    best there and the unmodified model are then evaluated on the other items (`choice`).

    Args:
      chosen: interventions of one op on the executed layers of the model's plan.
      tasks: names of tasks and groups that have an accuracy.
      num_fewshot: shots; by default those of each task.
      limit: number of items of each task, from the first.
      data_dir: a directory of files to read instead of the hub.
      dev: number of items of each task by which one of the interventions is chosen.
    """
    if lm.plan.windows:
        raise UserError(
            f"--depth {lm.plan} has the window {lm.plan.windows[0]}; interventions need plain loops "
            "(--op repeat --passes damped makes windows)"
        )
    loaded = suite.load(list(tasks), data_dir, num_fewshot)["tasks"]
    metrics = {name: _metric(name, task) for name, task in loaded.items()}
    output = paths.of(output)
    E = lm.plan.n_effective
    (op,) = {one.op for one in chosen}
    settings = {"num_fewshot": num_fewshot, "limit": limit, "data_dir": data_dir}
    splits = {name: choice.split(name, task, limit, dev) for name, task in loaded.items()}
    if dev:  # one choice is one file: its candidates are settings
        settings |= {"dev": dev, "tasks": list(loaded), "candidates": list(map(str, chosen))}
    result = begin("intervene", output, lm, op=op, depth=str(lm.plan), **settings)
    result["model"] = lm.describe()
    result.setdefault("metrics", {}).update(metrics)
    chances = {name: chance(task, metrics[name], limit) for name, task in loaded.items()}
    result.setdefault("chance", {}).update(chances)
    plain = result.setdefault("unmodified", {})
    rows = result.setdefault("rows", [])
    done = {_of_row(op, row): row["tasks"] for row in rows} | {None: plain}
    todo = {one: [n for n in loaded if n not in done.get(one, ())] for one in (None, *chosen)}
    names = [name for names in todo.values() for name in names]
    progress = _Progress(names, plain, say)

    harness = Repeated(lm, batch_tokens=batch_tokens)
    for task in loaded.values():
        keep_requests(task)
    for one, names in todo.items():
        if names and one:
            harness.lm = one.edited(lm)
            if one not in done:
                rows.append(_row(one, E))
                done[one] = rows[-1]["tasks"]
        for name in names:
            with _silent(one is not None):
                evaluated = run_task(harness, name, loaded[name], limit, items=splits[name].dev)
            done[one][name] = _scored(evaluated, metrics[name], plain.get(name))
            outputs.write_json(output, result)
            progress.done(one, name, done[one][name])
        harness.lm = lm  # the copy of the layers is freed before the next is made
    if dev:
        best = choice.best(rows, plain)
        edited = _of_row(op, best)
        evaluations = {"unmodified": lambda: lm, "chosen": lambda: edited.edited(lm)}
        held_out = choice.held_out(result, best, str(edited))
        for label, name in itertools.product(evaluations, loaded):
            if name not in held_out[label]:
                harness.lm = evaluations[label]()
                with _silent(True):
                    held_out[label][name] = run_task(
                        harness,
                        name,
                        loaded[name],
                        limit,
                        items=splits[name].test,
                        metric=metrics[name],
                    )
                harness.lm = lm
                outputs.write_json(output, result)
        choice.compare(held_out)
        outputs.write_json(output, result)
        for line in choice.sentences(held_out):
            say(line)
    return result


def _metric(name: str, task) -> str:
    """The accuracy metric of a task; a task with an F1 is not scored by its exact match."""
    metrics = [entry["metric"] for entry in task.config.metric_list or []]
    found = [metric for metric in ACCURACIES if metric in metrics]
    if not found or "f1" in metrics:
        raise UserError(f"task {name} has no accuracy; it has {', '.join(metrics) or 'no metric'}")
    return found[0]


def _row(one: Intervention, n_layers: int) -> dict:
    """The row of an intervention in the result, before its evaluations."""
    return {
        "size": one.size,
        "start": one.start,
        "times": one.times,
        "passes": str(one.passes),
        "order": one.order(n_layers),
        "tasks": {},
    }


def _of_row(op: str, row: dict) -> Intervention:
    """The intervention of a row; rows of earlier versions do not name plain passes."""
    passes = Passes.parse(row.get("passes", "plain"))
    return Intervention(op, row["size"], row["start"], row["times"], passes)


def _scored(found: dict, metric: str, plain: dict | None) -> dict:
    """A task's result with its accuracy, absolute and relative to the unmodified model's."""
    accuracy = metric_of(found["metrics"], metric)
    stderr = metric_of(found["metrics"], f"{metric}_stderr")
    whole = accuracy if plain is None else plain["accuracy"]
    relative = accuracy / whole if whole else None
    return {"accuracy": accuracy, "stderr": stderr, "relative": relative, **found}


@contextlib.contextmanager
def _silent(hidden: bool):
    """Hides progress lines: after the unmodified model, each evaluation prints one line."""
    with contextlib.redirect_stderr(io.StringIO()) if hidden else contextlib.nullcontext():
        yield


class _Progress:
    """Prints each evaluation, and the expected time of the remaining ones."""

    def __init__(self, names: list[str], plain: dict, say):
        self.left, self.total, self.say = list(names), len(names), say
        self.seconds = {name: found["seconds"] for name, found in plain.items()}

    def done(self, one: Intervention | None, name: str, found: dict) -> None:
        self.left.remove(name)
        self.seconds[name] = found["seconds"]
        known = all(other in self.seconds for other in self.left)
        left = sum(self.seconds.get(other, 0.0) for other in self.left)
        stderr = "" if found["stderr"] is None else f" ± {found['stderr']:.4f}"
        share = found["relative"] if one else None
        relative = "" if share is None else f" ({share:.2f} of unmodified)"
        self.say(
            f"{self.total - len(self.left)}/{self.total}  {one or 'unmodified'}  {name}  "
            f"{found['accuracy']:.4f}{stderr}{relative}"
            + (f"  ETA {duration(left)}" if known and self.left else "")
        )


class Repeated(LoopjaxLM):
    """The harness's model for the same requests with another `lm` each time; tokenizes texts once."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tok_encode = functools.cache(self.tok_encode)


def keep_requests(task) -> None:
    """Makes a task build its requests only once for the same items: LAMBADA's take 7 s on a CPU."""
    build, built = task.build_all_requests, []

    def once(**kwargs):
        if built != [kwargs]:
            build(**kwargs)
            built[:] = [kwargs]
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [], {}

    task.build_all_requests = once
