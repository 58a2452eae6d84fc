"""The exit gate of a loop: parameters below `loop/`, only in models with `exit_gate=True`."""

import flax.linen as nn
import jax.numpy as jnp

from loopjax.model_config import ModelConfig


class ExitGate(nn.Module):
    """w x + b of normed residual streams [..., D], float32 [...]; both start at zero."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        weight_D = self.param("exit_gate", init, (self.cfg.d_model,))
        bias = self.param("exit_gate_bias", init, (1,))
        return jnp.sum(x.astype(jnp.float32) * weight_D, axis=-1) + bias[0]
