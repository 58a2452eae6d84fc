"""Small models on text, with and without loops (Ng & Wang 2024, 2409.14199): one layer, two passes, ...

    loopjax train --config=configs/loop_neural_networks.py:1x2 --workdir=runs/lnn-1x2

The variant is [paper,]PLAN. 250 steps of 2,048 bytes of Python's standard library at width 64; paper: GPT-2
small (width 768, 12 heads, context 1024, tied embeddings) on OpenWebText, with this project's layer (SwiGLU,
RMSNorm, rotary positions). The paper's batch, steps and learning rate are not known here: those of
GPT-2's public reproductions (0.5 million tokens, 6e-4) stand in, at a tenth of their length.
Loops are plain here: a pass goes on from the residual stream of the pass before.
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant


def get_config(variant: str = "1x2"):
    parts = parse_variant("configs/loop_neural_networks.py", variant, "[paper,]PLAN")
    config = default()
    config.depth = parts["PLAN"]
    config.optimizer.weight_decay = 0.1
    if parts["paper"]:
        config.steps, config.cooldown.steps, config.warmup_steps = 60_000, 12_000, 2000
        config.batch_size, config.seq_len = 512, 1024
        config.mixture, config.data_dir = {"openwebtext": 1.0}, "data"
        config.learning_rate = 6e-4
        config.checkpoint_every = config.eval_every = 5000
        config.model.update(vocab_size=50_304, d_model=768, d_ff=2048, n_heads=12, n_kv_heads=12)
    else:
        config.steps, config.cooldown.steps, config.warmup_steps = 250, 50, 25
        config.batch_size, config.seq_len = 16, 128
        config.mixture = {"stdlib": 1.0}
        config.data_threads = 1
        config.learning_rate = 2e-3
        config.optimizer.beta2 = 0.98
        config.checkpoint_every, config.keep_last = 0, 1
        config.eval_batches = 16
        config.model.update(
            vocab_size=264, d_model=64, d_ff=176, n_heads=4, n_kv_heads=4, dtype="float32",
            remat="full",
        )  # fmt: skip
    return config
