"""The SmolLM recipe scaled down to a laptop: 12 executed layers of width 64, bytes, 3,000 steps.

    loopjax train --config=configs/tiny.py:lidas --workdir=runs/lidas
    loopjax sweep --config=configs/tiny.py --workdir=runs/tiny

Variants: standard (12), loop (4x3: as deep, a third of the layers), or a growth operator (midas,
lidas, ...; grown 4, 8, 12). A scaled-down study: the same protocol (PROP-1 growth until the
cooldown, trapezoidal schedule with 1-sqrt decay over the last 15% of the steps), another size,
another corpus.
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant
from loopjax.depth import GROWTH_OPERATORS
from loopjax.sweep import product

VARIANTS = ("standard", "loop", *GROWTH_OPERATORS)


def get_config(variant: str = "standard"):
    parse_variant("configs/tiny.py", variant, "VARIANT", VARIANT=VARIANTS)
    config = default()
    config.steps = 3000
    config.batch_size = 8
    config.seq_len = 128
    config.depth = "4x3" if variant == "loop" else "12"
    config.growth.operator = variant if variant in GROWTH_OPERATORS else ""
    config.cooldown.steps = -1  # 15%
    config.learning_rate = 3e-3
    config.warmup_steps = -1  # 1%
    config.checkpoint_every = 300
    config.eval_every = 300
    config.model.update(
        vocab_size=264,  # 257 byte tokens, rounded up to cut evenly over devices
        d_model=64,
        d_ff=176,
        n_heads=4,
        n_kv_heads=2,
        dtype="float32",
        remat="full",  # faster on a CPU, and half the memory
    )
    return config


def sweep(add):
    """Four variants with three seeds: differences, and the spread to compare them with."""
    for fields in product(arg=("standard", "loop", "midas", "lidas"), seed=range(3)):
        add(**fields)
