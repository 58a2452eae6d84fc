"""Early exits: what a token computes alone, by a cache and without one, and what that saves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import exits, flops, model
from loopjax.block import Placement
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.exits import Rule
from loopjax.lm import decode, score
from loopjax.loop import first_state
from loopjax.loop_config import LoopConfig
from tests.test_score import CFG, LM, ONE, language_model

PROMPTS = [[5, 9, 200, 17], [3], [250, 1, 7, 7, 30, 99, 41], [11, 12]]


# --- a token after the other, without a cache ---------------------------------------------------


class Reference:
    """The semantics again, in NumPy: lists of keys and values of every token at every executed layer."""

    def __init__(self, lm, rule):
        self.cfg, self.plan, self.rule = lm.cfg, lm.plan, rule
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(lm.params))
        self.loop = next(s for s in lm.plan.segments if s.repeats > 1)
        self.seen = [[] for _ in range(lm.plan.n_effective)]  # (key, value) of each token

    def norm(self, x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.cfg.norm_eps) * scale

    def rotated(self, x_NC, t):
        C = self.cfg.head_size
        angle = t * self.cfg.rope_theta ** (-2 * np.arange(C // 2) / C)
        a, b = x_NC[:, : C // 2], x_NC[:, C // 2 :]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)

    def layer(self, e, x, t):
        cfg = self.cfg
        w = {n: leaf[self.plan.order[e]] for n, leaf in self.params["layers"].items()}
        h = self.norm(x, w["attention_norm"])
        q = self.rotated((h @ w["query"]).reshape(-1, cfg.head_size), t)
        k = self.rotated((h @ w["key"]).reshape(-1, cfg.head_size), t)
        v = (h @ w["value"]).reshape(-1, cfg.head_size)
        self.seen[e] = [*self.seen[e][:t], (k, v)]
        out = np.zeros_like(q)
        for head in range(cfg.n_heads):
            group = head // (cfg.n_heads // cfg.n_kv_heads)
            keys = np.array([key[group] for key, _ in self.seen[e]])
            logits = keys @ q[head] / np.sqrt(cfg.head_size)
            weights = np.exp(logits - logits.max())
            out[head] = weights / weights.sum() @ np.array([v[group] for _, v in self.seen[e]])
        x = self.added(w, "attention", x, out.reshape(-1) @ w["output"])
        h = self.norm(x, w["mlp_norm"])
        gate = h @ w["gate"]
        out = (gate / (1 + np.exp(-gate)) * (h @ w["up"])) @ w["down"]
        return self.added(w, "mlp", x, out)

    def added(self, w, name, x, out):
        if self.cfg.post_norm == "output":
            return x + self.norm(out, w[f"{name}_post_norm"])
        if self.cfg.post_norm == "stream":
            if self.cfg.loop.residual_scale == "deeploop":
                x = np.sqrt(2 * self.cfg.init_depth) * x
            return self.norm(x + out, w[f"{name}_post_norm"])
        return x + out

    def entered(self, state, e, i):
        """The input of repetition i = 0, 1, ... from the state and the stream before the loop."""
        loop, x = self.cfg.loop, state
        weights = self.params.get("loop", {})
        if loop.final_norm == "between" and i:
            x = self.norm(x, self.params["final_norm"])
        if loop.norm and i:
            x = self.norm(x, 1.0)
        if loop.inject == "add" or (loop.inject == "after" and i):
            x = x + loop.inject_scale * e
        if loop.inject == "concat":
            x = np.concatenate([x, e]) @ weights["adapter"]
        return x + weights["embedding"][min(i, loop.own - 1)] if loop.embedding else x

    def ended(self, state, e):
        """The residual stream if the loop ends with this state."""
        loop, x = self.cfg.loop, state
        x = self.norm(x, self.params["final_norm"]) if loop.final_norm == "after" else x
        x = self.norm(x, 1.0) if loop.norm else x
        return x + loop.inject_scale * e if loop.inject == "after" else x

    def distribution(self, x, t):
        """log p of the next token as if the token left now."""
        for e in range(self.first + self.loop.layers * self.loop.repeats, self.plan.n_effective):
            x = self.layer(e, x, t)
        logits = self.norm(x, self.params["final_norm"]) @ self.params["embed"].T
        logits -= logits.max()
        return logits - np.log(np.exp(logits).sum())

    def token(self, token, t, may_leave=True):
        """(log p of the next token, repetitions) of the token at position t."""
        x, before, self.stays = self.params["embed"][token] * self.cfg.embed_scale, None, 1.0
        self.first = self.loop.start
        for e in range(self.first):
            x = self.layer(e, x, t)
        stream = state = x
        loop = self.cfg.loop
        if loop.start:
            zeros = jnp.zeros((1, 1, self.cfg.d_model))
            state = np.asarray(first_state(self.cfg, zeros, jnp.array([t])), np.float64)[0, 0]
        L, R = self.loop.layers, self.loop.repeats
        for r in range(1, R + 1):
            entered = state
            x = inner = self.entered(state, stream, r - 1)
            for e in range(L):
                x = self.layer(self.first + (r - 1) * L + e, x, t)
            state = {
                "": lambda s, x, y: y,
                "outer_delta": lambda s, x, y: s + (y - x),
                "scaled": lambda s, x, y, r=r: s + self.params["loop"]["scale"][r - 1] * y,
            }[loop.residual](state, inner, x)
            self.out = self.ended(state, stream)
            log_p = self.distribution(self.out, t)
            left = self.leaves(state, entered, log_p, before)
            before = log_p
            if may_leave and left:
                break
        for deeper in range(r, R):
            for e in range(L):
                at = self.first + deeper * L + e
                self.seen[at] = [*self.seen[at][:t], self.seen[self.first + (r - 1) * L + e][t]]
        return log_p, r

    def leaves(self, x, entered, log_p, before):
        threshold = self.rule.threshold
        if self.rule.name == "latent":
            return np.linalg.norm(x - entered) / np.linalg.norm(x) < threshold
        if self.rule.name == "gate":
            gate = self.params["loop"]
            logit = self.norm(self.out, self.params["final_norm"]) @ gate["exit_gate"]
            self.stays *= 1 - 1 / (1 + np.exp(-logit - gate["exit_gate_bias"][0]))
            return 1 - self.stays > threshold
        if self.rule.name == "confidence":
            return np.exp(log_p.max()) > threshold
        return before is not None and (np.exp(log_p) * (log_p - before)).sum() < threshold


def typical(lm, name):
    """A threshold that about half of the tokens of random text reach in the loop."""
    values = []
    for tokens in np.random.default_rng(1).integers(0, 257, (2, 8)):
        reference = Reference(lm, Rule(name, 0.0))
        reference.leaves = lambda x, e, p, b: values.append((x, e, p, b))
        for t, token in enumerate(tokens):
            reference.token(token, t)
    if name == "gate":
        return Rule(name, 0.8)
    if name == "latent":
        found = [np.linalg.norm(x - e) / np.linalg.norm(x) for x, e, _, _ in values]
    elif name == "confidence":
        found = [np.exp(p.max()) for _, _, p, _ in values]
    else:
        found = [(np.exp(p) * (p - b)).sum() for _, _, p, b in values if b is not None]
    return Rule(name, float(np.quantile(found, 0.6 if name == "confidence" else 0.4)))


def model_of(depth, name="", **fields):
    """A random model; its gate and other weights of loops, if there are any, and norms are random too."""
    lm = language_model(depth, exit_gate=name == "gate", **fields)
    params = dict(lm.params)

    def moved(tree, only=""):
        return {
            part: leaf + 0.3 * jax.random.normal(jax.random.key(len(part)), leaf.shape)
            if only in part
            else leaf
            for part, leaf in tree.items()
        }

    if "loop" in params:
        params["loop"] = moved(params["loop"])
    if "loop" in fields:  # norms of scale 1 would be one
        params = moved(params | {"layers": moved(params["layers"], "norm")}, "final_norm")
    if name == "gate":
        gate = {"exit_gate": jax.random.normal(jax.random.key(5), (CFG.d_model,)) / 3}
        params["loop"] |= gate | {"exit_gate_bias": jnp.array([0.2])}
    return dataclasses.replace(lm, params=params)


# What happens between repetitions: Ouro's, Huginn's, and every other option of `config.loop` that changes
# states.
BETWEEN = {
    "ouro": {"post_norm": "output", "loop": LoopConfig(final_norm="between")},
    "huginn": {
        "post_norm": "stream", "embed_scale": 32**0.5,
        "loop": LoopConfig(start="normal", inject="concat", final_norm="after"),
    },
    "delta": {"loop": LoopConfig(norm=True, inject="add", residual="outer_delta")},
    "scaled": {
        "loop": LoopConfig(
            inject="after", inject_scale=0.7, residual="scaled", embedding=True, own=4
        ),
    },
    "deeploop": {"post_norm": "stream", "loop": LoopConfig(residual_scale="deeploop")},
    "zeros": {"loop": LoopConfig(start="zeros", inject="add", inject_scale=0.5, norm=True)},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "name", "between"),
    [
        ("2x4", "kl", None),
        *(("1-2x3-1", name, None) for name in ("latent", "confidence")),
        ("1x4", "gate", "ouro"),
        ("1-1x3-1", "confidence", "huginn"),
    ],
)
def test_cached_decoding_is_that_of_each_token_alone(depth, name, between):
    lm = model_of(depth, name, mesh="", devices=jax.devices()[:1], **BETWEEN.get(between, {}))
    rule = typical(lm, name)
    # Alone, a row that leaves ends the loop; in a batch, it waits for the others.
    greedy = decode.generate(lm.with_exit(rule), PROMPTS, 8, batch_size=1)
    sampled = decode.generate(lm.with_exit(rule), PROMPTS, 8, sampling=decode.Sampling(1.0))
    counts = set()
    for i, generation in enumerate(greedy + sampled):
        prompt = PROMPTS[i % len(PROMPTS)]
        reference = Reference(lm, rule)
        for t, token in enumerate(prompt):  # prompts are read at full depth
            log_p, _ = reference.token(token, t, may_leave=False)
        repeats = [reference.loop.repeats]
        for t, token in enumerate(generation.tokens, len(prompt)):
            if i < len(PROMPTS):  # the most likely one, unless two are as likely up to rounding
                assert log_p[token] > log_p.max() - 1e-4
            log_p, r = reference.token(token, t)
            repeats.append(r)
        assert generation.repeats == repeats[: len(generation.tokens)]
        counts |= set(generation.repeats[1:])
    assert len(counts) > 1, "the threshold separates no tokens"


@pytest.mark.parametrize(
    ("depth", "name", "between"),
    [
        *(("1-1x5", name, None) for name in exits.RULES),
        ("2x4", "confidence", None),
        ("2x4", "kl", "ouro"),
        ("1-1x4-1", "latent", "huginn"),
        ("1-1x4", "gate", "delta"),
        ("1x4", "confidence", "scaled"),
        ("1x4-1", "latent", "zeros"),
        ("1-2x3", "latent", "deeploop"),
    ],
)
def test_whole_sequences_leave_like_tokens_one_after_another(depth, name, between):
    lm = model_of(depth, name, mesh="", devices=jax.devices()[:1], **BETWEEN.get(between, {}))
    rule = typical(lm, name)
    tokens = np.random.default_rng(2).integers(0, 257, (3, 9))
    x_BTD, count_BT = exits.residual(lm.params, jnp.array(tokens), lm.cfg, lm.plan, rule)
    log_p_BTV = jax.nn.log_softmax(model.unembed(lm.params, x_BTD, lm.cfg))
    for b, row in enumerate(tokens):
        reference = Reference(lm, rule)
        for t, token in enumerate(row):
            log_p, r = reference.token(token, t)
            assert count_BT[b, t] == r
            np.testing.assert_allclose(log_p_BTV[b, t], log_p, atol=1e-4)
    assert len(np.unique(count_BT)) > 1


# --- never ---------------------------------------------------------------------------------------

NEVER = [Rule("kl", 0.0), Rule("latent", 0.0), Rule("confidence", 1.0), Rule("gate", 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "rule"),
    [("2x3-1", NEVER[2]), *(("1-2x3-1", rule) for rule in (NEVER[0], NEVER[3]))],
    ids=str,
)
def test_a_rule_that_never_holds_is_full_depth_bit_for_bit(depth, rule):
    lm = model_of(depth, rule.name)
    plain = decode.generate(lm, PROMPTS, 20)
    found = decode.generate(lm.with_exit(rule), PROMPTS, 20)
    assert [g.tokens for g in found] == [g.tokens for g in plain]
    most = exits.loop_of(lm.plan).repeats
    assert all(set(g.repeats) <= {most} for g in found) and not plain[0].repeats


@pytest.mark.parametrize("rule", NEVER, ids=str)
def test_the_logits_and_caches_of_a_step_are_those_of_full_depth_bit_for_bit(rule):
    lm = model_of("1-2x3-1", rule.name, mesh="", devices=jax.devices()[:1])
    plan, layers, cfg = lm.plan, lm.layers, lm.cfg
    _, caches = decode.prefill(lm.params, jnp.array([[4, 7, 9, 200]]), cfg, plan)
    caches = jax.tree.map(lambda c: jnp.pad(c, ((0, 0), (0, 0), (0, 2), (0, 0))), caches)
    mask_BTS = (jnp.arange(6) <= 4)[None, None]
    placement = Placement(jnp.array([[4]]), mask_BTS=mask_BTS, slot=jnp.int32(4))
    token = jnp.array([[33]])

    @jax.jit
    def plain(caches):
        x_B1D, caches = decode.decode_step(lm.params, layers, token, cfg, plan, placement, caches)
        return model.unembed(lm.params, x_B1D, cfg)[:, 0], caches

    @jax.jit
    def exiting(caches):
        args = lm.params, layers, token, cfg, plan, rule, placement, caches
        logits, _, caches = decode.exit_decoding.decode_step(*args)
        return logits, caches

    jax.tree.map(np.testing.assert_array_equal, exiting(caches), plain(caches))


@pytest.mark.parametrize("rule", NEVER, ids=str)
def test_scores_at_full_depth_are_the_plain_scores(rule):
    requests = [([1, 2, 3], [4]), ([1, 2, 3], [9, 9]), ([7], [200, 3, 3, 8])]
    lm = model_of("1-2x3-1", rule.name)
    plain = score.log_likelihoods(lm, requests)
    found = score.log_likelihoods(lm.with_exit(rule), requests)
    np.testing.assert_allclose(found.logprobs, plain.logprobs, rtol=1e-5)
    assert found.repeats == 3 * found.tokens and plain.repeats == 0


@pytest.mark.parametrize("between", ["huginn", "scaled"])
def test_a_rule_that_never_holds_is_full_depth_whatever_is_between_repetitions(between):
    rule = NEVER[1]
    lm = model_of("1-1x3", rule.name, mesh="", devices=jax.devices()[:1], **BETWEEN[between])
    tokens = jnp.array([PROMPTS[0]])

    @jax.jit
    def both(params):
        args = params, tokens, lm.cfg, lm.plan
        x_BTD, count_BT = exits.residual(*args, rule)
        return model.residual(*args), x_BTD, count_BT

    plain, found, count_BT = both(lm.params)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    assert (count_BT == 3).all()


def test_always_leaving_is_the_plan_of_one_repetition():
    once = dataclasses.replace(LM, plan=DepthPlan.parse("4"))
    rule = Rule("confidence", 0.0)
    requests = [([1, 2, 3], [4, 8]), ([7], [200, 3, 3, 8])]
    expected = score.log_likelihoods(once, requests).logprobs
    found = score.log_likelihoods(LM.with_exit(rule), requests)
    np.testing.assert_allclose(found.logprobs, expected, rtol=1e-5)
    assert found.repeats == found.tokens


def test_a_token_that_left_is_found_at_every_depth():
    plan, slot = DepthPlan.parse("1-2x3-1"), 4
    _, caches = decode.prefill(ONE.params, jnp.array([[4, 7, 9, 200]]), CFG, plan)
    caches = jax.tree.map(lambda c: jnp.pad(c, ((0, 0), (0, 0), (0, 2), (0, 0))), caches)
    placement = Placement(
        jnp.array([[slot]]), mask_BTS=(jnp.arange(6) <= slot)[None, None], slot=jnp.int32(slot)
    )
    args = ONE.params, ONE.layers, jnp.array([[33]]), CFG, plan, Rule("confidence", 0.0)
    _, count_B, caches = decode.exit_decoding.decode_step(*args, placement, caches)
    assert count_B.tolist() == [1]
    for layer in (1, 2):
        own = jax.tree.map(lambda c: c[:, :, slot], caches[layer])
        assert np.abs(own.key).max() > 0.1
        for deeper in (layer + 2, layer + 4):
            found = jax.tree.map(lambda c: c[:, :, slot], caches[deeper])
            jax.tree.map(np.testing.assert_array_equal, found, own)


# --- what is saved -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", exits.RULES)
def test_the_saving_counts_layers_and_readings(name):
    plan, counts = DepthPlan.parse("1-2x4-3"), [1, 4, 2, 2, 3]
    found = exits.saving(CFG, plan, Rule(name, 0.5), 48, len(counts), sum(counts))
    layer = 2 * flops.layer_params(CFG) + 4 * CFG.n_heads * CFG.head_size * 48
    head = 2 * CFG.d_model * CFG.vocab_size
    cost = layers = 0
    for count in counts:
        readings = count if name in ("kl", "confidence") else 1
        layers += 1 + 2 * count + 3 * readings
        cost += (1 + 2 * count + 3 * readings) * layer + readings * head
    full = 12 * layer + head
    assert found.repeats == pytest.approx(12 / 5)
    assert found.layers == pytest.approx(layers / 5)
    assert found.flops == pytest.approx(cost / 5)
    assert found.saved == pytest.approx(1 - cost / 5 / full)
    per_token = flops.training_flops_per_token(CFG, plan, 48) // 3
    assert found.most_flops == per_token


def test_the_saving_counts_adapters_and_low_rank_additions():
    cfg = dataclasses.replace(CFG, loop=LoopConfig(inject="concat", lora_rank=2, own=3))
    plan, rule = DepthPlan.parse("1-2x4-3"), Rule("latent", 0.5)
    plain, found = (exits.saving(c, plan, rule, 48, 5, 12) for c in (CFG, cfg))
    assert found.most_flops == flops.inference_flops_per_token(cfg, plan, 48)
    more = (found.most_flops - plain.most_flops) / 4  # a repetition
    assert found.flops == pytest.approx(plain.flops + more * 12 / 5)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "kl", "kl:", "kl:x", "kl:-1", "kl:nan", "kl:inf", "no:1", "confidence:1.5", ":1"]
)
def test_a_rule_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="must be a rule and its threshold"):
        Rule.parse(text)


@pytest.mark.parametrize(("depth", "what"), [("4", "no loop"), ("1x2-2x2", "2 loops")])
def test_plans_without_exactly_one_loop_are_refused(depth, what):
    lm = language_model(depth, mesh="", devices=jax.devices()[:1])
    with pytest.raises(
        UserError, match=f"requires a plan with one loop, but plan {depth} has {what}"
    ):
        lm.with_exit(Rule("kl", 0.1))


def test_a_gate_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--exit gate:0.8 requires a model with an exit gate"):
        ONE.with_exit(Rule("gate", 0.8))


@pytest.mark.parametrize(("repeats", "depth"), [(1, "1-2x3-1"), (5001, "1-2x3-1"), (3, "4")])
def test_repetitions_that_cannot_be_are_refused(repeats, depth):
    lm = language_model(depth, mesh="", devices=jax.devices()[:1])
    with pytest.raises(UserError, match=f"--max-repeats {repeats} (must lie|requires a plan)"):
        lm.with_exit(None, repeats)


@pytest.mark.slow
def test_more_repetitions_than_in_training_are_another_plan():
    lm = ONE.with_exit(Rule("latent", 0.0), 7)
    assert str(lm.plan) == "1-2x7-1"
    assert set(decode.generate(lm, PROMPTS[:1], 4)[0].repeats) == {7}
