"""Log-likelihoods and decoding are those of the plain forward pass, however they are batched."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from loopjax import block, config, model, sharding
from loopjax.data.tokenizers import ByteTokenizer, FileTokenizer
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.lm import decode, score
from loopjax.lm.batching import bucket
from loopjax.lm.loaded_model import LanguageModel, _mesh

CFG = model.ModelConfig(
    vocab_size=264, d_model=32, d_ff=48, n_heads=4, n_kv_heads=2, init_depth=4, dtype="float32"
)
RULES = sharding.axis_rules(config.default().mesh)


def language_model(depth="1-2x3-1", mesh="fsdp=2,tensor=2", devices=None, context=48, **changes):
    """A random model on the devices."""
    cfg, plan = dataclasses.replace(CFG, **changes), DepthPlan.parse(depth)
    boxed = model.init_params(cfg, plan.n_unique, jax.random.key(3))
    devices = _mesh(mesh, devices or jax.devices())
    placed = jax.device_put(
        nn.meta.unbox(boxed),
        sharding.tree_sharding(boxed, devices, RULES),
    )
    return LanguageModel(
        placed, cfg, plan, ByteTokenizer(), context, devices, RULES, {}, pathlib.Path("nowhere")
    )


LM = language_model()
ONE = language_model(mesh="", devices=jax.devices()[:1])


@functools.partial(jax.jit, static_argnames=("cfg", "plan"))
def padded_logits(params, tokens_BT, cfg, plan):
    return model.forward(params, tokens_BT, cfg, plan)


def forward_logits(lm, tokens):
    """Logits [T, V] of one text by one plain forward pass (what follows cannot change them)."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    return padded_logits(jax.device_get(lm.params), padded, lm.cfg, lm.plan)[0, : len(tokens)]


def plain(lm, context, continuation):
    """(log p, greedy) of a continuation."""
    tokens = (context + continuation)[-lm.context - 1 :]
    logits = forward_logits(lm, tokens[:-1])[len(tokens) - 1 - len(continuation) :]
    found = jax.nn.log_softmax(logits)[jnp.arange(len(continuation)), jnp.array(continuation)]
    return float(found.sum()), bool((logits.argmax(-1) == jnp.array(continuation)).all())


def random_requests(n_contexts, seed, longest=60):
    rng = np.random.default_rng(seed)

    def tokens(most):
        return rng.integers(0, 257, rng.integers(1, most)).tolist()

    return [
        (context, tokens(6))
        for context in [tokens(longest) for _ in range(n_contexts)]
        for _ in range(rng.integers(1, 5))
    ]


def test_scores_are_those_of_the_plain_forward_pass():
    requests = random_requests(6, seed=0)
    greedy = [c for c, _ in requests[:2]]
    best = [int(forward_logits(LM, context[-48:])[-1].argmax()) for context in greedy]
    requests += [(context, [token]) for context, token in zip(greedy, best, strict=True)]
    scores = score.log_likelihoods(LM, requests)
    expected = [plain(LM, *request) for request in requests]
    np.testing.assert_allclose(scores.logprobs, [e[0] for e in expected], rtol=1e-5)
    assert scores.greedy.tolist() == [e[1] for e in expected]
    assert scores.greedy[-2:].all()
    longer = sum(len(c) + len(o) > LM.context + 1 for c, o in requests)
    assert scores.truncated == longer > 0


@pytest.mark.slow
def test_scores_depend_neither_on_batches_nor_on_order_nor_on_devices():
    requests = random_requests(12, seed=1)
    scores = score.log_likelihoods(LM, requests)
    order = np.random.default_rng(0).permutation(len(requests))
    shuffled = score.log_likelihoods(LM, [requests[i] for i in order], batch_tokens=64)
    alone = score.log_likelihoods(ONE, requests, batch_tokens=10**6)
    np.testing.assert_allclose(shuffled.logprobs, scores.logprobs[order], atol=1e-5)
    np.testing.assert_allclose(alone.logprobs, scores.logprobs, atol=1e-5)


