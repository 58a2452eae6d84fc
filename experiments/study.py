"""The runs and measurements of a study: commands of `loopjax`, each run once.

A model or a measurement is a command with an output file. FILE.done holds the command that wrote
FILE; a finished command is not run again, and a file written by another command is an error.
"""

import json
import pathlib
import shlex

import numpy as np
import protocol
from scales import MINI, Scale

from loopjax import cost
from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.cli.main import main
from loopjax.data.trail import trail_item
from loopjax.files import read_json
from loopjax.results import store

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Study:
    """The runs and measurements in a directory, at one scale.

    Attributes:
      output: directory of the study.
      name: "mini", "gpu" or "paper".
      checking: whether runs are only declared, not trained.
      declared: {directory of a run: its command}.
    """

    def __init__(self, output: pathlib.Path, scale: Scale = MINI, *, checking: bool = False):
        self.output = output.absolute()
        self.scale = scale
        self.checking = checking
        self.name = scale.name
        self.declared: dict[pathlib.Path, list[str]] = {}

    # Models

    def model(self, role: str, seed: int) -> pathlib.Path:
        """The directory of a model of Table 1; trains it unless it is finished."""
        row = self.scale.rows[role]
        return self.train(f"{row}-s{seed}", f"{self.scale.config}{row}", f"seed={seed}")

    def models(self, role: str) -> list[pathlib.Path]:
        """The models of a role, one per seed."""
        return [self.model(role, seed) for seed in self.scale.seeds]

    def changed(self, role: str, name: str, *overrides: str) -> list[pathlib.Path]:
        """Models of a role with other settings, one per seed."""
        row = self.scale.rows[role]
        return [
            self.train(
                f"{row}-{name}-s{seed}", f"{self.scale.config}{row}", f"seed={seed}", *overrides
            )
            for seed in self.scale.seeds
        ]

    def steps_for(self, role: str, *overrides: str, like: str) -> int:
        """The most steps, at least those of the config, with no more training FLOPs than `like`."""
        budget = cost.flops_of(self._config(like))["training_flops"]
        config = self._config(role, *overrides)

        def fits(steps: int) -> bool:
            config.steps = steps
            return cost.flops_of(config)["training_flops"] <= budget

        low, high = config.steps, 2 * config.steps
        while fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _config(self, role: str, *overrides: str):
        file = f"--config={self.scale.config}{self.scale.rows[role]}"
        flags = [f"--config.{override}" for override in overrides]
        return protocol.config_of(["train", file, *flags], {})

    def cooldown(self, role: str, plan: str, seed: int) -> pathlib.Path:
        """A model with mathematics in its cooldown, optionally with a block looped once more."""
        scale = self.scale
        row = scale.rows[role]
        source = self.model(role, seed)
        variant = ",".join(filter(None, (row, scale.math, plan)))
        name = "-".join(filter(None, (row, scale.math, plan and f"by-{plan}", f"s{seed}")))
        return self.train(
            name, f"{scale.config}{variant}", f"init_from={source}@{scale.plateau}", f"seed={seed}"
        )

    def cooldowns(self, role: str, plan: str = "") -> list[pathlib.Path]:
        """The same, one per seed."""
        return [self.cooldown(role, plan, seed) for seed in self.scale.seeds]

    def train(self, name: str, config: str, *overrides: str) -> pathlib.Path:
        """The directory of a run; trains it unless it is finished."""
        workdir = self.output / "runs" / name
        flags = [f"--config.{override}" for override in overrides]
        command = ["train", f"--config={config}", f"--workdir={workdir}", *flags]
        return self._run(workdir, command)

    def finetuned(self, name: str, base, pairs: str, *overrides: str) -> pathlib.Path:
        """The directory of a fine-tuning run from another run's last checkpoint."""
        workdir = self.output / "runs" / name
        flags = [f"--config.{override}" for override in overrides]
        command = [
            "finetune",
            f"--checkpoint={base}",
            f"--pairs={pairs}",
            f"--workdir={workdir}",
            *flags,
        ]
        return self._run(workdir, command)

    def _run(self, workdir: pathlib.Path, command: list[str]) -> pathlib.Path:
        self.declared[workdir] = command
        if not self.checking:
            self.cached(workdir / "result.json", command)
        return workdir

    # Measurements

    def evaluate(self, run, tasks=(), depths=(), name="reasoning", shots=None) -> dict:
        """The JSON of `loopjax eval`."""
        file = run / f"{name}.json"
        tasks = tasks or self.scale.tasks
        shots = self.scale.shots if shots is None else shots
        command = [
            "eval",
            f"--checkpoint={run}",
            f"--tasks={','.join(tasks)}",
            f"--output={file}",
            f"--num-fewshot={shots}",
            "--by-item",
            *self._limit(),
        ]
        if depths:
            command.append(f"--depth={','.join(depths)}")
        return self.cached(file, command)

    def intervene(self, run, op: str, sizes, times=(), tasks=(), name="", flags=()) -> dict:
        """The JSON of `loopjax intervene`."""
        file = run / f"{name or op}-{'-'.join(map(str, sizes))}.json"
        command = [
            "intervene",
            f"--checkpoint={run}",
            f"--op={op}",
            f"--output={file}",
            f"--size={','.join(map(str, sizes))}",
            f"--tasks={','.join(tasks)}",
            f"--num-fewshot={self.scale.shots}",
            *self._limit(),
            *flags,
        ]
        if times:
            command.append(f"--times={','.join(map(str, times))}")
        return self.cached(file, command)

    def nll(self, run, depths) -> dict:
        """The JSON of `loopjax nll` by the given plans."""
        file = run / "nll.json"
        plans = f"--depth={','.join(depths)}"
        return self.cached(file, ["nll", f"--checkpoint={run}", plans, f"--output={file}"])

    def icl(self, run, tasks) -> dict:
        """The JSON of `loopjax icl`."""
        file = run / "icl.json"
        command = [
            "icl",
            f"--checkpoint={run}",
            f"--tasks={','.join(tasks)}",
            f"--output={file}",
            *self._limit(),
        ]
        return self.cached(file, command)

    def analyze(self, run, name: str, prompts: str = "", *flags: str) -> pathlib.Path:
        """The directory with a result of `loopjax analyze`."""
        directory = run / "analysis"
        prompts = self.prompts(prompts)
        command = [
            "analyze",
            f"--checkpoint={run}",
            f"--what={name}",
            f"--prompts={prompts}",
            f"--block={self.scale.block}",
            f"--output={directory}",
            *flags,
        ]
        self.cached(directory / f"{result_name(name, prompts)}.json", command)
        return directory

    def prompts(self, name: str = "") -> str:
        """The --prompts of `loopjax analyze`; writes the file of the mini scale."""
        name = (name or self.scale.prompts[0]).format(output=self.output)
        if name.startswith("file:"):
            file = pathlib.Path(name.removeprefix("file:"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(prompt) + "\n" for prompt in _trails()))
        return name

    def _limit(self) -> list[str]:
        return [f"--limit={self.scale.limit}"] if self.scale.limit else []

    # Commands

    def cached(self, file: pathlib.Path, command: list[str]) -> dict:
        """The JSON that a command writes; runs the command unless it is finished.

        Commands write their files in parts, so only FILE.done shows that a file is complete.
        """
        if not self.is_done(file, command):
            self.execute(command)
            self.mark_done(file, command)
        return read_json(file)

    def is_done(self, file: pathlib.Path, command: list[str]) -> bool:
        """Whether the command has written its file; exits if another command has."""
        marker = _marker(file)
        if not (marker.exists() and file.exists()):
            return False
        before = marker.read_text().strip()
        now = self._relative(command)
        if before != now:
            raise SystemExit(
                f"{file} was written by another command ({before}; now {now}): delete it, or use "
                "another --output"
            )
        return True

    def mark_done(self, file: pathlib.Path, command: list[str]) -> None:
        _marker(file).write_text(f"{self._relative(command)}\n")

    def _relative(self, command: list[str]) -> str:
        """The command with paths relative to the study, so that a study can be moved."""
        return shlex.join(command).replace(str(self.output), ".")

    def execute(self, command: list[str]) -> None:
        """Runs a command of `loopjax` in this process; exits if it fails."""
        print(f"\nloopjax {shlex.join(command)}", flush=True)
        code = main(command)
        if code or code is None:
            raise SystemExit(code or 1)


