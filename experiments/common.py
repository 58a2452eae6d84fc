"""What the experiments share: the models of both scales, commands whose results are kept, outcomes.

An experiment is a file with `TITLE`, `PAPER` (what the papers found), `runs(study)`, which declares
and trains its models, and `outcome(study)`, which measures, and says what came out:

    python experiments/NAME.py [--output=study]             # mini: minutes on two CPU cores
    python experiments/NAME.py --scale=paper                # checks the published protocol, trains nothing
    python experiments/NAME.py --scale=paper --go           # and runs it

Whatever is done already is not done again, within an experiment or between them: every model and
every measurement is a command of `loopjax`, which is printed, with a file that it leaves.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
import shlex
import statistics

from scales import MINI, SCALES, Scale, repeated

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Outcome:
    """What an experiment came to.

    Attributes:
      found: what was measured, in sentences, from the numbers.
      verdict: whether the papers' finding shows: "shows", "does not show", "shows in part"; or
        "cannot show", where the tasks are solved already, or by no model, and leave no room.
      heads, rows: a table.
      figures: {name: matplotlib figure}, the first of the experiment's own name.
    """

    found: str
    verdict: str
    heads: tuple[str, ...]
    rows: list[tuple]
    figures: dict


class Study:
    """The runs and measurements of a directory, at a scale.

    Attributes:
      name: "mini" or "paper".
      checking: whether runs are only declared; `declared` holds them then.
    """

    def __init__(self, output: pathlib.Path, scale: Scale = MINI, *, checking: bool = False):
        self.output, self.scale, self.checking = output.absolute(), scale, checking
        self.name = scale.name
        self.declared: dict[pathlib.Path, list[str]] = {}

    # Models

    def model(self, role: str, seed: int = 0) -> pathlib.Path:
        """The directory of a model of Table 1, trained if need be."""
        row = self.scale.rows[role]
        return self.train(f"{row}-s{seed}", f"{self.scale.config}{row}", f"seed={seed}")

    def models(self, role: str) -> list[pathlib.Path]:
        """Those of a role, one for each seed."""
        return [self.model(role, seed) for seed in self.scale.seeds]

    def cooldown(self, role: str, plan: str = "", seed: int = 0) -> pathlib.Path:
        """A model whose cooldown has more mathematics, maybe with a block looped once more."""
        scale, row = self.scale, self.scale.rows[role]
        source = self.model(role, seed)
        variant = ",".join(filter(None, (row, scale.math, plan)))
        name = "-".join(filter(None, (row, scale.math, plan and f"by-{plan}", f"s{seed}")))
        return self.train(
            name, f"{scale.config}{variant}", f"init_from={source}@{scale.plateau}", f"seed={seed}"
        )

    def cooldowns(self, role: str, plan: str = "") -> list[pathlib.Path]:
        """The same, one for each seed."""
        return [self.cooldown(role, plan, seed) for seed in self.scale.seeds]

    def train(self, name: str, config: str, *overrides: str) -> pathlib.Path:
        """The directory of a run, trained if need be."""
        workdir = self.output / "runs" / name
        flags = [f"--config.{override}" for override in overrides]
        command = ["train", f"--config={config}", f"--workdir={workdir}", *flags]
        self.declared[workdir] = command
        if not self.checking and not (workdir / "result.json").exists():
            self.do(command)
        return workdir

    def finetuned(self, name: str, base, pairs: str, *overrides: str) -> pathlib.Path:
        """The directory of a fine-tuning run from another run's last checkpoint."""
        workdir = self.output / "runs" / name
        flags = [f"--config.{override}" for override in overrides]
        command = ["finetune", f"--checkpoint={base}", f"--pairs={pairs}", f"--workdir={workdir}",
                   *flags]  # fmt: skip
        self.declared[workdir] = command
        if not self.checking and not (workdir / "result.json").exists():
            self.do(command)
        return workdir

    # Measurements

    def evaluate(self, run, tasks=(), depths=(), name="reasoning", shots=None) -> dict:
        """The JSON of `loopjax eval`."""
        file, tasks = run / f"{name}.json", tasks or self.scale.tasks
        shots = self.scale.shots if shots is None else shots
        command = ["eval", f"--checkpoint={run}", f"--tasks={','.join(tasks)}", f"--output={file}",
                   f"--num-fewshot={shots}", *self._limit()]  # fmt: skip
        if depths:
            command.append(f"--depth={','.join(depths)}")
        return self.made(file, command)

    def intervene(self, run, op: str, sizes, times=(), tasks=()) -> dict:
        """The JSON of `loopjax intervene`."""
        file = run / f"{op}-{'-'.join(map(str, sizes))}.json"
        command = ["intervene", f"--checkpoint={run}", f"--op={op}", f"--output={file}",
                   f"--size={','.join(map(str, sizes))}", f"--tasks={','.join(tasks)}",
                   f"--num-fewshot={self.scale.shots}", *self._limit()]  # fmt: skip
        if times:
            command.append(f"--times={','.join(map(str, times))}")
        return self.made(file, command)

    def icl(self, run, tasks) -> dict:
        """The JSON of `loopjax icl`."""
        file = run / "icl.json"
        command = ["icl", f"--checkpoint={run}", f"--tasks={','.join(tasks)}", f"--output={file}",
                   *self._limit()]  # fmt: skip
        return self.made(file, command)

    def analyze(self, run, what, prompts: str = "", *flags: str) -> pathlib.Path:
        """The directory of results of `loopjax analyze`."""
        directory, prompts = run / "analysis", self.prompts(prompts)
        missing = [n for n in what if not (directory / f"{analysed(n, prompts)}.json").exists()]
        if missing:
            self.do(["analyze", f"--checkpoint={run}", f"--what={','.join(missing)}",
                     f"--prompts={prompts}", f"--block={self.scale.block}",
                     f"--output={directory}", *flags])  # fmt: skip
        return directory

    def prompts(self, name: str = "") -> str:
        """A prompt set as `loopjax analyze` takes it; that of the small scale is written here."""
        name = (name or self.scale.prompts[0]).format(output=self.output)
        file = pathlib.Path(name.removeprefix("file:"))
        if name.startswith("file:") and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(prompt) + "\n" for prompt in _hop_prompts()))
        return name

    def _limit(self) -> list[str]:
        return [f"--limit={self.scale.limit}"] if self.scale.limit else []

    # Commands

    def made(self, file: pathlib.Path, command: list[str]) -> dict:
        """The JSON that a command writes, bit by bit; FILE.done says that it is whole."""
        done = file.with_name(f"{file.name}.done")
        if not done.exists():
            self.do(command)
            done.write_text(shlex.join(command) + "\n")
        return self.read(file)

    def do(self, command: list[str]) -> None:
        from loopjax.cli import main

        print(f"\nloopjax {shlex.join(command)}", flush=True)
        code = main(command)
        if code or code is None:
            raise SystemExit(code or 1)

    @staticmethod
    def read(path: pathlib.Path) -> dict:
        return json.loads(path.read_text())


