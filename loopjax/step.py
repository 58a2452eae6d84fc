"""The train state and the pure functions that are compiled: one update, one evaluation batch."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from loopjax import block, exit_losses, exits, loop, model, optim, sharding
from loopjax import losses as losses_lib
from loopjax.depth import DepthPlan
from loopjax.losses import Losses
from loopjax.surgery import on_stack


@flax.struct.dataclass
class TrainState:
    """The state that an update changes: step int32 [], canonical parameters, optimizer state.

    `ema` is the exponential moving average of the parameters, a tree like theirs; None without.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None


def init_state(cfg: model.ModelConfig, n_layers: int, optimizer, key, ema=False) -> TrainState:
    """A newly initialized state; with `ema` its average begins as a copy of the parameters."""
    params = nn.meta.unbox(model.init_params(cfg, n_layers, key))
    return state_of(params, optimizer, ema)


def state_of(params, optimizer, ema: bool) -> TrainState:
    """The state of step 0 with these parameters."""
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def abstract_state(cfg, n_layers: int, optimizer, mesh, rules, ema=False) -> TrainState:
    """Shapes, dtypes and shardings of a state (`jax.ShapeDtypeStruct`), nothing allocated."""
    key = jax.random.key(0)
    boxed = jax.eval_shape(lambda: model.init_params(cfg, n_layers, key))
    shardings = sharding.tree_sharding(boxed, mesh, rules)
    shapes = jax.eval_shape(lambda: init_state(cfg, n_layers, optimizer, key, ema))
    params, _ = jax.tree_util.tree_flatten_with_path(shapes.params)
    by_name = {
        _keys(path): (leaf.shape, where)
        for (path, leaf), where in zip(params, jax.tree.leaves(shardings), strict=True)
    }

    def placed(path, leaf):
        where = _like_its_parameter(_keys(path), leaf, by_name, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(placed, shapes)


def _keys(path) -> tuple:
    return tuple(getattr(key, "key", getattr(key, "name", None)) for key in path)


def _like_its_parameter(keys: tuple, leaf, params: dict, mesh) -> NamedSharding:
    """The sharding of the parameter whose path is the end of the path of a leaf.

    A leaf of another shape is sharded like the parameter along the stack axis only; a leaf without a
    parameter (a counter) is replicated.
    """
    for n in range(len(keys)):
        if keys[n:] in params:
            shape, where = params[keys[n:]]
            if leaf.shape == shape:
                return where
            stacked = "layers" in keys[n:] and leaf.shape[:1] == shape[:1]
            return NamedSharding(mesh, PartitionSpec(*where.spec[:1] if stacked else ()))
    return NamedSharding(mesh, PartitionSpec())


def sharded_init(cfg, abstract: TrainState, n_layers: int, optimizer, seed: int) -> TrainState:
    """A new state, initialized in its sharding: no device ever holds all of it."""

    def init(key):
        return init_state(cfg, n_layers, optimizer, key, abstract.ema is not None)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def token_losses(params, batch, cfg, plan) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Negative log-likelihood, whether the argmax is the target, whether there is one; each [B, T]."""
    targets_BT = batch["targets"]
    args = params, batch["inputs"], targets_BT, cfg, plan, _placement(batch)
    return _where_scored(*model.token_losses(*args), targets_BT)


def _where_scored(nll_BT, hits_BT, targets_BT):
    scored_BT = targets_BT >= 0
    return jnp.where(scored_BT, nll_BT, 0.0), hits_BT & scored_BT, scored_BT


def _placement(batch) -> block.Placement | None:
    """Placement of packed rows: attention within segments, each with positions from 0."""
    if "segments" not in batch:
        return None
    return block.Placement(batch["positions"], batch["segments"])


def train_step(
    state: TrainState, batch, *, cfg, plan: DepthPlan, optimizer, schedule, microbatches: int,
    seed: int = 0, skip_bad: bool = False, added: Losses = losses_lib.NONE, ema: float = 0.0,
):  # fmt: skip
    """One update on a batch of int32 [B, T]; returns the state and its metrics.

    The metrics are "loss", "grad_norm" (global, before clipping), "grad_norms" (per parameter;
    stacked ones per layer [U]), "learning_rate", and "losses/NAME" for each auxiliary loss.

    With a law of the number of repetitions (`cfg.loop.repeats`) the number of this update is drawn from
    `seed` and the step, one for all devices and microbatches; it is the metric "repeats".

    The loss is the mean over all targets of the batch. With microbatches, the loss of each part is
    divided by the number of targets of the whole batch and gradients are summed, which gives the
    same mean. Training minimizes the loss plus other terms of the losses of tokens
    (`head.token_terms`) and the auxiliary losses (`model.outputs`), which are averaged over the
    microbatches; the plain model has neither. `added` are those of `config.losses`.

    A state with an average gets a <- ema a + (1 - ema) p of the new parameters p (Polyak & Juditsky
    1992, with exponential weights).

    With `skip_bad`, an update with a loss, a gradient or a new parameter that is nan or infinite
    leaves parameters, moments and average as they were, bit by bit; the step and the schedule advance. The
    metric "skipped" is then 1.
    """
    n_targets = jnp.maximum(jnp.sum(batch["targets"] >= 0), 1).astype(jnp.float32)
    passes = loop.Passes.drawn(cfg.loop, plan, seed, state.step)

    def objective(segments, part):
        weights_BT = (part["targets"] >= 0) / n_targets
        args = segments, part["inputs"], part["targets"], weights_BT, cfg, plan, _placement(part)
        if added.of_exits(plan):
            drawn = {"seed": seed, "step": state.step}
            total, terms, losses = exit_losses.weighted_loss(*args, passes, added, **drawn)
        else:
            total, terms, losses = model.weighted_loss(*args, passes)
        losses = {name: value / microbatches for name, value in losses.items()}
        return sum(losses.values(), start=total), (terms.pop("nll"), losses | terms)

    segments, joined = jax.vjp(lambda params: model.cut_segments(params, plan), state.params)
    if microbatches == 1:
        grads, (loss, losses) = jax.grad(objective, has_aux=True)(segments, batch)
    else:
        grads, (loss, losses) = _accumulated(objective, segments, batch, microbatches)
    (grads,) = joined(grads)
    if added.block_cosine:
        # A function of the parameters alone: once per update, not per microbatch.
        term, more = jax.value_and_grad(_block_cosine)(state.params, added)
        losses = {**losses, "block_cosine": term}
        grads = jax.tree.map(jnp.add, grads, more)
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if added.exit_gate == "gate":  # weight decay would change the others
            params = {**state.params, "loop": {**state.params["loop"], **gate_of(params)}}
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "grad_norms": jax.tree_util.tree_map_with_path(_norm, grads),
        "learning_rate": schedule(state.step),
        **{f"losses/{name}": value for name, value in losses.items()},
    }
    if passes is not None and passes.count is not None:
        metrics["repeats"] = passes.count
    average = state.ema
    if average is not None:
        average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, average, params)
    new = TrainState(state.step + 1, params, opt_state, average)
    if skip_bad:
        norms = jnp.stack([loss, metrics["grad_norm"], optax.tree.norm(params)])
        good = jnp.all(jnp.isfinite(norms))
        moments = optim.unmoved(state.opt_state, opt_state)
        old = TrainState(new.step, state.params, moments, state.ema)
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        metrics["skipped"] = ~good
    return new, metrics


def gate_of(params) -> dict:
    """The parameters of the exit gate; {} without one."""
    names = ("exit_gate", "exit_gate_bias")
    return {name: leaf for name, leaf in params.get("loop", {}).items() if name in names}


def _block_cosine(params, added: Losses):
    return added.block_cosine * losses_lib.block_cosine(params, added.block)


def _accumulated(objective, segments, batch, microbatches: int):
    """The sum over the parts of a batch of gradients and auxiliary results of `objective`.

    The backward pass adds to one buffer in place: the gradients of a part never exist beside the sum.
    """
    # Part m takes rows m, m + M, ...: so that no row moves between devices.
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    sums = jax.tree.map(lambda leaf: jax.new_ref(jnp.zeros_like(leaf)), segments)

    def add_part(_, part):
        value, pull, aux = jax.vjp(lambda s: objective(s, part), segments, has_aux=True)
        pull.with_refs(sums)(jnp.ones_like(value))
        return None, aux

    _, aux = jax.lax.scan(add_part, None, parts)
    grads = jax.tree.map(jax.freeze, sums)
    return grads, jax.tree.map(lambda x: jnp.sum(x, axis=0), aux)


def _norm(path, leaf):
    axes = range(1 if on_stack(path) else 0, leaf.ndim)
    return jnp.sqrt(jnp.sum(jnp.square(leaf), axis=tuple(axes)))


def eval_step(params, batch, *, cfg, plan: DepthPlan, rule: exits.Rule | None = None):
    """Sums over tokens, {"nll", "hits", "targets"}, and over rows, {"exact", "rows"}, of a batch.

    "rows" counts rows with a target, "exact" those in which all targets are predicted. With a rule of
    early exits, "repeats" are the repetitions of the loop of all "inputs".
    """
    counted = {}
    if rule is None:
        nll, hits, scored = token_losses(params, batch, cfg, plan)
    else:
        args = params, batch["inputs"], cfg, plan, rule, _placement(batch)
        x_BTD, repeats_BT = exits.residual(*args)
        losses = model.token_losses_of(params, x_BTD, batch["targets"], cfg)
        nll, hits, scored = _where_scored(*losses, batch["targets"])
        counted = {"repeats": repeats_BT, "inputs": jnp.ones_like(repeats_BT)}
    rows = jnp.any(scored, axis=1)
    exact = rows & jnp.all(hits == scored, axis=1)
    sums = {"nll": nll, "hits": hits, "targets": scored, "exact": exact, "rows": rows, **counted}
    return {key: jnp.sum(value) for key, value in sums.items()}
