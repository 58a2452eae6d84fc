"""The papers' study in miniature: 8 executed layers of width 64, bytes, minutes on two cores.

    loopjax train --config=configs/mini.py:lidas --workdir=runs/lidas

A third of the papers' 24 layers, in blocks of 2 instead of 4: growth in four stages (2, 4, 6, 8), a
loop of one block (2x4), of half of the stack (4x2), one with layers before and after it (1-2x3-1),
and 1-sqrt cooldown over the last 15%. Half of the data is text (the source of Python's standard
library); the other half is p-hop induction as text. It replaces the reasoning primitives, which
models of this size do not learn from text. Eight hops are learned late, so the models are compared
before they saturate. A scaled-down study: it can show the sign of an effect, not its size.

The variant is ROW[,math[,PLAN]].
ROW   standard, standard-LAYERS, loop-PLAN, or a growth operator (midas, lidas, ...)
math  a cooldown from the plateau of runs/ROW with a fifth of 5-hop induction, which the run has not
      seen before (another run: --config.init_from=DIR@STEP)
PLAN  depth plan of the cooldown: 2-2x2-4, 4-2x2-2 (standard, midas, lidas), 1-2x4-1 (loop-1-2x3-1)
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant
from loopjax.depth import GROWTH_OPERATORS
from loopjax.sweep import product

ROWS = ("standard", "standard-LAYERS", "GROWTH", "loop-PLAN")
STEPS, COOLDOWN = 1000, 150
HOPS = ("hop_text_2", "hop_text_4", "hop_text_8")
MIXTURE = {"stdlib": 0.49, **{name: 0.17 for name in HOPS}}
MATH = {"stdlib": 0.41, **{name: 0.13 for name in HOPS}, "hop_text_5": 0.2}


def get_config(variant: str = "standard"):
    parts = parse_variant("configs/mini.py", variant, "ROW[,math[,PLAN]]", ROW=ROWS)
    row = parts["ROW"]
    config = default()
    config.steps = STEPS
    config.cooldown.steps = COOLDOWN
    config.batch_size = 16
    config.seq_len = 128  # bytes
    config.depth = "8"
    config.growth.block = 2
    if row in GROWTH_OPERATORS:
        config.growth.operator = row
    elif row != "standard":  # standard-LAYERS, loop-PLAN
        config.depth = row.partition("-")[2]
    config.mixture = MIXTURE
    if parts["math"]:
        config.cooldown.mixture = MATH
        config.cooldown.depth = parts["PLAN"]
        config.init_from = f"runs/{row}@{STEPS - COOLDOWN}"
    config.data_threads = 1
    config.learning_rate = 2e-3
    config.warmup_steps = 100
    config.optimizer.weight_decay = 0.1
    config.optimizer.beta2 = 0.98
    config.checkpoint_every = STEPS - COOLDOWN
    config.keep_last = 0
    config.eval_every = 200
    config.eval_batches = 8
    config.model.update(
        vocab_size=264, d_model=64, d_ff=176, n_heads=4, n_kv_heads=4, dtype="float32",
        remat="full",
    )  # fmt: skip
    return config


def sweep(add):
    """The rows of Table 1, three times."""
    loops = ("loop-2x4", "loop-4x2", "loop-1-2x3-1")
    rows = ("standard", "midas", "lidas", "standard-2", "standard-4", *loops)
    for fields in product(arg=rows, seed=range(3)):
        add(**fields)
