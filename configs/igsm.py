"""i-GSM, arithmetic modulo 7 along a graph: one to three operations, width 64, 3,000 steps.

    loopjax train --config=configs/igsm.py:1x4 --workdir=runs/igsm-1x4
    loopjax train --config=configs/igsm.py:paper,8,lidas --workdir=runs/igsm-lidas

The variant is [paper,]PLAN[,GROWTH]; GROWTH (midas, lidas, ...) adds one layer at a time, PROP-1,
until the cooldown. paper: Saunshi et al. 2025, section 2.1 and Appendix A.1: up to 15 operations,
width 128, batch 256, 200,000 steps. The paper trains with Adafactor (1e-3, cosine) on about 4
million instances, 12.8 times each; this config uses AdamW with a trapezoidal schedule, every
instance is new, and all numbers of operations are equally frequent.

Chance is 14.3%, but answering with the most frequent number of the text reaches 40, 27 and 20% at
one, two and three operations. The small size trains too briefly for this task: after its 3,000
steps plan 1x4 reaches 48, 38 and 28% (one seed), little more than that.
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant


def get_config(variant: str = "1x4"):
    parts = parse_variant("configs/igsm.py", variant, "[paper,]PLAN[,GROWTH]")
    config = default()
    config.depth = parts["PLAN"]
    config.growth.update(operator=parts["GROWTH"], block=1)
    if parts["paper"]:
        config.steps, config.cooldown.steps = 200_000, 40_000
        config.batch_size, config.seq_len = 256, 288
        config.mixture = {f"igsm_{operations}": 1.0 for operations in range(1, 16)}
        config.data_threads = 8
        config.learning_rate, config.warmup_steps = 1e-3, 2000
        config.checkpoint_every = config.eval_every = 5000
        config.eval_batches = 4
        config.model.update(d_model=128, d_ff=344, n_heads=8, n_kv_heads=8)
    else:
        config.steps, config.cooldown.steps = 3000, 600
        config.batch_size, config.seq_len = 32, 88
        config.mixture = {f"igsm_{operations}": 1.0 for operations in (1, 2, 3)}
        config.learning_rate, config.warmup_steps = 2e-3, 200
        config.checkpoint_every, config.eval_every, config.eval_batches = 500, 250, 16
        config.data_threads = 1
        config.model.update(
            d_model=64, d_ff=160, n_heads=4, n_kv_heads=4, dtype="float32", remat="full"
        )
    config.optimizer.weight_decay = 0.1
    config.optimizer.beta2 = 0.98
    config.model.vocab_size = 40
    return config