def _hop_prompts():
    """Strings of 100 letters with 4 and with 8 hops to follow; the last 24 letters are the answer."""
    import numpy as np

    from loopjax.data.hops import hop_question

    rng = np.random.default_rng(0)
    for p in (4, 8) * 10:
        text, _ = hop_question(rng, p, 100)
        yield {"prompt": text[:-24], "answer": text[-24:], "group": str(p)}


def analysed(name: str, prompts: str) -> str:
    """The file of a diagnostic, without its ending."""
    from loopjax.analysis.analyze import DIAGNOSTICS

    prompts = pathlib.Path(prompts.removeprefix("file:")).stem
    return f"{name}-{prompts}" if DIAGNOSTICS[name].prompts != 0 else name


def diagnostic(study: Study, run: pathlib.Path, name: str, prompts: str = "", *flags: str):
    """The result of a diagnostic of `loopjax analyze`, measured if need be."""
    from loopjax.analysis import results
    from loopjax.analysis.analyze import DIAGNOSTICS

    prompts = study.prompts(prompts)
    directory = study.analyze(run, [name], prompts, *flags)
    return results.load(directory, analysed(name, prompts), DIAGNOSTICS[name].kind)


def result(run: pathlib.Path) -> dict:
    return Study.read(run / "result.json")


def accuracy(evaluated: dict, task: str, plan: str | None = None) -> float:
    """Accuracy of a task in the JSON of `loopjax eval`, at its first plan or another."""
    plans = evaluated["plans"]
    found = plans[plan] if plan else next(iter(plans.values()))
    metrics = found["tasks"][task]["metrics"]
    return next(value for key, value in metrics.items() if key.split(",")[0] == "acc")


def mean_of(evaluated: dict, plan: str | None = None) -> float:
    """Mean accuracy over the tasks of an evaluation."""
    tasks = next(iter(evaluated["plans"].values()))["tasks"]
    return statistics.fmean(accuracy(evaluated, task, plan) for task in tasks)


def first_of(by_role: dict) -> dict:
    """The first seed of each role, which the pictures of diagnostics show."""
    return {role: found[0] for role, found in by_role.items()}


CYCLE = ("strongest at position", "contrast", "share of the variance (by chance)")


def cycle_of(study: Study, run: pathlib.Path, values):
    """The cycle of a block's length in values by executed layer; the standard model's block is the
    scale's."""
    import numpy as np

    from loopjax.analysis import signature
    from loopjax.checkpoint import Checkpoints, locate
    from loopjax.depth import DepthPlan
    from loopjax.inspect import lineage

    directory, step = locate(run)
    meta = Checkpoints(directory, read_only=True).meta(step)
    block = signature.block_of(lineage.stages(meta["lineage"]), DepthPlan.parse(meta["plan"]))
    values = np.array([np.nan if v is None else v for v in values], float)
    return signature.cycle(values, block or signature.Block(study.scale.block))


