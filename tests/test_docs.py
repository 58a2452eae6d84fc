"""The Python in the documentation runs as printed."""

import pathlib
import re

import jax.numpy as jnp
import pytest

from loopjax import run
from loopjax.config import default
from loopjax.train import train

ROOT = pathlib.Path(__file__).resolve().parent.parent


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_api_page_runs_from_top_to_bottom(in_empty_folder):
    names = {}
    for block in python_blocks("docs/api.md"):
        exec(block, names)
    assert names["logits"].shape == (2, 16, 264)
    assert names["hidden"].shape == (2, 16, 64)
    assert names["sown"]["attention"].shape == (4, 2, 16, 64)
    assert names["grown"]["layers"]["query"].shape[0] == 6
    assert names["untied"]["layers"]["query"].shape[0] == names["loop"].n_effective
    assert names["scores"].logprobs.shape == (2,)
    assert names["repeated"].plan.n_effective == 6


def test_values_in_comments_of_the_api_page_are_right():
    """Lines "expression  # (1, 2, ...)": the comment begins with the value."""
    block = next(b for b in python_blocks("docs/api.md") if "prop_schedule" in b)
    setup = "from loopjax.depth import DepthPlan, lidas, midas, prop_schedule, skip\n"
    names = {}
    exec(setup + 'loop = DepthPlan.parse("1-2x3-1")', names)
    lines = re.findall(r"^((?:lidas|midas|skip|prop_schedule|loop\.).*?)  # (.*)$", block, re.M)
    assert len(lines) == 5
    for expression, comment in lines:
        value = str(eval(expression, names))
        assert comment.startswith((value, value[1:-1])), expression


@pytest.mark.slow
def test_the_python_of_the_readme_runs(in_empty_folder):
    config = default()
    config.update(depth="12", steps=1, batch_size=8, seq_len=16, warmup_steps=0, eval_batches=0)
    config.cooldown.steps = 0
    config.model.update(
        vocab_size=264, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2, dtype="float32"
    )
    train(config, "runs/lidas")
    one_idea, options, sweep = python_blocks("README.md")
    names = {"tokens": jnp.zeros((1, 8), int)}
    exec(one_idea, names)
    assert names["logits"].shape == (1, 8, 264)
    assert names["deeper"]["layers"]["query"].shape[0] == 16

    config = default()
    exec(options, {"config": config})
    phases = run.outline(config).phases
    assert str(phases[-1].plan) == "8-4x2-12" and phases[0].plan.n_unique == 4

    points = []
    exec(sweep, names)
    names["sweep"](lambda **point: points.append(point))
    assert len(points) == 12
