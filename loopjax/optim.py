"""Optimizers and learning-rate schedules by name: `config.optimizer.name`, `config.schedule`.

To add one, write a function and add it to the table. An optimizer's state can have any form: leaves
that mirror a stacked parameter ([U, ...] below a key "layers") are sharded, saved and grown with the
parameter (`step.abstract_state`, `surgery.grow`); other leaves are replicated.

Gradients are clipped by their global norm before any optimizer, and all parameters share one
learning rate.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from loopjax import growth_schedule
from loopjax.errors import UserError
from loopjax.surgery import on_stack


def trapezoid(peak: float, steps: int, warmup_steps: int, decay_steps: int):
    """Learning rate of update t = 0, 1, ...: linear warm-up, constant, then 1-sqrt decay.

    Warm-up reaches `peak` at update `warmup_steps - 1`; over the last `decay_steps` the rate is
    peak (1 - sqrt((t - t0) / decay_steps)) with t0 = steps - decay_steps (Kapl et al. 2025,
    Appendix A).
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


def cosine(peak: float, steps: int, warmup_steps: int, decay_steps: int):
    """Linear warm-up, then half a cosine down to 0 at `steps` (Loshchilov & Hutter 2017).

    All rates after the warm-up depend on `steps`, so a run cannot be extended or branched into a
    longer one. `decay_steps` is ignored.
    """

    def schedule(t):
        t = jnp.asarray(t, jnp.float32)
        warmup = jnp.minimum(1.0, (t + 1.0) / max(warmup_steps, 1))
        progress = jnp.clip((t - warmup_steps) / max(steps - warmup_steps, 1), 0.0, 1.0)
        return peak * warmup * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    return schedule


def constant(peak: float, steps: int, warmup_steps: int, decay_steps: int):
    """Linear warm-up, then `peak` for the rest of the run."""

    def schedule(t):
        t = jnp.asarray(t, jnp.float32)
        return peak * jnp.minimum(1.0, (t + 1.0) / max(warmup_steps, 1))

    return schedule


def rewarmed(schedule, starts, rewarm_steps: int):
    """The schedule times min(1, (t - s + 1) / rewarm_steps), s the last of `starts` up to update t.

    It rises anew from each growth step on; before the first one it is the schedule.
    """

    def risen(t):
        t = jnp.asarray(t, jnp.float32)
        factor = jnp.float32(1.0)
        for start in starts:  # ascending, so a later one has the smaller factor
            again = jnp.minimum(1.0, (t - start + 1.0) / rewarm_steps)
            factor = jnp.where(t >= start, again, factor)
        return factor * schedule(t)

    return risen


SCHEDULES = {"trapezoid": trapezoid, "cosine": cosine, "constant": constant}


def decay_mask(params):
    """True for matrices and embeddings, False for norm scales and biases.

    Decided by name, since a stacked scale has the rank of a matrix. The vectors of repetitions
    (`loop/embedding`, `loop/scale`) are biases and scales too, and a gate is a vector.
    """
    vectors = ("norm", "bias", "scale", "embedding", "exit_gate")

    def decays(path, _):
        return not any(str(getattr(key, "key", "")).endswith(vectors) for key in path)

    return jax.tree_util.tree_map_with_path(decays, params)


def adamw(schedule, fields) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019), the optimizer of the papers."""
    return optax.adamw(
        schedule, b1=fields.beta1, b2=fields.beta2, eps=fields.eps,
        weight_decay=fields.weight_decay, mask=decay_mask,
    )  # fmt: skip


def lion(schedule, fields) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023): the sign of an interpolated momentum, one moment per parameter.

    Its authors recommend a learning rate 3 to 10 times smaller than AdamW's, a weight decay 3 to 10
    times larger, and beta2=0.99.
    """
    return optax.lion(
        schedule, b1=fields.beta1, b2=fields.beta2,
        weight_decay=fields.weight_decay, mask=decay_mask,
    )  # fmt: skip


# The matrix of a stacked leaf [U, in, out]: each layer is orthogonalized separately.
_MATRIX = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
_MUON_RMS = 0.2  # RMS of an update, as measured for AdamW (Liu et al. 2025, section 2.2)