def test_a_context_is_computed_once_and_continuations_of_one_token_are_free():
    context = list(range(30))
    ten = score.log_likelihoods(ONE, [(context, [token]) for token in range(10)])
    assert (ten.rows, ten.tokens) == (1, 30)
    pairs = [(context, [token, 7, 8]) for token in range(10)]
    assert score.log_likelihoods(ONE, pairs).tokens == 30 + 10 * 2
    one = score.log_likelihoods(ONE, pairs[3:4])
    assert one.tokens == 32
    assert one.logprobs[0] == pytest.approx(plain(ONE, *pairs[3])[0], rel=1e-5)


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=1, max_size=4))))
def test_every_token_of_every_request_is_read_once_from_its_own_past(asked):
    contexts = [[1, 2, 3], [1, 2], [3] * 9]
    requests = [(contexts[c], after) for c, after in asked]
    rows, cut = score.make_rows(requests, context=8)
    assert cut.tolist() == [len(c) + len(a) > 9 for c, a in requests]
    read = {number: [] for number in range(len(requests))}
    for row in rows:
        assert len(row.tokens) == len(row.positions) == len(row.branches) <= 16
        assert max(row.positions) < 8
        for slot, target, number in row.reads:
            seen = [
                row.tokens[i] for i in range(slot + 1) if row.branches[i] in (0, row.branches[slot])
            ]
            assert [row.positions[i] for i in range(slot + 1) if row.branches[i] in (0, row.branches[slot])] == list(range(len(seen)))  # fmt: skip
            read[number].append((seen, target))
    for (before, after), found in zip(requests, read.values(), strict=True):
        whole = (before + after)[-9:]
        n = len(whole) - len(after)
        assert found == [(whole[: n + i], after[i]) for i in range(len(after))]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100, 2048])
def test_buckets_waste_at_most_half(n):
    assert n <= bucket(n) <= max(32, 1.5 * n)
    assert n <= bucket(n, least=1) <= 1.5 * n + 0.5


def test_a_continuation_longer_than_the_context_is_a_mistake():
    with pytest.raises(UserError, match="a continuation of 49 tokens is longer than the context"):
        score.make_rows([([1], [2] * 49)], 48)


@pytest.mark.parametrize(("before", "after", "what"), [([], [1], "context"), ([1], [], "contin")])
def test_nothing_to_score_is_a_mistake(before, after, what):
    with pytest.raises(UserError, match=rf"^request 1 has an empty {what}\w*; it needs at least"):
        score.make_rows([([1], [2]), (before, after)], 48)


PROMPTS = [[1, 2, 3], [65] * 20, [9], list(range(100, 111))]


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "qk_norm": True}])
def test_decoding_is_the_argmax_of_the_full_forward_pass(changes):
    lm = language_model(**changes)
    for prompt, made in zip(PROMPTS, decode.generate(lm, PROMPTS, 20), strict=True):
        whole = prompt + made.tokens
        best = forward_logits(lm, whole).argmax(-1)[len(prompt) - 1 : -1]
        assert made.tokens == best.tolist()
        assert made.ended == "length" and len(made.tokens) == 20


def test_a_layer_that_runs_twice_remembers_twice():
    tokens = jnp.array([[1, 2, 3, 4]])
    _, caches = decode.prefill(jax.device_get(LM.params), tokens, LM.cfg, LM.plan)
    assert len(caches) == 8
    assert caches[0].key.shape == caches[0].value.shape == (1, 2, 4, 8)
    assert not np.allclose(caches[1].key, caches[3].key)  # layer 1, pass 0 and 1


def test_logits_with_a_cache_are_those_without():
    @jax.jit
    def in_two_calls(params, layers, tokens):
        _, caches = decode.prefill(params, tokens[:, :12], LM.cfg, LM.plan)
        caches = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 8), (0, 0))), caches)
        positions = jnp.arange(12, 20)
        mask = jnp.arange(20)[None] <= positions[:, None]
        placement = block.Placement(
            jnp.tile(positions, (2, 1)), mask_BTS=jnp.tile(mask, (2, 1, 1)), slot=jnp.int32(12)
        )
        rest = (tokens[:, 12:], LM.cfg, LM.plan, placement, caches)
        x, _ = decode.decode_step(params, layers, *rest)
        return model.unembed(params, x, LM.cfg)

    params, tokens = jax.device_get(LM.params), jnp.arange(40).reshape(2, 20)
    found = in_two_calls(params, jax.device_get(LM.layers), tokens)
    expected = padded_logits(params, tokens, LM.cfg, LM.plan)[:, 12:]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_draws_depend_on_seed_and_prompt_alone():
    sampling = decode.Sampling(temperature=0.9, top_p=0.9, seed=4)
    together = decode.generate(LM, PROMPTS, 18, sampling=sampling)
    apart = decode.generate(LM, PROMPTS, 18, sampling=sampling, batch_size=1)
    other = decode.generate(LM, PROMPTS, 18, sampling=dataclasses.replace(sampling, seed=5))
    assert [m.tokens for m in together] == [m.tokens for m in apart]
    assert [m.tokens for m in together] != [m.tokens for m in other]


