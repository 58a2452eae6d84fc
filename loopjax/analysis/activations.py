"""One instrumented forward pass: residuals and updates of every executed layer, with gates.

Every diagnostic starts here. Shapes: E executed layers, B batch, T time, D width.
"""

import flax
import jax
import jax.numpy as jnp

from loopjax import model


@flax.struct.dataclass
class Activations:
    """What flows through a model, in float32.

    Attributes:
      residual: h_0 .. h_E, [E + 1, B, T, D]: what layer l reads, before it adds to it; h_E is what
        the final norm reads.
      attention, mlp: a_l and m_l, what the sublayers of layer l add, [E, B, T, D].
    """

    residual: jax.Array
    attention: jax.Array
    mlp: jax.Array

    @property
    def update(self) -> jax.Array:
        """c_l = a_l + m_l, [E, B, T, D]."""
        return self.attention + self.mlp


def activations(params, tokens_BT, cfg, plan, gates_EBT=None) -> Activations:
    """The activations of canonical parameters run by a plan; a pure function, for `jax.jit`.

    `gates_EBT` are those of `model.intermediates`.
    """
    names = ("residual", "attention", "mlp")
    x_BTD, sown = model.intermediates(params, tokens_BT, cfg, plan, names, gates_EBT)
    residual = jnp.concatenate([sown["residual"], x_BTD[None]])
    parts = (residual, sown["attention"], sown["mlp"])
    return Activations(*(part.astype(jnp.float32) for part in parts))


def gates_without(layers_B, hidden_BT, n_layers: int, sublayers=("attention", "mlp")) -> dict:
    """Gates that erase one executed layer of each row, at some of its tokens; [E, B, T] each.

    Args:
      layers_B: int, the layer that is erased; one that is not there (-1) erases nothing.
      hidden_BT: bool, the tokens at which it is.
      n_layers: E.
      sublayers: those of the layer that are erased.
    """
    erased_EBT = (jnp.arange(n_layers)[:, None] == layers_B[None])[..., None] & hidden_BT[None]
    gate, ones = jnp.where(erased_EBT, 0.0, 1.0), jnp.ones(erased_EBT.shape)
    return {name: gate if name in sublayers else ones for name in ("attention", "mlp")}
