"""What the experiments share: the models of both scales, commands whose results are kept, outcomes.

An experiment is a file with `TITLE`, `PAPER` (what the papers found), `runs(study)`, which declares
and trains its models, and `outcome(study)`, which measures, and says what came out:

    python experiments/NAME.py [--output=study]             # mini: minutes on two CPU cores
    python experiments/NAME.py --scale=paper                # checks the published protocol, trains nothing
    python experiments/NAME.py --scale=paper --go           # and runs it

Whatever is done already is not done again, within an experiment or between them: every model and
every measurement is a command of `loopjax`, which is printed, with a file that it leaves and
FILE.done, which says what it was. What another command left is not taken for it.
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

    def model(self, role: str, seed: int) -> pathlib.Path:
        """The directory of a model of Table 1, trained if need be."""
        row = self.scale.rows[role]
        return self.train(f"{row}-s{seed}", f"{self.scale.config}{row}", f"seed={seed}")

    def models(self, role: str) -> list[pathlib.Path]:
        """Those of a role, one for each seed."""
        return [self.model(role, seed) for seed in self.scale.seeds]

    def cooldown(self, role: str, plan: str, seed: int) -> pathlib.Path:
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
        return self._run(workdir, command)

    def finetuned(self, name: str, base, pairs: str, *overrides: str) -> pathlib.Path:
        """The directory of a fine-tuning run from another run's last checkpoint."""
        workdir = self.output / "runs" / name
        flags = [f"--config.{override}" for override in overrides]
        command = ["finetune", f"--checkpoint={base}", f"--pairs={pairs}", f"--workdir={workdir}",
                   *flags]  # fmt: skip
        return self._run(workdir, command)

    def _run(self, workdir: pathlib.Path, command: list[str]) -> pathlib.Path:
        self.declared[workdir] = command
        if not self.checking:
            self.made(workdir / "result.json", command)
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

    def analyze(self, run, name: str, prompts: str = "", *flags: str) -> pathlib.Path:
        """The directory with a result of `loopjax analyze`."""
        directory, prompts = run / "analysis", self.prompts(prompts)
        command = ["analyze", f"--checkpoint={run}", f"--what={name}", f"--prompts={prompts}",
                   f"--block={self.scale.block}", f"--output={directory}", *flags]  # fmt: skip
        self.made(directory / f"{analyzed(name, prompts)}.json", command)
        return directory

    def prompts(self, name: str = "") -> str:
        """A prompt set as `loopjax analyze` takes it; that of the small scale is written here."""
        name = (name or self.scale.prompts[0]).format(output=self.output)
        if name.startswith("file:"):
            file = pathlib.Path(name.removeprefix("file:"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(prompt) + "\n" for prompt in _hop_prompts()))
        return name

    def _limit(self) -> list[str]:
        return [f"--limit={self.scale.limit}"] if self.scale.limit else []

    # Commands

    def made(self, file: pathlib.Path, command: list[str]) -> dict:
        """The JSON that a command writes, bit by bit; FILE.done says that it is whole."""
        if not self.is_done(file, command):
            self.do(command)
            self.is_now_done(file, command)
        return self.read(file)

    def is_done(self, file: pathlib.Path, command: list[str]) -> bool:
        """Whether a command has left its file; stops where another one has."""
        done, said = _done(file), self._said(command)
        if not done.exists():
            return False
        if (before := done.read_text().strip()) != said:
            raise SystemExit(
                f"{file} was made by another command ({before}; now {said}): delete it, or choose "
                "another --output"
            )
        return True

    def is_now_done(self, file: pathlib.Path, command: list[str]) -> None:
        _done(file).write_text(f"{self._said(command)}\n")

    def _said(self, command: list[str]) -> str:
        """The command, wherever the study lies."""
        return shlex.join(command).replace(str(self.output), ".")

    def do(self, command: list[str]) -> None:
        from loopjax.cli.main import main

        print(f"\nloopjax {shlex.join(command)}", flush=True)
        code = main(command)
        if code or code is None:
            raise SystemExit(code or 1)

    @staticmethod
    def read(path: pathlib.Path) -> dict:
        return json.loads(path.read_text())


def _done(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(f"{file.name}.done")


def _hop_prompts():
    """Strings of 100 letters with 4 and with 8 hops to follow; the last 24 letters are the answer."""
    import numpy as np

    from loopjax.data.hops import hop_question

    rng = np.random.default_rng(0)
    for p in (4, 8) * 10:
        text, _ = hop_question(rng, p, 100)
        yield {"prompt": text[:-24], "answer": text[-24:], "group": str(p)}


def analyzed(name: str, prompts: str) -> str:
    """The file of a diagnostic, without its ending."""
    from loopjax.analysis.diagnostics import DIAGNOSTICS

    prompts = pathlib.Path(prompts.removeprefix("file:")).stem
    return f"{name}-{prompts}" if DIAGNOSTICS[name].prompts != 0 else name


def diagnostic(study: Study, run: pathlib.Path, name: str, prompts: str = "", *flags: str):
    """The result of a diagnostic of `loopjax analyze`, measured if need be."""
    from loopjax.analysis.diagnostics import DIAGNOSTICS
    from loopjax.results import store

    prompts = study.prompts(prompts)
    directory = study.analyze(run, name, prompts, *flags)
    return store.load(directory, analyzed(name, prompts), name, DIAGNOSTICS[name].result_type())


def result(run: pathlib.Path) -> dict:
    return Study.read(run / "result.json")


def accuracy(evaluated: dict, task: str, plan: str | None = None) -> float:
    """Accuracy of a task in the JSON of `loopjax eval`, at its first plan or another."""
    from loopjax.run_record import score

    plans = evaluated["plans"]
    found = plans[plan] if plan else next(iter(plans.values()))
    return score(found["tasks"][task])["value"]


def mean_of(evaluated: dict, plan: str | None = None) -> float:
    """Mean accuracy over the tasks of an evaluation."""
    tasks = next(iter(evaluated["plans"].values()))["tasks"]
    return statistics.fmean(accuracy(evaluated, task, plan) for task in tasks)


def first_of(by_role: dict) -> dict:
    """The first seed of each role, which the pictures of diagnostics show."""
    return {role: found[0] for role, found in by_role.items()}


def noise(study: Study) -> str:
    """How far the accuracy of one model is from itself by chance."""
    n = study.scale.limit or 1000
    tasks = len(study.scale.tasks)
    points = 100 * (0.25 / n / tasks) ** 0.5
    return f"The standard error of one model's mean over {tasks} x {n} items is up to {points:.1f} points."


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
    parser.add_argument("--seeds", type=positive, help="models of each kind")
    parser.add_argument("--go", action="store_true", help="run also what --scale=paper checks")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "study")
    args = parser.parse_args()
    output = (args.output / args.scale).absolute()
    os.chdir(ROOT)
    scale = repeated(args.scale, args.seeds)
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


def positive(text: str) -> int:
    """A number of a command line; raises ArgumentTypeError unless it is 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 1 or more")
    return int(text)


def perform(module, study: Study) -> Outcome:
    """Trains and measures; leaves NAME.md, NAME.json and pictures in the study's directory."""
    import jax

    for option, value in compilation_cache(study.output).items():
        jax.config.update(option, value)
    name = pathlib.Path(module.__file__).stem
    module.runs(study)
    found = module.outcome(study)
    from loopjax.plots import figure

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
