"""The optimizer of the papers: AdamW, global clipping, one trapezoidal schedule."""

import jax
import jax.numpy as jnp
import optax


def trapezoid(peak: float, steps: int, warmup_steps: int, decay_steps: int):
    """Learning rate of update t = 0, 1, ...: linear warm-up, constant, then 1-sqrt decay.

    Warm-up reaches `peak` at update `warmup_steps - 1`; over the last `decay_steps` the rate is
    peak (1 - sqrt((t - t0) / decay_steps)) with t0 = steps - decay_steps (Kapl et al. 2025,
    Appendix A). Growth does not touch it.
    """
    start = steps - decay_steps

    def schedule(t):
        t = jnp.asarray(t, jnp.float32)
        warmup = jnp.minimum(1.0, (t + 1.0) / max(warmup_steps, 1))
        progress = jnp.clip((t - start) / max(decay_steps, 1), 0.0, 1.0)
        left = jnp.clip((steps - t) / max(decay_steps, 1), 0.0, 1.0)
        # left / (1 + sqrt(progress)) is 1 - sqrt(progress) without its cancellation near the end.
        return peak * warmup * left / (1.0 + jnp.sqrt(progress))

    return schedule


def decay_mask(params):
    """True for matrices and embeddings, False for norm scales and biases; by name, since stacking
    adds an axis that would make a scale look like a matrix."""

    def decays(path, _):
        return not any(str(getattr(key, "key", "")).endswith(("norm", "bias")) for key in path)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW behind clipping by the global norm, and its schedule."""
    schedule = trapezoid(
        config.learning_rate, config.steps, config.warmup_steps, config.cooldown.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
    return optimizer, schedule
