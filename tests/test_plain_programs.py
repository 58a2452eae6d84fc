"""Plain plans lower to the same program as before, to the byte.

plain_programs.json has a hash of each program by version of JAX. It changes only with a change that is
meant to concern every model; to record what there is now, also for another version of JAX:

    python -m pytest tests/test_plain_programs.py --update-golden
"""

import functools
import hashlib
import json
import pathlib
import re

import jax
import pytest

from loopjax import config as config_lib
from loopjax import model, optim
from loopjax import step as step_lib
from loopjax.depth import DepthPlan

GOLDEN = pathlib.Path(__file__).parent / "plain_programs.json"
PLANS = ("24", "4x6", "4-4x4-4")


def train_step(plan):
    config = config_lib.default()
    config.depth = str(plan)
    config.model.update(vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2)
    cfg = config_lib.model_config(config)
    optimizer, schedule = optim.make_optimizer(config)
    state = jax.eval_shape(
        lambda key: step_lib.init_state(cfg, plan.n_unique, optimizer, key), jax.random.key(0)
    )
    update = functools.partial(
        step_lib.train_step, cfg=cfg, plan=plan, optimizer=optimizer, schedule=schedule,
        microbatches=1,
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct((2, 8), "int32")
    return jax.jit(update).lower(state, {"inputs": tokens, "targets": tokens})


def forward(plan):
    cfg = model.ModelConfig(
        vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2, init_depth=24
    )
    params = jax.eval_shape(
        lambda key: jax.tree.map(
            lambda box: box.value, model.init_params(cfg, plan.n_unique, key),
            is_leaf=lambda x: hasattr(x, "names"),
        ),
        jax.random.key(0),
    )  # fmt: skip
    run = functools.partial(model.forward, cfg=cfg, plan=plan)
    return jax.jit(run).lower(params, jax.ShapeDtypeStruct((2, 8), "int32"))


PROGRAMS = {"train_step": train_step, "forward": forward}


def digest(lowered) -> str:
    """The hash of a program's StableHLO without the places in the source that it comes from."""
    text = re.sub(r" loc\(.*\)$|^#loc.*\n", "", lowered.as_text(), flags=re.M)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_plain_plan_lowers_to_the_recorded_program(name, text, request):
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    found = digest(PROGRAMS[name](DepthPlan.parse(text)))
    if request.config.getoption("--update-golden"):
        recorded.setdefault(jax.__version__, {})[f"{name} {text}"] = found
        GOLDEN.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    elif jax.__version__ not in recorded:
        pytest.skip(
            f"{GOLDEN.name} has no programs of jax {jax.__version__}: on a tree whose programs are "
            "right, run python -m pytest tests/test_plain_programs.py --update-golden"
        )
    else:
        assert found == recorded[jax.__version__][f"{name} {text}"]
