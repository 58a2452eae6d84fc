"""One token of decoding with early exits (`exits.py`): the loop goes on while a row takes part in it.

A row that has left keeps its residual stream. In the cache of every later repetition its token gets the
keys and values of the last repetition that it took part in, so that all tokens find it at any depth.
"""

import jax
import jax.numpy as jnp

from loopjax import block, exits, loop, model


def decode_step(params, layers, tokens_B1, cfg, plan, rule: exits.Rule, placement, caches):
    """(logits float32 [B, V], repetitions of each row int32 [B], the caches with the tokens in them).

    The arguments are those of `decode.decode_step`, for one token per row.
    """
    parts = exits.Parts.of(plan)
    x_B1D = model.outside_stack(params, cfg, tokens_B1, "embedded")
    context = model.context_of(cfg, placement.positions_BT, x_B1D, placement, weights=params)

    def run(x_B1D, indices, caches, context, held=None):
        """(x_B1D, the caches of these layers, the keys and values in them)."""
        written, kept = [], []
        for i, (e, cache) in enumerate(zip(indices, caches, strict=True)):
            here = context.replace(held=held[i] if held else None)
            x_B1D, cache, sown = model.run_layer(layers, e, x_B1D, here, cfg, plan, cache)
            written.append(cache)
            kept.append((sown["key"], sown["value"]))
        return x_B1D, tuple(written), tuple(kept)

    def read(x_B1D, caches_after):
        """(logits, caches of the layers after the loop) as if no row went on."""
        x_B1D, caches_after, _ = run(x_B1D, parts.after, caches_after, context)
        return model.unembed(params, x_B1D, cfg)[:, 0], caches_after

    def repetition(r, x_B1D, kept, active_B, reading, caches_loop):
        """The loop's repetition r for the rows that take part in it."""
        indices = [e + r * len(parts.loop) for e in parts.loop]
        held = None
        if kept:
            held = [block.Held(key, value, active_B[:, None]) for key, value in kept]
        new_B1D, here = loop.enter_repetition(x_B1D, r, inside, cfg)
        new_B1D, caches_loop, kept = run(new_B1D, indices, caches_loop, here, held)
        new_B1D = loop.leave_repetition(new_B1D, r, here, cfg)
        new_B1D = jnp.where(active_B[:, None, None], new_B1D, x_B1D)
        out_B1D = loop.leave_loop(new_B1D, inside, cfg)
        if rule.reads:
            logits, caches_after = read(out_B1D, reading[1])
            left_B = rule.of_logits(logits, reading[0] if r else None)
            reading = logits, caches_after, reading[2]
        else:
            args = params, cfg, new_B1D, x_B1D, out_B1D, reading[2]
            left_B1, log_stay_B1 = rule.of_states(*args)
            left_B, reading = left_B1[:, 0], (*reading[:2], log_stay_B1)
        return new_B1D, kept, active_B & ~left_B, reading, caches_loop

    n = len(parts.loop)
    first, last = parts.before.stop, plan.n_effective - len(parts.after)
    x_B1D, caches_before, _ = run(x_B1D, parts.before, caches[:first], context)
    inside, x_B1D = loop.begin(x_B1D, context, cfg)
    active_B = jnp.ones(tokens_B1.shape[0], bool)
    carry = x_B1D, (), active_B, (None, caches[last:], jnp.zeros(tokens_B1.shape))
    count_B = jnp.zeros(active_B.shape, jnp.int32)
    caches_loop = []
    for r in range(parts.repeats):
        own = caches[first + r * n : first + (r + 1) * n]
        count_B += carry[2]
        if r == 0:
            *carry, own = repetition(r, *carry, own)
        else:

            def goes_on(carry, own, r=r):
                return repetition(r, *carry, own)

            def is_over(carry, own):
                kept = [block.KVCache(key, value) for key, value in carry[1]]
                own = [block.written(c, k, placement.slot) for c, k in zip(own, kept, strict=True)]
                return *carry, tuple(own)

            carry = jax.lax.cond(jnp.any(carry[2]), goes_on, is_over, tuple(carry), own)
            *carry, own = carry
        caches_loop += own
    x_B1D, _, _, (logits, caches_after, _) = carry
    if not rule.reads:
        logits, caches_after = read(loop.leave_loop(x_B1D, inside, cfg), caches_after)
    return logits, count_B, (*caches_before, *caches_loop, *caches_after)