@pytest.mark.slow
def test_draws_have_the_probabilities_of_the_model():
    n, temperature = 2000, 0.7
    made = decode.generate(
        ONE, [[5, 6]] * n, 1, sampling=decode.Sampling(temperature, 0.8), batch_size=n
    )
    p = np.array(jax.nn.softmax(forward_logits(ONE, [5, 6])[-1] / temperature), np.float64)
    order = np.argsort(-p)
    kept = order[: np.searchsorted(np.cumsum(p[order]), 0.8) + 1]
    p = np.where(np.isin(np.arange(len(p)), kept), p, 0)
    p /= p.sum()
    counts = np.bincount([m.tokens[0] for m in made if m.tokens], minlength=len(p))
    assert not counts[p == 0].any()
    # Four standard deviations of each count, and one for the rounding of small ones.
    assert (np.abs(counts - n * p) < 4 * np.sqrt(n * p * (1 - p)) + 1).all()


@pytest.mark.slow
def test_the_smallest_nucleus_is_greedy():
    greedy = decode.generate(LM, PROMPTS, 8)
    for top_p in (1e-6, 1e-40):  # float32 has no number between 0 and 1e-45
        nucleus = decode.generate(LM, PROMPTS, 8, sampling=decode.Sampling(1.0, top_p))
        assert [m.tokens for m in nucleus] == [m.tokens for m in greedy]


def test_a_continuation_ends_before_a_stop_string_or_the_end_of_document():
    whole = decode.generate(LM, [[70, 71]], 30)[0]
    middle = whole.text[5:7]
    cut = decode.generate(LM, [[70, 71]], 30, stop=[middle, "\0never"])[0]
    assert cut.ended == "stop" and cut.text == whole.text.split(middle)[0]
    assert whole.tokens[: len(cut.tokens)] == cut.tokens
    codec = ByteTokenizer()
    codec.eos_id = whole.tokens[4]
    ended = decode.generate(dataclasses.replace(LM, tokenizer=codec), [[70, 71]], 30)[0]
    assert ended.ended == "eos"
    assert ended.tokens == whole.tokens[: whole.tokens.index(codec.eos_id)]


def words_codec(path, special, eos):
    """A tokenizer whose token i is the text "(i)", or "<|im_end|>" for the special one."""
    pieces = {f"({i})": i for i in range(ONE.cfg.vocab_size) if i != special}
    words = tokenizers.models.WordLevel(pieces | {"<|im_end|>": special}, unk_token="(0)")
    made = tokenizers.Tokenizer(words)
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(["<|im_end|>"])
    made.save(str(path))
    return FileTokenizer(path, eos=f"({eos})")


def test_generation_stops_at_a_special_token_and_keeps_no_token_of_a_stop_string(tmp_path):
    whole = decode.generate(ONE, [[70, 71]], 30)[0].tokens
    n = next(n for n in range(4, 30) if whole[n] not in whole[:n])
    eos = next(i for i in range(ONE.cfg.vocab_size) if i not in whole)
    codec = words_codec(tmp_path / "tokenizer.json", whole[n], eos)
    lm = dataclasses.replace(ONE, tokenizer=codec)

    def made(*stop):
        return decode.generate(lm, [[70, 71]], 30, stop=stop)[0]

    text = codec.decode(whole[:n])
    assert "im_end" not in made().text and made().ended == "length"  # printed without
    found = made("never", "<|im_end|>")
    assert (found.ended, found.tokens, found.text) == ("stop", whole[:n], text)
    found = made("<|im_end|>", ")<|im_end|>")  # the earlier one
    assert (found.ended, found.tokens, found.text) == ("stop", whole[: n - 1], text[:-1])
    assert made("im_end").ended == "length"  # a special token is one thing
    # A stop string of several tokens, and one that begins within a token.
    pair = codec.decode(whole[2:4])
    several = made(pair)
    assert several.text == text.split(pair)[0] == codec.decode(several.tokens)
    last = f")({whole[n - 1]})"
    within = made(last)
    assert within.text == text.split(last)[0] != codec.decode(within.tokens)
    assert within.text == f"{codec.decode(within.tokens)}({whole[len(within.tokens)]}"


def test_a_prompt_that_is_too_long_loses_its_beginning():
    prompt = list(range(60))
    made = decode.generate(LM, [prompt, [1]], 10)
    assert [m.truncated for m in made] == [60 - 38, 0]
    assert made[0].tokens == decode.generate(LM, [prompt[22:]], 10)[0].tokens


def test_mistakes_in_decoding_are_reported():
    with pytest.raises(UserError, match=r"--max-new-tokens 48 must lie within 1\.\.47"):
        decode.generate(LM, [[1]], 48)
    with pytest.raises(UserError, match="--temperature -1 must be at least 0"):
        decode.Sampling(-1)
    with pytest.raises(UserError, match="--top-p 0 must lie within"):
        decode.Sampling(0, 0)
    with pytest.raises(UserError, match=r"--temperature 1e-40 must be 0 \(greedy\) or at least"):
        decode.Sampling(1e-40)
    for seed in (-1, 2**32, 10**22):
        with pytest.raises(UserError, match=rf"^--seed {seed} must lie within 0\.\.4294967295$"):
            decode.Sampling(seed=seed)
