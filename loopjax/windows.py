"""One pass of a window (`depth.Window`): what it adds to a plain pass over the window's layers.

The compiled scan (`model.py`) and decoding, which runs layer by layer, both use these two functions.
"""

import jax.numpy as jnp

from loopjax.depth import SUBLAYERS, Segment, Window


def gates(segment: Segment, iteration) -> dict | None:
    """Factors of the sublayers' outputs in a pass, for `Context.gates`; None where all are 1.

    Args:
      iteration: the pass, 0..R-1; int, or a traced int32 [].
    """
    if not isinstance(segment, Window) or not segment.passes.sublayer:
        return None
    first = jnp.asarray(iteration == 0, jnp.float32)
    damping = jnp.float32(segment.damping)
    return {name: damping if name == segment.passes.sublayer else first for name in SUBLAYERS}


def stepped(segment: Segment, entered_BTD, left_BTD):
    """The residual stream after a pass, from that before it and that after its layers.

    x + d (F(x) - x), in float32; F(x) itself where passes are whole, or damped by `gates`.
    """
    if not isinstance(segment, Window) or segment.passes.sublayer:
        return left_BTD
    x_BTD = entered_BTD.astype(jnp.float32)
    x_BTD = x_BTD + segment.damping * (left_BTD.astype(jnp.float32) - x_BTD)
    return x_BTD.astype(left_BTD.dtype)
