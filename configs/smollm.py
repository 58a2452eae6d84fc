"""The rows of Table 1 (Kapl et al. 2026), and the cooldowns of Tables 2 and 3.

    loopjax train --config=configs/smollm.py:1.7b,lidas --workdir=runs/1.7b-lidas
    loopjax train --config=configs/smollm.py:1.7b,lidas,nemotron,8-4x2-12 --workdir=runs/retrofit

The variant is SIZE,ROW[,MATH[,PLAN]].
SIZE  360m, 1.7b
ROW   baseline, standard-LAYERS, loop-PLAN (loop-4x6, loop-12x2, loop-4-4x4-4, ...), or a growth
      operator (midas, lidas, ...)
MATH  finemath, nemotron: the source of 20% of the cooldown; such a run branches from step 170,000
      of runs/SIZE-ROW (another run: --config.init_from=DIR@STEP)
PLAN  depth plan of the cooldown: 8-4x2-12 or 12-4x2-8 (baseline, lidas), 4-4x5-4 (loop-4-4x4-4)
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant
from loopjax.depth import GROWTH_OPERATORS

SIZES = ("360m", "1.7b")
ROWS = ("baseline", "GROWTH", "standard-LAYERS", "loop-PLAN")
MIXTURE = {"web": 0.70, "textbooks": 0.15, "python": 0.09, "math": 0.06}
MATH = {"finemath": "finemath", "nemotron": "nemotron-math"}


def get_config(variant: str = "1.7b,baseline"):
    grammar = "SIZE,ROW[,MATH[,PLAN]]"
    parts = parse_variant("configs/smollm.py", variant, grammar, SIZE=SIZES, ROW=ROWS, MATH=MATH)
    size = parts["SIZE"]
    row = parts["ROW"]
    config = default()  # the 1.7B recipe
    if size == "360m":
        config.batch_size, config.learning_rate = 512, 3e-3
        config.model.update(d_model=960, d_ff=2560, n_heads=15, n_kv_heads=5)
    config.depth = "32" if size == "360m" else "24"
    if row in GROWTH_OPERATORS:
        config.growth.operator = row
    elif row != "baseline":  # standard-LAYERS, loop-PLAN
        config.depth = row.partition("-")[2]
    config.data_dir = "data/smollm"
    config.mixture = MIXTURE
    if parts["MATH"]:
        rest = 0.8 / (1 - MIXTURE["math"])
        config.cooldown.mixture = {
            **{name: round(rest * w, 4) for name, w in MIXTURE.items() if name != "math"},
            MATH[parts["MATH"]]: 0.2,
        }
        config.cooldown.depth = parts["PLAN"]
        config.init_from = f"runs/{size}-{row}@170000"
    config.keep_every = 10_000
    config.eval_every = 5_000
    config.mesh.update(data=1, fsdp=-1)
    config.model.remat = "dots"
    return config
