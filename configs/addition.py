"""n-ary addition, `315+120+045+824=` then `1304`: two and three operands, width 64, 6,000 steps.

    loopjax train --config=configs/addition.py:1x4 --workdir=runs/addition-1x4
    loopjax train --config=configs/addition.py:paper,12,lidas --workdir=runs/addition-lidas

The variant is [paper,]PLAN[,GROWTH]; GROWTH (midas, lidas, ...) adds one layer at a time, PROP-1,
until the cooldown. paper: Saunshi et al. 2025, section 2.1 and Appendix A.1: uniform over 2, 4, 8,
16 and 32 operands, width 256, batch 1024, 200,000 steps. The paper trains with Adafactor (5e-3,
cosine) and reports the best of three seeds; this config uses AdamW with a trapezoidal schedule, and
its learning rate should be tuned on plan 12. The paper counts answers with all digits correct;
accuracy here counts digits.
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant


def get_config(variant: str = "1x4"):
    parts = parse_variant("configs/addition.py", variant, "[paper,]PLAN[,GROWTH]")
    config = default()
    config.depth = parts["PLAN"]
    config.growth.update(operator=parts["GROWTH"], block=1)
    if parts["paper"]:
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
