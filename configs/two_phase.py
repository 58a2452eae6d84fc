"""Addition modulo 59 on a fixed training set: the data are learned first, the rule much later.

    loopjax train --config=configs/two_phase.py:1x2 --workdir=runs/two-phase-1x2

The variant is PLAN[,GROWTH]; GROWTH (midas, lidas, ...) adds one layer at a time, PROP-1. 2,000 of the
3,481 sums are the training set, in batches of 512; a strong weight decay (Power et al. 2022) and a
constant learning rate. Held-out and training accuracy, and checkpoints, are on a grid of log-spaced
steps, so that other curves can be added to those of the accuracies later.
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant

MODULUS, INSTANCES = 59, 2000


def get_config(variant: str = "2"):
    parts = parse_variant("configs/two_phase.py", variant, "PLAN[,GROWTH]")
    config = default()
    config.depth = parts["PLAN"]
    config.growth.update(operator=parts["GROWTH"], block=1, steps=500 if parts["GROWTH"] else 0)
    config.steps, config.cooldown.steps = 3000, 0
    config.batch_size, config.seq_len = 512, 3
    config.mixture = {f"mod_addition_{MODULUS}:{INSTANCES}": 1.0}
    config.learning_rate, config.warmup_steps, config.schedule = 2e-3, 10, "constant"
    config.optimizer.weight_decay = 0.5
    config.optimizer.beta2 = 0.98
    config.eval_per_decade = config.keep_per_decade = 20
    config.eval_train, config.eval_batches = True, 4
    config.checkpoint_every, config.keep_last = 0, 1
    config.data_threads = 1
    config.model.update(
        vocab_size=64, d_model=64, d_ff=176, n_heads=4, n_kv_heads=4, dtype="float32",
        tie_embeddings=False,
    )  # fmt: skip
    return config