def _marker(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(f"{file.name}.done")


def _trails():
    """Texts that end in a letter of 4 and of 8 hops; their last 24 symbols are the answer."""
    rng = np.random.default_rng(0)
    for hops in (4, 8) * 10:
        text = trail_item(rng, hops).prompt
        yield {"prompt": text[:-24], "answer": text[-24:], "group": str(hops)}


def result_name(name: str, prompts: str) -> str:
    """The file name of a diagnostic's result, without its suffix."""
    prompts = pathlib.Path(prompts.removeprefix("file:")).stem
    return f"{name}-{prompts}" if DIAGNOSTICS[name].prompts != 0 else name


def diagnostic(study: Study, run: pathlib.Path, name: str, prompts: str = "", *flags: str):
    """The result of a diagnostic of `loopjax analyze`; computes it unless it is finished."""
    prompts = study.prompts(prompts)
    directory = study.analyze(run, name, prompts, *flags)
    return store.load(directory, result_name(name, prompts), name, DIAGNOSTICS[name].result_type())


def run_result(run: pathlib.Path) -> dict:
    """The result.json of a run."""
    return read_json(run / "result.json")


def compilation_cache(output: pathlib.Path) -> dict:
    """JAX options that let all models with one plan share a compiled program."""
    return {
        "jax_compilation_cache_dir": str(output / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
