"""Claims that the project makes about itself."""

import ast
import functools
import pathlib
import re

import jax
import pytest
from flax.core import meta

from loopjax import config as config_lib
from loopjax import config_flags, run, sharding, step
from loopjax.loop_config import LoopConfig
from loopjax.model_config import ModelConfig
from loopjax.optim import make_optimizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Who may import whom: a module only what stands before it.
LAYERS = [
    "errors", "intervals", "devices", "text_table", "progress", "signals", "limits", "connection",
    "cluster", "processes", "watchdog", "remote", "paths", "random_depth", "loop_config", "kernels",
    "attention", "rope", "model_config", "sharding", "sharded_weights", "remat", "head", "files",
    "outputs", "sweep.grids", "sweep.directory", "sweep.logs", "sweep.hparams", "callbacks",
    "lease", "lock", "host", "ledger", "log", "data.tokenizers", "ahead", "cli.main", "__main__",
    "data.source", "data.instances", "data.addition", "data.items", "data.trail", "data.hops", "data.igsm",
    "data.text_tasks", "data.remote_shards", "data.token_shards", "results.schema",
    "evals.token_bytes", "analysis.lens_training", "evals.raw_files", "cli.arguments",
    "compilation_cache", "data.prepare.readers", "data.prepare.input_files", "data.prepare.parquet",
    "data.prepare.pieces", "data.prepare.hub", "data.prepare.progress", "data.prepare.recipes",
    "data.prepare.fetch", "data.prepare.shards", "data.prepare.workers", "data.prepare.job",
    "data.show", "cli.data", "interop.files", "interop.tensors", "interop.tokenizer_files",
    "interop.axes", "interop.tree_map", "aot.hlo", "aot.collectives", "aot.memory_traffic",
    "aot.products", "aot.program", "aot.roofline", "aot.topologies", "aot.text", "report.estimates",
    "sweep.names", "sweep.halving", "sweep.slurm_queue", "sweep.status", "sweep.unfinished",
    "profile", "scaling.fits", "scaling.recurrence", "scaling.multipliers", "evals.answers",
    "evals.metrics", "mixture_update", "step_grid", "sweep.branches", "early_stopping",
    "data.modular", "data.registry", "data.floors", "data.pairs", "evals.primitives", "evals.suite",
    "analysis.prompts", "passes", "depth", "json_shapes", "block", "loop", "surgery",
    "growth_schedule", "optim", "analysis.diagnostics", "plots.roles", "plots.figure",
    "report.theme", "report.legends", "report.elements", "plots.sweep", "plots.scaling", "report.svg",
    "config_variants", "windows", "analysis.loops", "analysis.choice", "segment", "model", "growth",
    "curriculum", "lineage", "analysis.activations", "analysis.periodicity", "plots.ancestry",
    "weights.plot", "weights.terminal", "weights.tree_terminal", "data.pipeline", "losses",
    "config", "flops", "interop.matching", "interop.match_table", "config_help", "config_flags",
    "jacobian", "exit_losses", "config_saved", "run_record", "plots.spread", "scaling.ladder",
    "plots.diagnostics", "plots.accuracy", "plots.runs", "plots.trajectories", "exits", "step",
    "memory", "lm.exit_decoding", "loop_checks", "checkpoint_files", "checkpoint_arrays",
    "weights.ocdbt", "weights.layout", "weights.stored", "weights.item", "weights.arrays",
    "weights.structure", "weights.sums", "weights.saved", "weights.export", "checkpoint",
    "results.store", "weights.compare", "weights.tree_compare", "weights.tree_numbers",
    "interop.step_zero", "interop.import_orbax", "results.reader", "weights.numbers", "cli.weights",
    "report.collect", "report.families", "report.context", "report.cuts", "report.tables",
    "report.findings", "report.tradeoffs", "sweep.rows", "sweep.axis", "sweep.metric",
    "sweep.compare", "sweep.table", "sweep.draw", "cli.results", "cli.scaling",
    "report.finetune_curves", "report.diagnostic_findings", "report.figures", "report.sections",
    "report.page", "cli.report", "lm.loaded_model", "lm.batching", "analysis.effects",
    "analysis.depth_score", "lm.score", "analysis.norms", "analysis.similarity", "evals.nll",
    "analysis.lens", "analysis.early_exit", "analysis.analyze", "analysis.trajectories",
    "lm.decode", "evals.harness", "evals.evaluate", "analysis.exit_accuracy", "evals.icl",
    "cli.evals", "analysis.interventions", "cli.analysis", "run", "cost", "cli.planning",
    "aot.compile", "cli.compiling", "sweep.points", "sweep.progress", "sweep.local", "sweep.retry",
    "sweep.slurm_job", "sweep.slurm", "cli.sweep", "compilation", "heldout", "step_metrics", "same",
    "initialize", "resume", "finetune", "train", "cli.training", "interop.loop_families",
    "interop.loop_export", "interop.options", "interop.architectures", "interop.export_hf",
    "interop.import_hf", "cli.interop",
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


def test_the_documented_tree_shows_the_files_that_there_are():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.search(r"```\n(loopjax/\n.*?)```", text, re.S)[1]
    shown, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        shown.add("".join(folders) + name)
        folders += [name] if name.endswith("/") else []
    for path in shown:
        assert (ROOT / path).exists(), f"the tree names {path}"
    packages = [p.parent.relative_to(ROOT) for p in (ROOT / "loopjax").rglob("__init__.py")]
    for folder in (*packages, "configs", "experiments"):
        names = {f"{folder}/{p.name}" for p in (ROOT / folder).glob("*.py") if "__" not in p.name}
        assert names <= shown, f"the tree leaves out {names - shown}"


# Every row of Table 1, and the cooldowns of Tables 2 and 3.
_ROWS = ["baseline", "midas", "lidas"]
_SMALL = ["standard-4", "loop-4x8", "standard-8", "loop-8x4", "standard-16", "loop-16x2"]
_LARGE = ["standard-4", "loop-4x6", "standard-12", "loop-12x2", "loop-4-4x4-4"]
_RETROFITS = ["", ",8-4x2-12", ",12-4x2-8"]
VARIANTS = {
    "study": [
        "mini,standard",
        "mini,standard-4",
        "mini,midas",
        "mini,lidas",
        "mini,loop-2x4",
        "mini,loop-1-2x3-1",
        "mini,lidas,math,2-2x2-4",
        "gpu,loop-4-4x4-4",
    ],
    "tiny": ["standard", "loop", "midas", "lidas"],
    "p_hop": ["1", "1x4", "4"],
    "addition": ["1x4", "4,lidas", "paper,12", "paper,12,midas"],
    "igsm": ["1x4", "4,lidas", "paper,8", "paper,8,midas"],
    "two_phase": ["2", "1x2", "2,lidas", "paper,2"],
    "loop_neural_networks": ["1x2", "6x2", "paper,12"],
    "hops": ["1x4", "4,lidas", "sanford,6", "p16,1x6", "p32,6,lidas"],
    "smollm": [
        *(f"360m,{row}" for row in _ROWS + _SMALL),
        *(f"1.7b,{row}" for row in _ROWS + _LARGE),
        *(f"360m,{row},{math}" for row in _ROWS for math in ("finemath", "nemotron")),
        *(f"1.7b,{row},nemotron{plan}" for row in ("baseline", "lidas") for plan in _RETROFITS),
        "1.7b,loop-4-4x4-4,nemotron",
        "1.7b,loop-4-4x4-4,nemotron,4-4x5-4",
    ],
    "scaling_exponents": [
        *(f"{arm},d6" for arm in ("vanilla", "loop", "loop-grow", "untied-grow")),
        "vanilla,d20",
        "loop-grow,d18",
        "untied-grow,d8",
    ],
}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_builds_and_traces_a_step(path):
    for variant in VARIANTS[path.stem]:
        config, _ = config_flags.parse("train", "", [f"--config={path}:{variant}"])
        outline = run.outline(config)
        config, phases, cfg = outline.config, outline.phases, outline.cfg
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
    fields = set(ModelConfig.__dataclass_fields__) - {"exit_gate"}  # of config.losses.exit_gate
    assert set(config_lib.default().model) == fields - {"loop"}
    assert set(config_lib.default().loop) == set(LoopConfig.__dataclass_fields__)


def test_files_are_short_enough_to_read():
    for path in [*(ROOT / "loopjax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 420, path
