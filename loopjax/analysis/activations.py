"""One instrumented forward pass: residuals and updates of every executed layer.

Shapes: E executed layers, B batch, T time, D width.
"""

import flax
import jax
import jax.numpy as jnp

from loopjax import model


@flax.struct.dataclass
class Activations:
    """The residuals and updates of a model, in float32.

    Attributes:
      residual: h_0 .. h_E, [E + 1, B, T, D]; h_l is the input of layer l, h_E of the final norm.
      attention, mlp: a_l and m_l, outputs of the sublayers of layer l, [E, B, T, D].
    """

    residual: jax.Array
    attention: jax.Array
    mlp: jax.Array

    @property
    def update(self) -> jax.Array:
        """c_l = a_l + m_l, [E, B, T, D]."""
        return self.attention + self.mlp


def activations(params, tokens_BT, cfg, plan) -> Activations:
    """The activations of canonical parameters run by a plan; a pure function, for `jax.jit`."""
    names = ("residual", "attention", "mlp")
    x_BTD, sown = model.intermediates(params, tokens_BT, cfg, plan, names)
    residual = jnp.concatenate([sown["residual"], x_BTD[None]])
    parts = (residual, sown["attention"], sown["mlp"])
    return Activations(*(part.astype(jnp.float32) for part in parts))
