"""One pass of a window (`depth.Window`): what it adds to a plain pass over the window's layers.

Decoding runs layer by layer with `gates` and `stepped`; the compiled scan (`model.py`) with `one_pass`, which
is made of them.
"""

import jax.numpy as jnp

from loopjax.depth import Segment, Window
from loopjax.passes import SUBLAYERS


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


def one_pass(stack, window: Window):
    """A pass of a window as a function like `stack`, the scan over its layers in `model.run_segment`."""

    def run(block, x_BTD, unique_L, iteration, context):
        if (factors := gates(window, iteration)) is not None:
            context = context.replace(gates=factors)
        left_BTD, nothing = stack(block, x_BTD, unique_L, iteration, context)
        return stepped(window, x_BTD, left_BTD), nothing

    return run
