"""The papers' study at a size that one machine can run: on two CPU cores, or on one GPU.

    loopjax train --config=configs/study.py:mini,lidas --workdir=runs/lidas

mini  8 executed layers of width 64 in blocks of 2, 5 million bytes: eight minutes on one CPU core
gpu   24 executed layers of width 512 in blocks of 4, 98 million bytes (5e16 FLOPs); its text must be
      prepared: loopjax prepare --input corpus/ --tokenizer bytes --output data/text

A third of the data is text, the rest are rows of `trail_<hops>`: hops back from letter to letter that a
row does not count, so models can be asked about deeper ones than they were trained on. They replace the
reasoning primitives, which models of this size do not learn from text. Growth takes four stages (gpu:
six), and every plan of the papers has its counterpart: a loop of one block, of half of the stack, of a
block with layers before and after it. Scaled down: docs/study.md says what it can decide.

The variant is SIZE,ROW[,math[,PLAN]].
ROW   standard, standard-LAYERS, loop-PLAN, or a growth operator (midas, lidas, ...)
math  a cooldown from the plateau of runs/ROW with deeper hops in a fifth of the data, which the run
      has not seen before (another run: --config.init_from=DIR@STEP)
PLAN  depth plan of the cooldown: 2-2x2-4, 4-2x2-2 (standard, midas, lidas), 1-2x4-1 (loop-1-2x3-1)
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant
from loopjax.depth import GROWTH_OPERATORS
from loopjax.sweep import product

SIZES = ("mini", "gpu")
ROWS = ("standard", "standard-LAYERS", "GROWTH", "loop-PLAN")


def get_config(variant: str = "mini,standard"):
    grammar = "SIZE,ROW[,math[,PLAN]]"
    parts = parse_variant("configs/study.py", variant, grammar, SIZE=SIZES, ROW=ROWS)
    config = default()
    {"mini": mini, "gpu": gpu}[parts["SIZE"]](config, bool(parts["math"]))
    row = parts["ROW"]
    if row in GROWTH_OPERATORS:
        config.growth.operator = row
    elif row != "standard":  # standard-LAYERS, loop-PLAN
        config.depth = row.partition("-")[2]
    if parts["math"]:
        config.cooldown.depth = parts["PLAN"]
        config.init_from = f"runs/{row}@{config.steps - config.cooldown.steps}"
    config.warmup_steps = 100
    config.optimizer.weight_decay = 0.1
    config.optimizer.beta2 = 0.98
    config.checkpoint_every = config.steps - config.cooldown.steps
    config.keep_last = 0
    config.eval_batches = 8
    return config


def mini(config, math: bool) -> None:
    config.steps = 2400
    config.cooldown.steps = 360
    config.batch_size = 16
    config.seq_len = 128  # bytes
    config.depth = "8"
    config.growth.block = 2
    config.mixture = {"stdlib": 0.3, "trail_8": 0.7}
    if math:
        config.cooldown.mixture = {"stdlib": 0.3, "trail_8": 0.5, "trail_12": 0.2}
    config.data_threads = 1
    config.learning_rate = 2e-3
    config.eval_every = 500
    config.model.update(
        vocab_size=264, d_model=64, d_ff=176, n_heads=4, n_kv_heads=4, dtype="float32",
        remat="full",
    )  # fmt: skip


def gpu(config, math: bool) -> None:
    config.steps = 6000
    config.cooldown.steps = 900
    config.batch_size = 32
    config.seq_len = 512
    config.depth = "24"
    config.growth.block = 4
    config.data_dir = "data"
    config.mixture = {"text": 0.3, "trail_12": 0.7}
    if math:
        config.cooldown.mixture = {"text": 0.3, "trail_12": 0.5, "trail_16": 0.2}
    config.learning_rate = 1e-3
    config.eval_every = 1000
    config.model.update(
        vocab_size=264, d_model=512, d_ff=1408, n_heads=8, n_kv_heads=8, remat="dots"
    )


def sweep(add):
    """The rows of Table 1, with the seeds of the study."""
    loops = ("loop-2x4", "loop-4x2", "loop-1-2x3-1")
    rows = ("standard", "midas", "lidas", "standard-2", "standard-4", *loops)
    for fields in product(arg=[f"mini,{row}" for row in rows], seed=range(1, 5)):
        add(**fields)
