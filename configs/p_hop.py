"""p-hop induction, reduced to a laptop: 32 letters, p in {1, 2, 4}, width 64, 1,500 steps.

    loopjax train --config=configs/p_hop.py:1x4 --workdir=runs/p_hop-1x4

The variant is the depth plan. The task requires depth: one layer cannot follow four hops, four can,
and so can one layer looped four times (Saunshi et al. 2025, section 2, at 1/8 of their length and a
fraction of their training). The loss is on every position whose hop exists; held-out accuracy is on
the last position.
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant


def get_config(variant: str = "1x4"):
    parts = parse_variant("configs/p_hop.py", variant, "PLAN")
    config = default()
    config.steps = 1500
    config.batch_size = 64
    config.seq_len = 33  # the number of hops, then 32 letters
    config.depth = parts["PLAN"]
    config.cooldown.steps = 300
    config.mixture = {"p_hop_1": 1.0, "p_hop_2": 1.0, "p_hop_4": 1.0}
    config.data_threads = 1
    config.learning_rate = 2e-3
    config.warmup_steps = 200
    config.optimizer.weight_decay = 0.1
    config.optimizer.beta2 = 0.98
    config.checkpoint_every = 500
    config.eval_every = 150
    config.eval_batches = 8
    config.model.update(
        vocab_size=40, d_model=64, d_ff=160, n_heads=4, n_kv_heads=4, dtype="float32", remat="full"
    )
    return config
