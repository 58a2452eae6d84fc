"""Addition modulo p on a fixed training set: the data are learned first, the rule later.

    loopjax train --config=configs/two_phase.py:1x2 --workdir=runs/two-phase-1x2
    loopjax train --config=configs/two_phase.py:paper,1x2 --workdir=runs/two-phase-paper

The variant is [paper,]PLAN[,GROWTH]; GROWTH (midas, lidas, ...) adds one layer at a time, PROP-1, in the
first sixth of the steps. 400 of the 529 sums modulo 23 are the training set; paper: modulo 97 and half of the
sums, as in Power et al. 2022 (2201.02177: width 128, four heads, batch 512, AdamW with a weight decay of
1 and a constant learning rate of 1e-3), whose layers are not those of this project. Accuracies on training
and held-out data, and checkpoints, are on a grid of log-spaced steps, so that other curves can be added
to those of the accuracies later.
"""

from loopjax.config import default
from loopjax.config_variants import parse_variant


def get_config(variant: str = "2"):
    parts = parse_variant("configs/two_phase.py", variant, "[paper,]PLAN[,GROWTH]")
    config = default()
    config.depth = parts["PLAN"]
    config.seq_len = 3
    config.cooldown.steps, config.schedule, config.warmup_steps = 0, "constant", 10
    config.optimizer.beta2 = 0.98
    config.optimizer.weight_decay = 0.9
    config.eval_per_decade = config.keep_per_decade = 20
    config.eval_train = True
    config.checkpoint_every, config.keep_last = 0, 1
    if parts["paper"]:
        config.steps, config.batch_size = 100_000, 512
        config.mixture = {"mod_addition_97:4704": 1.0}
        config.learning_rate = 1e-3
        config.model.update(vocab_size=104, d_model=128, d_ff=344, n_heads=4, n_kv_heads=4)
    else:
        config.steps, config.batch_size = 2400, 256
        config.mixture = {"mod_addition_23:400": 1.0}
        config.learning_rate = 3e-3
        config.eval_batches = 2
        config.model.update(vocab_size=32, d_model=64, d_ff=176, n_heads=4, n_kv_heads=4)
        config.data_threads = 1
    config.growth.update(operator=parts["GROWTH"], block=1)
    config.growth.steps = config.steps // 6 if parts["GROWTH"] else 0
    config.model.update(dtype="float32", tie_embeddings=False)
    return config
