"""A run of 12 steps that a test can afford: 3 stages by LIDAS, a mixture switch, p-hop."""

from loopjax.config import default


def get_config():
    config = default()
    config.steps = 12
    config.batch_size = 8
    config.seq_len = 9
    config.depth = "3"
    config.growth.update(operator="lidas", block=1)
    config.cooldown.steps = 3
    config.mixture = {"p_hop_1": 3.0, "p_hop_2": 1.0}
    config.cooldown.mixture = {"p_hop_1": 1.0, "p_hop_3": 1.0}
    config.data_threads = 1
    config.learning_rate = 1e-2
    config.warmup_steps = 2
    config.checkpoint_every = 2
    config.keep_last = 0
    config.eval_batches = 1
    config.model.update(
        vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2, dtype="float32"
    )
    return config
