"""n-ary addition, `315+120+045+824=` and then `1304`: two and three operands, width 64, 6,000 steps.

    loopjax train --config=configs/addition.py:1x4 --workdir=runs/addition-1x4
    loopjax train --config=configs/addition.py:paper,12,lidas --workdir=runs/addition-lidas

The variant is [paper,]PLAN[,GROWTH]; GROWTH (midas, lidas) adds one layer at a time, PROP-1, until
the cooldown. paper: Saunshi et al. 2025, section 2.1 and Appendix A.1 - uniform over 2, 4, 8, 16
and 32 operands, width 256, batch 1024, 200,000 steps. There Adafactor (5e-3, cosine) trains it and
the best of three seeds is reported; here it is AdamW with a trapezoid, whose rate is to be tuned on
plan 12. The paper counts answers with all digits right, accuracy here counts digits.
"""

import re

from loopjax.config import default

VARIANT = re.compile(r"(paper,)?([^,]+)(?:,(midas|lidas))?")


def get_config(variant: str = "1x4"):
    match = VARIANT.fullmatch(variant)
    if not match:
        raise ValueError(
            f"variant {variant!r} of configs/addition.py must be [paper,]PLAN[,midas or lidas]"
        )
    paper, depth, growth = match.groups("")
    config = default()
    config.depth = depth
    config.growth.update(operator=growth, block=1)
    if paper:
        config.steps, config.cooldown.steps = 200_000, 40_000
        config.batch_size, config.seq_len = 1024, 132
        config.mixture = {f"addition_{n}": 1.0 for n in (2, 4, 8, 16, 32)}
        config.learning_rate, config.warmup_steps = 1e-3, 2000
        config.checkpoint_every = config.eval_every = 5000
        config.model.update(d_model=256, d_ff=688, n_heads=8, n_kv_heads=8)
    else:
        config.steps, config.cooldown.steps = 6000, 1200
        config.batch_size, config.seq_len = 64, 15
        config.mixture = {"addition_2": 1.0, "addition_3": 1.0}
        config.learning_rate, config.warmup_steps = 2e-3, 200
        config.checkpoint_every, config.eval_every, config.eval_batches = 1000, 500, 8
        config.data_threads = 1
        config.model.update(
            d_model=64, d_ff=160, n_heads=4, n_kv_heads=4, dtype="float32", remat="full"
        )
    config.optimizer.weight_decay = 0.1
    config.optimizer.beta2 = 0.98
    config.model.vocab_size = 16  # 13 symbols
    return config
