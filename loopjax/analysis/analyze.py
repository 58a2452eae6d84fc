"""`loopjax analyze`: the depth signature of a checkpoint, as numbers and pictures.

Each diagnostic leaves NAME-PROMPTS.json (and .npz for what is long) and .png; one that is there
already, of the same model, prompts and settings, is not computed again. One that was stopped goes
on from the prompts that are done (NAME-PROMPTS.partial.npz), to the same result, bit for bit.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable

from loopjax.analysis import depth_score, early_exit, effects, lens, norms, similarity
from loopjax.checkpoint import versions, weights_digest
from loopjax.errors import UserError
from loopjax.lm.loaded_model import LanguageModel
from loopjax.plots import figure
from loopjax.plots.diagnostics import PLOTS
from loopjax.progress import duration
from loopjax.results import store


@dataclasses.dataclass(frozen=True)
class Diagnostic:
    """What can be asked of a model.

    Attributes:
      kind: the dataclass of its result.
      run: (model, cases, options, each) -> result; a case is (tokens, answer start, group), and
        `each` is `store.Parts.each`.
      prompts: how many of the prompts it takes, from the first; 0: none, None: all.
      settings: what of the options it depends on.
      needs_lens: whether a lens is read, or trained, for it.
    """

    kind: type
    run: Callable
    prompts: int | None
    settings: tuple[str, ...] = ()
    needs_lens: bool = False


def _texts(cases):
    return [tokens for tokens, _, _ in cases]


def _future(measure):
    def run(lm, cases, options, each):
        prompts = _texts(cases)
        return measure(lm, prompts, effects.draw_boundaries(prompts), each=each)

    return run


def _current_attention(lm, cases, options, each):
    return effects.propagated(lm, _texts(cases), None, "attention", each)


def _depth_score(lm, cases, options, each):
    return depth_score.depth_score(lm, cases, one=options["one_boundary"], each=each)


def _overlap(lm, cases, options, each):
    return early_exit.agreement(lm, options["lens"], _texts(cases), each)


def _exit_accuracy(lm, cases, options, each):
    return early_exit.accuracy(
        lm, options["lens"], options["tasks"], limit=options["limit"],
        data_dir=options["data_dir"], say=options["say"], each=each,
    )  # fmt: skip


# The numbers of prompts are those of the papers (analysis of effects: 10 and 20 of GSM8K).
DIAGNOSTICS = {
    "norms": Diagnostic(
        norms.Norms, lambda lm, cases, o, p: norms.norms(lm, _texts(cases), p), 20
    ),
    "future_local": Diagnostic(
        effects.Effects, _future(effects.local), 10
    ),
    "future": Diagnostic(
        effects.Effects, _future(effects.propagated), 10
    ),
    "current_attention": Diagnostic(
        effects.Effects, _current_attention, 20
    ),
    "depth_score": Diagnostic(
        depth_score.DepthScore, _depth_score, None, ("one_boundary",)
    ),
    "similarity": Diagnostic(
        similarity.Similarity,
        lambda lm, cases, o, p: similarity.block_similarity(lm, o["block"]),
        0, ("block",),
    ),
    "overlap": Diagnostic(
        early_exit.Agreement, _overlap, 20, ("training", "lens_data"), True
    ),
    "exit_accuracy": Diagnostic(
        early_exit.ExitAccuracy, _exit_accuracy, 0,
        ("training", "lens_data", "tasks", "limit", "data_dir"), True,
    ),
}  # fmt: skip
TRAINING = lens.Training()
ALL = tuple(name for name, diagnostic in DIAGNOSTICS.items() if not diagnostic.needs_lens)


def analyze(
    lm: LanguageModel,
    names: list[str],
    cases: list,
    output,
    *,
    prompts: dict,
    block: int = 4,
    one_boundary: bool = False,
    training: lens.Training = TRAINING,
    lens_data: dict | None = None,
    tasks=early_exit.TASKS,
    limit: int | None = None,
    data_dir=None,
    again: bool = False,
    leave_out: bool = False,
    say=print,
) -> dict:
    """Runs diagnostics by name, writes them to a directory, and returns {name: result}.

    Args:
      cases: (tokens, answer start, group) of each prompt.
      prompts: what they are, for the record; their "name" becomes part of the files'.
      block: layers of a block, for the similarity of blocks.
      one_boundary: whether the depth score cuts at the start of the answer alone.
      training, lens_data: how the lens is trained that early exits need, and on which mixture and
        data_dir (as `lens.train` takes them); it is OUTPUT/lens.npz, and trained once.
      tasks, limit, data_dir: of the accuracy of early exits.
      again: compute also what is there already.
      leave_out: tell of a diagnostic that the model or the prompts do not allow, and go on.
    """
    unknown = [name for name in names if name not in DIAGNOSTICS]
    if unknown:
        raise UserError(f"--what {unknown[0]!r} must be all, or of {', '.join(DIAGNOSTICS)}")
    output = pathlib.Path(output)
    options = {
        "block": block, "one_boundary": one_boundary, "training": dataclasses.asdict(training),
        "lens_data": lens_data or {}, "tasks": list(tasks), "limit": limit, "data_dir": data_dir and str(data_dir), "say": say,
    }  # fmt: skip
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    if not (pictures := figure.installed()):
        say("numbers only: pictures need matplotlib (pip install 'loopjax[report]')")
    done = {}
    for name in names:
        diagnostic = DIAGNOSTICS[name]
        chosen = cases[: diagnostic.prompts]
        file = f"{name}-{pathlib.Path(prompts['name']).stem}" if chosen else name
        settings = {key: options[key] for key in diagnostic.settings}
        about = {**_about(lm), "settings": settings}
        if chosen:
            about["prompts"] = {**prompts, "n": len(chosen), "sha256": _digest(chosen)}
        found = None if again else store.load(output, file, diagnostic.kind, about)
        parts = store.Parts(
            output / f"{file}.partial.npz", {"about": about, **_machine(lm)},
            f"{name} at {lm.plan}" if chosen else "",
        )  # fmt: skip
        if again:
            parts.remove()
        if found is None:
            try:
                if diagnostic.needs_lens and "lens" not in options:
                    path = output / "lens.npz"
                    options["lens"] = lens.train(path, lm, training, **options["lens_data"])
                found = diagnostic.run(lm, chosen, options, parts.each)
            except KeyboardInterrupt:
                goes_on = "" if again else ": the same command goes on"
                raise UserError(f"stopped in {file}{goes_on}") from None
            except UserError as error:
                if not leave_out:
                    raise
                say(f"{file}: left out, {error}")
                continue
            store.save(output, file, about, found, parts.seconds)
            say(f"{file}: {duration(parts.seconds)}")
        else:
            say(f"{file}: is there already")
        parts.remove()
        if pictures:
            figure.save(PLOTS[name]({f"plan {lm.plan}": found}), output / f"{file}.png")
        done[name] = found
    return done


def _about(lm: LanguageModel) -> dict:
    """Which model it is."""
    return {
        "checkpoint": str(lm.path), "step": lm.meta["step"], "weights": weights_digest(lm.meta),
        "depth": str(lm.plan), "dtype": lm.cfg.dtype,
    }  # fmt: skip


def _machine(lm: LanguageModel) -> dict:
    """What else the bits of its numbers depend on."""
    mesh = {axis: size for axis, size in lm.mesh.shape.items() if size > 1}
    return {"devices": lm.mesh.devices.flat[0].device_kind, "mesh": mesh, "versions": versions()}


def _digest(cases) -> str:
    """Which prompts they are, as tokens."""
    plain = [[list(map(int, tokens)), start, group] for tokens, start, group in cases]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