def about_cycles(cycles: list) -> tuple[str, ...]:
    """Cells of the columns CYCLE, of the seeds of a model."""
    if None in cycles:
        return ("–",) * len(CYCLE)
    return (
        " ".join(str(cycle.strongest) for cycle in cycles),
        spread(cycle.contrast for cycle in cycles),
        f"{spread((cycle.share for cycle in cycles), 2)} ({cycles[0].by_chance:.2f})",
    )


def cycle_finding(cycles: dict, what: str) -> tuple[str, str]:
    """(found, verdict) of {role: cycles of its seeds}.

    A cycle counts where the position explains twice what it would by chance, in the mean of seeds.
    """
    share = {r: statistics.fmean(c.share for c in cs) for r, cs in cycles.items() if None not in cs}
    by_chance = {role: cycles[role][0].by_chance for role in share}
    has = {role: role in share and share[role] > 2 * by_chance[role] for role in cycles}
    said = ", ".join(f"{role} {value:.2f}" for role, value in share.items())
    others = [has[role] for role in cycles if role != "standard"]
    verdict = "shows" if all(others) and not has["standard"] else "shows in part"
    if not any(others) or (has["standard"] and not all(others)):
        verdict = "does not show"
    return (
        f"Share of the variance of {what} that the position in the block explains: {said}; by chance "
        f"it would be {max(by_chance.values()):.2f} in stacks as short as these.",
        verdict,
    )


def noise(study: Study) -> str:
    """How far a mean over the primitives is from itself by chance."""
    n = study.scale.limit or 1000
    tasks = len(study.scale.tasks)
    points = 100 * (0.25 / n / tasks) ** 0.5
    return f"The standard error of a mean over {tasks} x {n} items is up to {points:.1f} points."


def ceiling(values) -> str:
    """A sentence where accuracies leave no room for what would raise them, else nothing."""
    mean = statistics.fmean(values)
    return f"The tasks are solved already ({mean:.1%}), so no gain can show." if mean > 0.97 else ""


def floor(above_chance) -> str:
    """A sentence where no model has learned what is compared, else nothing."""
    best = max(above_chance)
    if best > 0.05:
        return ""
    return f"No model has learned the tasks ({100 * best:+.1f} points from guessing at best)."


def spread(values, digits: int = 3, percent: bool = False) -> str:
    """Mean ± standard deviation, of several; one by itself."""
    values = list(values)
    scale, unit = (100, "%") if percent else (1, "")
    mean = scale * statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}{unit}"
    return f"{mean:.{digits}f} ± {scale * statistics.stdev(values):.{digits}f}{unit}"


def points(gains) -> str:
    """Mean ± standard deviation of differences of accuracies, in points."""
    return f"{'+' * (statistics.fmean(gains) >= 0)}{spread(gains, 1, percent=True).rstrip('%')}"


def run_experiment(module) -> None:
    """The command line of an experiment."""
    parser = argparse.ArgumentParser(description=module.__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="mini")
    parser.add_argument("--seeds", type=int, help="models of each kind")
    parser.add_argument("--go", action="store_true", help="run also what --scale=paper checks")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "study")
    args = parser.parse_args()
    os.chdir(ROOT)
    output, scale = args.output / args.scale, repeated(args.scale, args.seeds)
    if args.scale == "paper":
        import protocol

        protocol.check(module, Study(output, scale, checking=True))
        if not args.go:
            return
    perform(module, Study(output, scale))


def compilation_cache(output: pathlib.Path) -> dict:
    """Options of JAX by which the models of a plan compile once."""
    return {
        "jax_compilation_cache_dir": str(output / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }


def perform(module, study: Study) -> Outcome:
    """Trains and measures; leaves NAME.md, NAME.json and pictures in the study's directory."""
    import jax

    for option, value in compilation_cache(study.output).items():
        jax.config.update(option, value)
    name = pathlib.Path(module.__file__).stem
    module.runs(study)
    found = module.outcome(study)
    from loopjax import figure

    for title, drawn in found.figures.items():
        figure.save(drawn, study.output / f"{title}.png")
    table = [dict(zip(found.heads, row, strict=True)) for row in found.rows]
    about = {"title": module.TITLE, "paper": module.PAPER, "found": found.found,
             "verdict": found.verdict, "figures": [*found.figures], "table": table}  # fmt: skip
    (study.output / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    (study.output / f"{name}.md").write_text(markdown(name, about))
    print(f"\n{markdown(name, about)}")
    return found


def markdown(name: str, about: dict, folder: str = "") -> str:
    """A section of the results: the papers' finding, ours, table and pictures."""
    lines = [f"## {about['title']}", "", f"*The papers.* {about['paper']}", ""]
    lines += [f"*Here: {about['verdict']}.* {about['found']}", ""]
    if about["table"]:
        heads = list(about["table"][0])
        lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        lines += [f"| {' | '.join(str(row[h]) for h in heads)} |" for row in about["table"]] + [""]
    lines += [f"![{about['title']}]({folder}{figure}.png)" for figure in about["figures"]]
    lines += ["", f"`python experiments/{name}.py`", ""]
    return "\n".join(lines)


def start(file: str) -> None:
    """Runs the experiment of a file that is executed."""
    run_experiment(importlib.import_module(pathlib.Path(file).stem))