def muon(schedule, fields) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices of the stack, AdamW for everything else.

    The momentum of each [in, out] matrix of each layer is orthogonalized; a looped layer
    has one matrix with one gradient. Embeddings, head, norm scales and biases use AdamW. Updates are
    scaled by 0.2 sqrt(max(in, out)) to match the RMS of AdamW's, so that both share one learning
    rate and weight decay (Liu et al. 2025).
    """

    def dimension_numbers(updates):
        return jax.tree.map(lambda _: _MATRIX, updates)

    def scale_by_shape(updates, params=None):
        return jax.tree.map(lambda u: _MUON_RMS * max(u.shape[1:]) ** 0.5 * u, updates)

    matrices = optax.chain(
        optax.contrib.scale_by_muon(
            beta=fields.momentum, weight_dimension_numbers=dimension_numbers
        ),
        optax.stateless(scale_by_shape),
        optax.add_decayed_weights(fields.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.partition({"muon": matrices, "adamw": adamw(schedule, fields)}, _muon_labels)


def _muon_labels(params):
    def label(path, leaf):
        return "muon" if on_stack(path) and leaf.ndim == 3 else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer and its config fields.

    Attributes:
      make: function (schedule, `config.optimizer`) -> `optax.GradientTransformation`.
      fields: fields of `config.optimizer` that the optimizer uses.
    """

    make: Callable
    fields: tuple[str, ...]


OPTIMIZERS = {
    "adamw": Optimizer(adamw, ("weight_decay", "beta1", "beta2", "eps")),
    "muon": Optimizer(muon, ("weight_decay", "momentum", "beta1", "beta2", "eps")),
    "lion": Optimizer(lion, ("weight_decay", "beta1", "beta2")),
}


def check(config, default) -> None:
    """Raises UserError for an unknown optimizer or schedule, or a field the optimizer does not use."""
    for name, value, table in (
        ("schedule", config.schedule, SCHEDULES),
        ("optimizer.name", config.optimizer.name, OPTIMIZERS),
    ):
        if value not in table:
            raise UserError(f"config.{name}={value!r} must be one of {', '.join(table)}")
    own = OPTIMIZERS[config.optimizer.name].fields
    for name, value in config.optimizer.items():
        if name != "name" and name not in own and value != default.optimizer[name]:
            raise UserError(
                f"config.optimizer.{name}={value} does not apply to config.optimizer.name="
                f"{config.optimizer.name!r}, which uses {', '.join(own)}"
            )


def make_optimizer(config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a config, after clipping by the global norm, and its schedule.

    Both depend on the step alone; with `growth.rewarm_steps` on the steps at which the run grows too.
    """
    schedule = SCHEDULES[config.schedule](
        config.learning_rate, config.steps, config.warmup_steps, config.cooldown.steps
    )
    if config.growth.rewarm_steps:
        schedule = rewarmed(schedule, growth_schedule.switches(config), config.growth.rewarm_steps)
    optimizer = OPTIMIZERS[config.optimizer.name].make(schedule, config.optimizer)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer), schedule


def rescheduled(opt_state):
    """The optimizer state with the schedule restarted at step 0; moments are kept."""
    return _map_schedules(jnp.zeros_like, opt_state)


def reset(optimizer: optax.GradientTransformation, params, opt_state):
    """A fresh optimizer state for `params`, at the schedule step of `opt_state`."""
    return unmoved(optimizer.init(params), opt_state)


def unmoved(before, after):
    """The optimizer state `before`, at the schedule step of the state `after`."""
    nodes = jax.tree.leaves(after, is_leaf=_is_schedule)
    step = next(node.count for node in nodes if _is_schedule(node))
    return _map_schedules(lambda _: step, before)


def _is_schedule(node) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def _map_schedules(fn, opt_state):
    def mapped(node):
        return jax.tree.map(fn, node) if _is_schedule(node) else node

    return jax.tree.map(mapped, opt_state, is_leaf=_is_schedule)
