"""Claims that the project makes about itself."""

import ast
import pathlib
import re

import jax
import pytest

from loopjax import config as config_lib
from loopjax import train_flags
from loopjax.model import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Who may import whom: a module only what stands before it.
LAYERS = [
    "errors", "depth", "kernels", "model", "config", "surgery", "flops", "curriculum", "optim",
    "sharding", "step", "data.tokenizers", "data.text", "data.synthetic", "data.pipeline",
    "data.prepare", "log", "checkpoint", "run", "train", "report", "train_flags", "cli", "__main__",
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
    for folder in ("loopjax", "loopjax/data", "configs", "experiments"):
        names = {f"{folder}/{p.name}" for p in (ROOT / folder).glob("*.py") if "__" not in p.name}
        assert names <= shown, f"the README leaves out {names - shown}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_builds_and_traces_a_step(path):
    from loopjax import curriculum, step
    from loopjax.optim import make_optimizer

    module_variants = {"tiny": ["standard", "loop", "midas", "lidas"], "p_hop": ["1", "1x4", "4"]}
    for variant in module_variants[path.stem]:
        config, _ = train_flags.parse([f"--config={path}:{variant}", "--workdir=w"])
        config = config_lib.resolved(config)
        config_lib.check(config)
        cfg, phases = config_lib.model_config(config), curriculum.build(config)
        optimizer, schedule = make_optimizer(config)
        shape = jax.ShapeDtypeStruct((config.batch_size, config.seq_len), "int32")
        for phase in (phases[0], phases[-1]):
            n_layers = phase.plan.n_unique

            def update(batch, phase=phase, n_layers=n_layers):
                key = jax.random.key(0)
                from flax.core import meta

                state = meta.unbox(step.init_state(cfg, n_layers, optimizer, key))
                args = {"cfg": cfg, "plan": phase.plan, "optimizer": optimizer}
                args |= {"schedule": schedule, "microbatches": config.microbatches}
                return step.train_step(state, batch, **args)

            state, metrics = jax.eval_shape(update, {"inputs": shape, "targets": shape})
            assert metrics["loss"].shape == ()
            assert state.params["layers"]["query"].shape[0] == n_layers


def test_every_field_of_the_architecture_is_a_config_field():
    fields = set(ModelConfig.__dataclass_fields__)
    assert set(config_lib.default().model) == fields


def test_files_are_short_enough_to_read():
    for path in [*(ROOT / "loopjax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 420, path
