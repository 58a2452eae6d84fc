"""p-hop induction as published, and Sanford's layout with 32 letters, p up to 4, 2,000 steps.

    loopjax train --config=configs/hops.py:1x4 --workdir=runs/hops-1x4
    loopjax train --config=configs/hops.py:sanford,1x6 --workdir=runs/sanford-1x6
    loopjax train --config=configs/hops.py:p16,6,lidas --workdir=runs/hops-lidas

The variant is [TASK,]PLAN[,GROWTH]; GROWTH (midas, lidas, ...) adds one layer at a time, PROP-1,
until the cooldown.
sanford   Sanford et al. 2024: p uniform in 0..16, 98 letters, every position a target, width 128
          (4 heads), AdamW at 1e-4, batch 32, 100,000 steps. Held-out accuracy, by p, is over the
          positions whose hop exists.
p16, p32  Saunshi et al. 2025, section 2.1 and Appendix A.1: 256 letters that contain all hops,
          one answer, width 128 (8 heads), batch 256, 200,000 steps. The paper trains with Adafactor
          (1e-3, cosine) on 4 million instances; this config uses AdamW with a trapezoidal schedule,
          and every instance is new.

The layer is the one of this project (SwiGLU, RMSNorm, rotary positions); its width is chosen to
match the parameter counts of the papers. configs/p_hop.py has a smaller task with one target.
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant

TASKS = ("sanford", "p16", "p32")


def get_config(variant: str = "1x4"):
    parts = parse_variant("configs/hops.py", variant, "[TASK,]PLAN[,GROWTH]", TASK=TASKS)
    task = parts["TASK"]
    config = default()
    config.depth = parts["PLAN"]
    config.growth.update(operator=parts["GROWTH"], block=1)
    config.optimizer.weight_decay = 0.1
    config.optimizer.beta2 = 0.98
    config.checkpoint_every = config.eval_every = 5000
    if task == "sanford":
        config.steps, config.cooldown.steps = 100_000, 20_000
        config.batch_size, config.seq_len = 32, 99
        config.mixture = {f"sanford_{p}": 1.0 for p in range(17)}
        config.learning_rate, config.warmup_steps = 1e-4, 1000
        config.eval_batches = 4  # 128 sequences for each p
        config.model.update(
            vocab_size=30, d_model=128, d_ff=344, n_heads=4, n_kv_heads=4, dtype="float32"
        )
    elif task:
        config.steps, config.cooldown.steps = 200_000, 40_000
        config.batch_size, config.seq_len = 256, 258
        config.mixture = {f"hops_{task[1:]}x256": 1.0}
        config.learning_rate, config.warmup_steps = 1e-3, 2000
        config.model.update(vocab_size=40, d_model=128, d_ff=344, n_heads=8, n_kv_heads=8)
    else:
        config.steps, config.cooldown.steps = 2000, 400
        config.batch_size, config.seq_len = 32, 33
        config.mixture = {f"sanford_{p}": 1.0 for p in (1, 2, 3, 4)}
        config.learning_rate, config.warmup_steps = 2e-3, 200
        config.checkpoint_every, config.eval_every, config.eval_batches = 500, 250, 8
        config.data_threads = 1
        config.model.update(
            vocab_size=30, d_model=64, d_ff=160, n_heads=4, n_kv_heads=4, dtype="float32",
            remat="full",
        )  # fmt: skip
    return config
