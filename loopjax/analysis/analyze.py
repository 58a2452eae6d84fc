"""`loopjax analyze`: diagnostics of a checkpoint, as numbers and pictures.

Each diagnostic writes NAME-PROMPTS.json (and .npz for long arrays) and .png. A result that exists
for the same model, prompts and settings is not computed again. A stopped diagnostic resumes after
the prompts that are done (NAME-PROMPTS.partial.npz), and its result is bit-identical.
"""

import hashlib
import json
import pathlib

from loopjax import lineage, outputs, paths
from loopjax.analysis import lens, periodicity
from loopjax.analysis.diagnostics import DIAGNOSTICS, Diagnostic
from loopjax.analysis.early_exit import TASKS
from loopjax.analysis.lens_training import DEFAULTS, Training
from loopjax.checkpoint import versions
from loopjax.errors import UserError
from loopjax.lm.loaded_model import LanguageModel
from loopjax.plots import figure, roles
from loopjax.progress import duration
from loopjax.results import store


def analyze(
    lm: LanguageModel,
    names: list[str],
    cases: list,
    output,
    *,
    prompts: dict,
    block: int = 4,
    one_boundary: bool = False,
    repetitions: int | None = None,
    training: Training = DEFAULTS,
    lens_data: dict | None = None,
    tasks=TASKS,
    limit: int | None = None,
    data_dir=None,
    again: bool = False,
    leave_out: bool = False,
    say=print,
) -> dict:
    """Runs diagnostics by name, writes them to a directory, and returns {name: result}.

    Args:
      cases: (tokens, answer start, group) of each prompt.
      prompts: description of the prompts, for the record; "name" becomes part of the file names.
      block: layers of a block, for the similarity of blocks.
      one_boundary: whether the depth score uses the start of the answer as the only boundary.
      repetitions: repetitions of a loop that trajectories follow; by default as `trajectories` says.
      training: how the lens that early exits need is trained; it is OUTPUT/lens.npz, trained once.
      lens_data: data of that training, {"mixture": ..., "data_dir": ...} as for `lens.train`.
      tasks, limit, data_dir: tasks of exit_accuracy, items of each, and where their files are.
      again: recompute existing results.
      leave_out: report a diagnostic that the model or the prompts do not allow, and continue.
    """
    unknown = [name for name in names if name not in DIAGNOSTICS]
    if unknown:
        raise UserError(f"--what {unknown[0]!r} must be all or some of {', '.join(DIAGNOSTICS)}")
    outputs.check_directory(output, "--output")
    output = paths.of(output)
    options = {
        "block": block,
        "one_boundary": one_boundary,
        "repetitions": repetitions,
        "training": training.settings,
        "lens_data": lens_data or {},
        "tasks": list(tasks),
        "limit": limit,
        "data_dir": data_dir and str(data_dir),
        "say": say,
    }
    # Missing packages are reported before anything is computed or written.
    computations = {name: DIAGNOSTICS[name].computation() for name in names}
    if not (pictures := figure.installed()):
        say("numbers only: pictures need matplotlib (pip install 'loopjax[report]')")
    results = {}
    for name, compute in computations.items():
        row = DIAGNOSTICS[name]
        chosen = cases[: row.prompts]
        file = f"{name}-{pathlib.Path(prompts['name']).stem}" if chosen else name
        about = _about(lm, row, options, chosen, prompts)
        parts = store.Parts(
            output / f"{file}.partial.npz",
            {"about": about, **_machine(lm)},
            text=f"{name} at {lm.plan}" if chosen else "",
            name=name,
        )
        result = None if again else store.load(output, file, name, row.result_type(), about)
        if again:
            parts.remove()
        if result is None:
            try:
                row.check_plan(lm.plan)
                if row.needs_lens and "lens" not in options:
                    path = output / "lens.npz"
                    options["lens"] = lens.train(path, lm, training, **options["lens_data"])
                result = compute(lm, chosen, options, parts.each)
            except KeyboardInterrupt:
                hint = "" if again else "; rerun the same command to resume"
                raise UserError(f"stopped in {file}{hint}") from None
            except UserError as error:
                if not leave_out:
                    raise
                say(f"{file}: skipped, {error}")
                continue
            store.save(output, file, about, result, parts.seconds, name)
            say(f"{file}: {duration(parts.seconds)}")
        else:
            say(f"{file}: already exists, skipped")
        parts.remove()
        if pictures:
            label = f"plan {lm.plan}"
            look = roles.look_of(lm.plan, lm.meta)
            events = lm.meta.get("lineage")
            blocks = periodicity.starts(lineage.stages(events) if events else [], lm.plan)
            drawn = row.draw({label: result}, {label: look}, {label: blocks})
            figure.save(drawn, output / f"{file}.png")
        results[name] = result
    return results


def _about(lm: LanguageModel, row: Diagnostic, options: dict, cases, prompts: dict) -> dict:
    """The model, the settings and the prompts that a result depends on."""
    about = {
        "checkpoint": str(lm.path),
        "step": lm.meta["step"],
        "weights": lm.digest,
        "depth": str(lm.plan),
        "dtype": lm.cfg.dtype,
        "settings": {key: options[key] for key in row.settings},
    }
    if cases:
        about["prompts"] = {**prompts, "n": len(cases), "sha256": _digest(cases)}
    return about


def _machine(lm: LanguageModel) -> dict:
    """What else the bits of a result depend on."""
    mesh = {axis: size for axis, size in lm.mesh.shape.items() if size > 1}
    return {"devices": lm.mesh.devices.flat[0].device_kind, "mesh": mesh, "versions": versions()}


def _digest(cases) -> str:
    """A hash of the prompts' tokens."""
    plain = [[list(map(int, tokens)), start, group] for tokens, start, group in cases]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
