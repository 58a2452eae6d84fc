"""The transformer: LLaMA-style blocks in one stack, run by a depth plan.

Shape letters: B batch, T time, D width, H query heads, K key/value heads, C head size, F FFN
width, V vocabulary, U unique layers, E executed layers.

The canonical parameter tree does not depend on the plan:

    embed                    [V, D]
    layers/attention_norm    [U, D]          scale
    layers/query             [U, D, H*C]
    layers/key, layers/value [U, D, K*C]
    layers/output            [U, H*C, D]
    layers/mlp_norm          [U, D]          scale
    layers/gate, layers/up   [U, D, F]
    layers/down              [U, F, D]
    final_norm               [D]             scale
    head                     [D, V]          only with tie_embeddings=False
    loop/*                                   only with an exit gate, and options of loops that have weights
                                             (`loop.py`)

and in the model families that use them:

    layers/query_bias        [U, H*C]        with attention_bias=True; key_bias, value_bias [U, K*C]
    layers/query_norm        [U, C]          with qk_norm=True, scale; key_norm too
    layers/attention_post_norm [U, D]        with post_norm, scale; mlp_post_norm too

`residual` cuts `layers` into the segments of the plan and runs each by `nn.scan`: over its
repetitions (parameters broadcast) around its layers (parameters scanned). The compiled program
therefore grows with the number of segments, not with depth or repetitions, and the weights of a
loop exist once. `run_layer` executes a single layer of a plan: decoding (`lm/decode.py`) and the
diagnostics (`analysis/effects.py`) run the plan with it, one layer after another. Both call the same
`block.Block`, so a layer is changed in one place.

Initialization (float32):

    weight                     distribution                           source
    embed, query, key, value,  N(0, 1/fan_in), embed: fan_in = D      LeCun et al. 1998; std 0.022 at
    gate, up, head                                                    D = 2048 (Llama's is 0.02)
    output, down               N(0, 1/fan_in) / sqrt(2 init_depth)    GPT-2 (Radford et al. 2019)
    norm scales; biases        1; 0                                   Zhang & Sennrich 2019
    value, output, up, down    N(0, 1/fan_in) / sqrt(8 init_depth)    with loop.residual_scale="deeploop"

Layer i of the stack is initialized from the same key at any depth, so with one seed the first
layers of a shallow and a deep model are equal.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from loopjax import head, kernels, loop, rope, segment, sharded_weights
from loopjax.block import Block, Context, Placement, fan_in_normal, rms_norm
from loopjax.depth import DepthPlan, ExecutedLayer
from loopjax.model_config import ModelConfig
from loopjax.surgery import fitting


class Transformer(nn.Module):
    """Embedding, the segments of a plan, final norm and head. int [B, T] -> float32 [B, T, V].

    Its parameters are the canonical tree with `layers` cut into `segment_0`, `segment_1`, ...;
    `init_params` and the functions below use the canonical tree.
    """

    cfg: ModelConfig
    plan: DepthPlan

    def setup(self):
        cfg = self.cfg
        init = nn.with_logical_partitioning(
            nn.initializers.normal(cfg.d_model**-0.5), ("vocab", "embed")
        )
        self.embed = self.param("embed", init, (cfg.vocab_size, cfg.d_model))
        for i in range(len(self.plan.segments)):
            setattr(self, f"segment_{i}", Block(cfg))
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        self.final_norm = self.param("final_norm", init, (cfg.d_model,))
        if not cfg.tie_embeddings:
            init = nn.with_logical_partitioning(fan_in_normal(), ("embed", "vocab"))
            self.head = self.param("head", init, (cfg.d_model, cfg.vocab_size))
        self.loop = loop.Weights(cfg)

    def __call__(self, tokens_BT, placement=None):
        return self.unembed(self.run(tokens_BT, placement))

    def weighted_loss(self, tokens_BT, targets_BT, weights_BT, placement=None, passes=None):
        """See `head.weighted_loss`."""
        x_BTD = self.run(tokens_BT, placement, passes)
        return self.losses(head.weighted_loss, x_BTD, targets_BT, weights_BT)

    def token_losses(self, tokens_BT, targets_BT, placement=None):
        """See `head.token_losses`."""
        return self.losses(head.token_losses, self.run(tokens_BT, placement), targets_BT)

    @jax.named_scope("head")
    def losses(self, function, x_BTD, *tokens_BT):
        kernel, axes = (
            (self.embed, ("vocab", "embed"))
            if self.cfg.tie_embeddings
            else (self.head, ("embed", "vocab"))
        )
        x_BTD = self.normed(x_BTD)
        with jax.named_scope("loss"):
            return function(x_BTD, kernel, *tokens_BT, axes)

    def table(self):
        # The product needs all of D; a result sharded along D would have to be resharded along the
        # batch, which XLA does by replicating it.
        table_VD = self.embed.astype(self.cfg.dtype)
        return nn.with_logical_constraint(table_VD, ("vocab", "activation"))

    @jax.named_scope("embed")
    def embedded(self, tokens_BT):
        x_BTD = sharded_weights.lookup(self.embed, tokens_BT, ("vocab", "embed"), self.cfg.dtype)
        if self.cfg.embed_scale != 1:
            x_BTD = x_BTD * self.cfg.embed_scale
        return nn.with_logical_constraint(x_BTD, ("batch", "seq", "activation"))

    def run(self, tokens_BT, placement=None, passes=None):
        """The residual stream after the last executed layer, [B, T, D]."""
        x_BTD = self.embedded(tokens_BT)
        positions = jnp.arange(tokens_BT.shape[1]) if placement is None else placement.positions_BT
        context = context_of(self.cfg, positions, x_BTD, placement)
        return self.run_from(0, x_BTD, context, passes)

    def run_from(self, first, x_BTD, context, passes=None):
        """The residual stream after the last segment, from that before segment `first`."""
        # Here, so that every plan initializes the weights of loops.
        weights = loop.boundary_weights(self.cfg, self.loop(), self.final_norm)
        for i, part in enumerate(self.plan.segments[first:], first):
            with jax.named_scope(f"segment_{i}_x{part.repeats}"):
                if context.loop is not None:
                    carried = context.loop.replace(weights=weights)
                    context = context.replace(loop=carried.begun(self.cfg.loop, x_BTD))
                x_BTD = self.run_segment(i, x_BTD, context, passes)
        return x_BTD

    def normed(self, x_BTD):
        return rms_norm(x_BTD, self.final_norm, self.cfg.norm_eps)

    @jax.named_scope("head")
    def unembed(self, x_BTD):
        """Final norm and head, float32 [B, T, V]."""
        x_BTD = self.normed(x_BTD)
        head_DV = self.table().T if self.cfg.tie_embeddings else self.head.astype(self.cfg.dtype)
        # Accumulated and kept in float32: the loss is a difference of large logits.
        logits_BTV = kernels.matmul(x_BTD, head_DV, dtype=jnp.float32)
        return nn.with_logical_constraint(logits_BTV, ("batch", "seq", "vocab"))

    def exit_logits(self, x_BTD, alone=False):
        """The logit of leaving the loop at residual streams after a repetition, float32 [...].

        With `alone`, the gate has a gradient and the norm before it none.
        """
        weights = self.loop()
        x32_BTD = self.normed(x_BTD).astype(jnp.float32)
        x32_BTD = jax.lax.stop_gradient(x32_BTD) if alone else x32_BTD
        return jnp.sum(x32_BTD * weights["exit_gate"], axis=-1) + weights["exit_gate_bias"][0]

    def run_segment(self, index, x_BTD, context, passes=None, every=False):
        """See `segment.run`."""
        block = getattr(self, f"segment_{index}")
        return segment.run(self, block, index, x_BTD, context, passes, every)


def angles_of(cfg: ModelConfig, positions):
    """`rope.tables` of positions [..., T]."""
    frequencies = rope.frequencies(cfg.head_size, cfg.rope_theta, cfg.rope_scaling)
    return rope.tables(positions, frequencies)


def init_params(cfg: ModelConfig, n_layers: int, key: jax.Array):
    """The canonical tree of a stack of `n_layers`, boxed with logical axis names (`nn.meta`)."""
    plan = DepthPlan.of([(n_layers, 1)])
    params = Transformer(cfg, plan).init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    params = {("layers" if k == "segment_0" else k): v for k, v in params.items()}
    if cfg.loop.lora_rank:  # flax draws in turn; the other parameters begin as without it
        loop_config = dataclasses.replace(cfg.loop, lora_rank=0)
        plain = init_params(dataclasses.replace(cfg, loop=loop_config), n_layers, key)
        params["layers"] = params["layers"] | plain["layers"]
    return params


def cut_segments(params, plan: DepthPlan):
    """The canonical tree with `layers` cut into the segments of the plan."""
    rest = {k: v for k, v in params.items() if k != "layers"}
    for i, s in enumerate(plan.segments):
        rest[f"segment_{i}"] = jax.tree.map(
            lambda leaf, s=s: leaf[s.start : s.stop], params["layers"]
        )
    return rest


# Canonical (unboxed) parameters run by a plan, which may be given as text ("4x6"). A plan of another
# number of unique layers than the parameters have is a ValueError.


def forward(
    params, tokens_BT, cfg: ModelConfig, plan: DepthPlan | str, placement=None
) -> jax.Array:
    """Logits, float32 [B, T, V]."""
    return outputs(params, tokens_BT, cfg, plan, placement)[0]


def outputs(params, tokens_BT, cfg: ModelConfig, plan: DepthPlan | str, placement=None):
    """(logits float32 [B, T, V], {name: auxiliary loss []}).

    The losses are those that a module sows into the collection "losses", summed over the executed
    layers; the plain transformer has none.
    """
    plan = fitting(params, plan)
    return with_losses("__call__", cut_segments(params, plan), cfg, plan, tokens_BT, placement)


def weighted_loss(
    segments, tokens_BT, targets_BT, weights_BT, cfg: ModelConfig, plan: DepthPlan, placement=None,
    passes: loop.Passes | None = None,
):  # fmt: skip
    """The loss of a batch whose logits are never held whole (`head.weighted_loss`).

    Args:
      segments: `cut_segments` of the parameters. Cut by the caller, so that gradients of
        microbatches can be accumulated by segment.
      targets_BT: int, -1 for none.
      weights_BT: float32 weight of each target, 0 for none.
      passes: how often a loop runs and what of it has a gradient; None for what the plan says.

    Returns:
      (the weighted sum of the losses of the tokens [], to be differentiated; {term: its weighted
      sum []}, of which "nll" is the cross-entropy; {name: auxiliary loss []} as in `outputs`).
    """
    args = tokens_BT, targets_BT, weights_BT, placement, passes
    (total, terms), losses = with_losses("weighted_loss", segments, cfg, plan, *args)
    return total, terms, losses


def token_losses(
    params, tokens_BT, targets_BT, cfg: ModelConfig, plan: DepthPlan | str, placement=None
):
    """Negative log-likelihood of each target and whether the argmax is the target, [B, T] each."""
    plan = fitting(params, plan)
    args = {"params": cut_segments(params, plan)}, tokens_BT, targets_BT, placement
    return Transformer(cfg, plan).apply(*args, method="token_losses")


def with_losses(method, segments, cfg, plan, *args):
    """(what a method of `Transformer` returns, the auxiliary losses sown in it).

    Args:
      method: its name, or a function of the module and `args`.
    """
    variables = {"params": segments}
    result, sown = Transformer(cfg, plan).apply(variables, *args, method=method, mutable=["losses"])
    return result, segment.sums_of(sown)


def residual(
    params, tokens_BT, cfg: ModelConfig, plan: DepthPlan | str, placement=None
) -> jax.Array:
    """The residual stream before the final norm, [B, T, D]."""
    plan = fitting(params, plan)
    args = {"params": cut_segments(params, plan)}, tokens_BT, placement
    return Transformer(cfg, plan).apply(*args, method="run")


def residual_from(
    params, first: int, x_BTD, tokens_BT, cfg: ModelConfig, plan: DepthPlan | str
) -> jax.Array:
    """The residual stream before the final norm, [B, T, D], from that before segment `first`."""
    plan = fitting(params, plan)

    def run(module, tokens_BT, x_BTD):
        embedded_BTD = module.embedded(tokens_BT)
        positions = jnp.arange(tokens_BT.shape[1])
        context = context_of(cfg, positions, embedded_BTD)
        return module.run_from(first, x_BTD, context)

    variables = {"params": cut_segments(params, plan)}
    return Transformer(cfg, plan).apply(variables, tokens_BT, x_BTD, method=run)


def intermediates(
    params, tokens_BT, cfg: ModelConfig, plan: DepthPlan | str, names, placement=None
):
    """(residual stream before the final norm [B, T, D], {name: what each executed layer sowed}).

    Args:
      names: names that `Block` sows; each array is [E, B, T, ...], in the order of execution.
    """
    plan = fitting(params, plan)
    variables = {"params": cut_segments(params, plan)}
    x_BTD, sown = Transformer(cfg, plan).apply(
        variables, tokens_BT, placement, method="run", mutable=["intermediates"]
    )
    segments = [sown["intermediates"][f"segment_{i}"] for i in range(len(plan.segments))]

    def in_order(name):
        # [L, B, T, ...] of a segment, [R, L, B, T, ...] of a loop.
        parts = [s[name][0] for s in segments]
        looped = [s.repeats > 1 for s in plan.segments]
        parts = [p.reshape(-1, *p.shape[1 + loop :]) for p, loop in zip(parts, looped, strict=True)]
        return jnp.concatenate(parts)

    return x_BTD, {name: in_order(name) for name in names}


def unembed(params, x_BTD, cfg: ModelConfig) -> jax.Array:
    """Final norm and head: the logits of residuals, float32 [B, T, V]."""
    return outside_stack(params, cfg, x_BTD, "unembed")


def token_losses_of(params, x_BTD, targets_BT, cfg: ModelConfig):
    """`token_losses` of a residual stream before the final norm."""
    return outside_stack(params, cfg, head.token_losses, "losses", x_BTD, targets_BT)


def outside_stack(params, cfg, x, method: str, *args):
    """The result of a method of `Transformer` that uses no layer."""
    outside = {k: v for k, v in params.items() if k != "layers"}
    return Transformer(cfg, DepthPlan(())).apply({"params": outside}, x, *args, method=method)


def run_layer(layers, e, x_BTD, context: Context, cfg: ModelConfig, plan: DepthPlan, cache=None):
    """Executed layer `e` of a plan: (x_BTD, its updated cache, {name: what it sowed}).

    The layer alone, without what `config.loop` puts between repetitions: see `advance`.

    Args:
      layers: `params["layers"]`, leaves [U, ...]; or a list of U trees, one per unique layer.
      e: int, or a traced int32 [] if `layers` is a stack.
      context: result of `context_of`.
      cache: `KVCache` of this executed layer; None to attend only to the tokens of `x_BTD`.
    """
    place = _executed(plan, e)
    if isinstance(layers, dict):
        layer = jax.tree.map(lambda leaf: leaf[place.unique], layers)
    else:
        layer = layers[place.unique]
    if "place" in Block.reads:
        context = context.replace(place=place)
    context = context.replace(repetition=loop.repetition_at(plan, e, cfg))
    (x_BTD, cache), sown = Block(cfg).apply(
        {"params": layer}, x_BTD, context, cache, mutable=["intermediates"]
    )
    return x_BTD, cache, {name: value for name, (value,) in sown["intermediates"].items()}


def advance(layers, e, x_BTD, context: Context, cfg: ModelConfig, plan: DepthPlan, cache=None):
    """`run_layer` with what is before and after the layer if a repetition begins or ends there.

    Running e = 0..E-1 one after another on the embeddings, each with the context that the one before
    returned, gives `residual`. Arguments are those of `run_layer`.

    Returns:
      (x_BTD, the context for the next layer, the updated cache, {name: what the layer sowed}).
    """
    edges, iteration = loop.Edges.of(plan, e), _executed(plan, e).iteration
    x_BTD, context = loop.before_layer(x_BTD, edges, iteration, context, cfg)
    x_BTD, cache, sown = run_layer(layers, e, x_BTD, context, cfg, plan, cache)
    return loop.after_layer(x_BTD, edges, iteration, context, cfg), context, cache, sown


def _executed(plan: DepthPlan, e) -> ExecutedLayer:
    if isinstance(e, int):
        return plan.executed[e]
    fields = zip(*map(dataclasses.astuple, plan.executed), strict=True)
    return ExecutedLayer(*(jnp.array(values)[e] for values in fields))


def context_of(
    cfg: ModelConfig, positions, embedded_BTD, placement: Placement | None = None, gates=None,
    weights: dict | None = None,
) -> Context:  # fmt: skip
    """The context for running layers one by one, with tokens at positions [..., T].

    Args:
      weights: the parameters, of which those that `config.loop` needs are used.
    """
    weights = weights or {}
    boundary = loop.boundary_weights(cfg, weights.get("loop", {}), weights.get("final_norm"))
    carried = loop.Carried.start(cfg, boundary, embedded_BTD, positions)
    embedded_BTD = embedded_BTD if "embedded_BTD" in Block.reads else None
    angles = angles_of(cfg, positions)
    return Context(angles, placement, gates, embedded_BTD=embedded_BTD, loop=carried)
