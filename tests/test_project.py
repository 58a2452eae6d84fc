"""Claims that the project makes about itself."""

import ast
import functools
import pathlib
import re

import jax
import pytest
from flax.core import meta

from loopjax import config as config_lib
from loopjax import flags, run, sharding, step
from loopjax.model_config import ModelConfig
from loopjax.optim import make_optimizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Who may import whom: a module only what stands before it.
LAYERS = [
    "errors", "depth", "kernels", "rope", "model_config", "model", "config", "surgery", "flops",
    "curriculum", "optim", "sharding", "step", "log", "record", "lock", "data.tokenizers", "data.text",
    "data.instances", "data.addition", "data.hops", "data.igsm", "data.synthetic", "data.pairs", "data.pipeline", "data.pieces", "data.hub", "data.fetch", "data.shards",
    "data.workers", "data.progress", "data.recipes", "data.prepare", "data.show", "checkpoint",
    "run", "branch", "memory", "cost", "train", "finetune", "figure", "inspect.lineage",
    "plots.accuracy", "plots.diagnostics", "plots.runs", "plots.ancestry", "inspect.saved",
    "inspect.against", "inspect.numbers", "inspect.text", "inspect.plot", "arguments",
    "interop.files", "interop.tensors", "interop.architectures", "interop.import_hf",
    "interop.export_hf", "interop.commands", "evals.language_model", "evals.score",
    "evals.decode", "evals.nll", "evals.documents", "evals.metrics", "evals.local",
    "evals.primitives", "evals.suite", "evals.harness", "evals.evaluate", "evals.icl",
    "evals.commands", "analysis.activations", "analysis.batches", "analysis.norms",
    "analysis.effects", "analysis.depth_score", "analysis.similarity",
    "analysis.lens", "analysis.early_exit", "analysis.results", "analysis.prompts", "analysis.interventions",
    "analysis.analyze", "analysis.commands", "analysis.signature", "report.results", "report.models",
    "report.parts", "report.summary", "report.tuned", "report.drawn", "report.sections", "report.svg", "report.page", "flags", "sweep.points", "sweep.progress", "sweep.local", "sweep.slurm",
    "sweep.table", "sweep.tradeoffs", "sweep.commands", "cli", "__main__",
]  # fmt: skip


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loopjax"):
            base = node.module.removeprefix("loopjax").removeprefix(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".removeprefix(".")
                yield name if name in LAYERS else base
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("loopjax.") for a in node.names if "loopjax" in a.name)


def test_imports_point_one_way():
    modules = {
        ".".join(path.relative_to(ROOT / "loopjax").with_suffix("").parts): path
        for path in (ROOT / "loopjax").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(modules) == sorted(LAYERS)
    for module, path in modules.items():
        for imported in imports_of(path):
            assert LAYERS.index(imported) < LAYERS.index(module), f"{module} imports {imported}"


def test_the_readme_shows_the_files_that_there_are():
    tree = re.search(r"```\n(loopjax/\n.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    shown, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        shown.add("".join(folders) + name)
        folders += [name] if name.endswith("/") else []
    for path in shown:
        assert (ROOT / path).exists(), f"the README names {path}"
    for folder in (
        "loopjax",
        "loopjax/data",
        "loopjax/inspect",
        "loopjax/interop",
        "loopjax/evals",
        "loopjax/analysis",
        "loopjax/plots",
        "loopjax/report",
        "loopjax/sweep",
        "configs",
        "experiments",
    ):
        names = {f"{folder}/{p.name}" for p in (ROOT / folder).glob("*.py") if "__" not in p.name}
        assert names <= shown, f"the README leaves out {names - shown}"


# Every row of Table 1, and the cooldowns of Tables 2 and 3.
_ROWS = ["baseline", "midas", "lidas"]
_SMALL = ["standard-4", "loop-4x8", "standard-8", "loop-8x4", "standard-16", "loop-16x2"]
_LARGE = ["standard-4", "loop-4x6", "standard-12", "loop-12x2", "loop-4-4x4-4"]
_RETROFITS = ["", ",8-4x2-12", ",12-4x2-8"]
VARIANTS = {
    "mini": [
        "standard",
        "standard-4",
        "midas",
        "lidas",
        "loop-2x4",
        "loop-1-2x3-1",
        "lidas,math,2-2x2-4",
    ],
    "tiny": ["standard", "loop", "midas", "lidas"],
    "p_hop": ["1", "1x4", "4"],
    "addition": ["1x4", "4,lidas", "paper,12", "paper,12,midas"],
    "igsm": ["1x4", "4,lidas", "paper,8", "paper,8,midas"],
    "hops": ["1x4", "4,lidas", "sanford,6", "p16,1x6", "p32,6,lidas"],
    "smollm": [
        *(f"360m,{row}" for row in _ROWS + _SMALL),
        *(f"1.7b,{row}" for row in _ROWS + _LARGE),
        *(f"360m,{row},{math}" for row in _ROWS for math in ("finemath", "nemotron")),
        *(f"1.7b,{row},nemotron{plan}" for row in ("baseline", "lidas") for plan in _RETROFITS),
        "1.7b,loop-4-4x4-4,nemotron",
        "1.7b,loop-4-4x4-4,nemotron,4-4x5-4",
    ],
}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_builds_and_traces_a_step(path):
    for variant in VARIANTS[path.stem]:
        config, _ = flags.parse("train", "", [f"--config={path}:{variant}"])
        config, phases, cfg = run.outline(config)
        sharding.axis_rules(config.mesh)
        for phase in (phases[0], phases[-1]):
            trace_a_step(cfg, phase.plan, config.batch_size, config.seq_len)


@functools.cache
def trace_a_step(cfg, plan, batch_size, seq_len):
    optimizer, schedule = make_optimizer(config_lib.default())

    def update(batch):
        state = meta.unbox(step.init_state(cfg, plan.n_unique, optimizer, jax.random.key(0)))
        args = {"optimizer": optimizer, "schedule": schedule, "microbatches": 1}
        return step.train_step(state, batch, cfg=cfg, plan=plan, **args)

    shape = jax.ShapeDtypeStruct((batch_size, seq_len), "int32")
    state, metrics = jax.eval_shape(update, {"inputs": shape, "targets": shape})
    assert metrics["loss"].shape == ()
    assert state.params["layers"]["query"].shape[0] == plan.n_unique


def test_every_field_of_the_architecture_is_a_config_field():
    fields = set(ModelConfig.__dataclass_fields__)
    assert set(config_lib.default().model) == fields


def test_files_are_short_enough_to_read():
    for path in [*(ROOT / "loopjax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 420, path
