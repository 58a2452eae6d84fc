"""Diagnostics against plain NumPy, and their exact values where theory gives them."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from loopjax import model, surgery
from loopjax.analysis import depth_score, effects, norms, similarity
from loopjax.analysis.activations import activations
from loopjax.depth import DepthPlan, lidas
from loopjax.errors import UserError
from loopjax.lm import batching
from loopjax.lm.loaded_model import open_model
from loopjax.plots import diagnostics, figure
from loopjax.results import store
from tests.test_score import language_model

STORIES = pathlib.Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260k"
LM = language_model("1-2x2-1", "tensor=2")
PROMPTS = [list(range(3, 24)), [7, 1, 200] * 10, [9] * 18]
CUTS = effects.draw_boundaries(PROMPTS)


def silent(lm, layer):
    """The model whose unique layer writes nothing into the residual stream."""
    layers = dict(lm.params["layers"])
    for name in ("output", "down"):
        layers[name] = layers[name].at[layer].set(0.0)
    return dataclasses.replace(lm, params={**lm.params, "layers": layers}, _cut=[])


# A transformer in NumPy, one sequence at a time.


class Plain:
    def __init__(self, lm):
        self.cfg, self.order = lm.cfg, lm.plan.order
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(lm.params))

    def norm(self, x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.cfg.norm_eps) * scale

    def turned(self, x):
        T, _, C = x.shape
        angle = np.arange(T)[:, None, None] * self.cfg.rope_theta ** (-np.arange(0, C, 2) / C)
        a, b = x[..., : C // 2], x[..., C // 2 :]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1
        )

    def sublayers(self, e, h, skip=None):
        """(a, m) of executed layer e; both times what `skip` [T] leaves."""
        p = {k: v[self.order[e]] for k, v in self.params["layers"].items()}
        C, T = self.cfg.head_size, len(h)
        x = self.norm(h, p["attention_norm"])
        q, k, v = ((x @ p[n]).reshape(T, -1, C) for n in ("query", "key", "value"))
        k, v = (np.repeat(y, q.shape[1] // y.shape[1], 1) for y in (k, v))
        logits = np.einsum("thc,shc->hts", self.turned(q), self.turned(k)) / np.sqrt(C)
        logits = np.where(np.tril(np.ones((T, T))), logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        keep = np.ones((T, 1)) if skip is None else 1.0 - skip[:, None]
        a = keep * (np.einsum("hts,shc->thc", weights, v).reshape(T, -1) @ p["output"])
        x = self.norm(h + a, p["mlp_norm"])
        gate = x @ p["gate"]
        return a, keep * ((gate / (1 + np.exp(-gate)) * (x @ p["up"])) @ p["down"])

    def run(self, tokens, source=None, skip=None):
        """(h [E + 1, T, D], c [E, T, D], probabilities [T, V])."""
        h, c = [self.params["embed"][tokens]], []
        for e in range(len(self.order)):
            a, m = self.sublayers(e, h[-1], skip if e == source else None)
            c.append(a + m)
            h.append(h[-1] + a + m)
        head = self.params.get("head", self.params["embed"].T)
        z = self.norm(h[-1], self.params["final_norm"]) @ head
        q = np.exp(z - z.max(-1, keepdims=True))
        return np.array(h), np.array(c), q / q.sum(-1, keepdims=True)

    def ablated(self, tokens, t):
        skip = np.zeros(len(tokens))
        skip[1:t] = 1
        return skip

    def relative(self, clean, changed, t):
        norm = np.maximum(np.linalg.norm(clean[t:], axis=-1), 1e-6)
        return (np.linalg.norm(clean[t:] - changed[t:], axis=-1) / norm).max()

    def local(self, prompts, cuts):
        E = len(self.order)
        out = np.zeros((E, E))
        for tokens, boundaries in zip(prompts, cuts, strict=True):
            h, c, _ = self.run(tokens)
            for t in boundaries:
                skip = self.ablated(tokens, t)[:, None]
                for s in range(E):
                    for l in range(s + 1, E):  # noqa: E741
                        a, m = self.sublayers(l, h[l] - skip * c[s])
                        out[s, l] = max(out[s, l], self.relative(c[l], a + m, t))
        return out

    def propagated(self, prompts, cuts):
        E = len(self.order)
        out, output = np.zeros((E, E)), np.zeros((len(prompts), E))
        for p, (tokens, boundaries) in enumerate(zip(prompts, cuts, strict=True)):
            _, c, q = self.run(tokens)
            for t in boundaries:
                for s in range(E):
                    _, changed, far = self.run(tokens, s, self.ablated(tokens, t))
                    rows = [self.relative(c[l], changed[l], t) for l in range(E)]  # noqa: E741
                    out[s] = np.maximum(out[s], rows)
                    apart = np.linalg.norm(q[t:] - far[t:], axis=-1).max()
                    output[p, s] = max(output[p, s], apart)
        return out, output


@pytest.mark.slow
def test_the_activations_are_those_of_plain_numpy():
    tokens = PROMPTS[0]
    found = activations(jax.device_get(LM.params), jnp.array([tokens]), LM.cfg, LM.plan)
    h, c, _ = Plain(LM).run(tokens)
    np.testing.assert_allclose(found.residual[:, 0], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.update[:, 0], c, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_effects_are_those_of_plain_numpy():
    found, alone = effects.propagated(LM, PROMPTS, CUTS), effects.local(LM, PROMPTS, CUTS)
    matrix, output = Plain(LM).propagated(PROMPTS, CUTS)
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-3)
    np.testing.assert_allclose(found.output, output.max(0), atol=1e-3)
    np.testing.assert_allclose(alone.matrix, Plain(LM).local(PROMPTS, CUTS), atol=1e-3)
    assert not np.tril(found.matrix).any() and not np.tril(alone.matrix).any()
    np.testing.assert_allclose(np.diag(found.matrix, 1), np.diag(alone.matrix, 1), rtol=1e-5)
    assert found.prompts == 3 and found.boundaries == sum(map(len, CUTS))
    assert (found.mean <= found.matrix + 1e-6).all()


def test_the_current_effect_of_a_layer_on_itself_is_one_and_of_attention_not_zero():
    layer = effects.propagated(LM, PROMPTS, None)
    np.testing.assert_allclose(np.diag(layer.matrix), 1.0, rtol=1e-6)
    attention = effects.propagated(LM, PROMPTS, None, "attention")
    assert (np.diag(attention.matrix) > 0.01).all()
    assert not np.tril(layer.matrix, -1).any() and layer.boundaries == 0
    assert not np.tril(effects.local(LM, PROMPTS[:1], None).matrix).any()


def test_a_silent_layer_has_no_effect_and_contributes_nothing():
    quiet = silent(LM, 2)  # executed as layers 2 and 4
    found = effects.propagated(quiet, PROMPTS[:1], CUTS[:1])
    rows = [2, 4]
    assert not found.matrix[rows].any() and not found.output[rows].any()
    assert not effects.local(quiet, PROMPTS[:1], CUTS[:1]).matrix[rows].any()
    measured = norms.norms(quiet, PROMPTS)
    assert not measured.layer[rows].any() and not measured.attention[rows].any()
    assert measured.layer[[0, 1, 3, 5]].all()


def test_norms_are_means_of_ratios_over_all_tokens():
    found, plain = norms.norms(LM, PROMPTS), Plain(LM)
    ratios, sizes, cosines, attention = [], [], [], []
    for tokens in PROMPTS:
        h, c, _ = plain.run(tokens)
        a = np.array([plain.sublayers(e, h[e])[0] for e in range(6)])
        size = np.linalg.norm(h, axis=-1)
        sizes.append(size)
        ratios.append(np.linalg.norm(c, axis=-1) / size[:-1])
        attention.append(np.linalg.norm(a, axis=-1) / size[:-1])
        cosines.append((h[1:] * h[:-1]).sum(-1) / size[1:] / size[:-1])
    for values, curve in (
        (sizes, found.residual), (ratios, found.layer), (cosines, found.next_cosine),
        (attention, found.attention), ([s[:, 1:] for s in sizes], found.residual_after_first),
    ):  # fmt: skip
        np.testing.assert_allclose(curve, np.concatenate(values, 1).mean(1), rtol=1e-4)
    np.testing.assert_allclose(found.largest["layer"], np.concatenate(ratios, 1).max(1), rtol=1e-4)
    assert found.tokens == sum(map(len, PROMPTS))


CASES = [(tokens, 6, group) for tokens, group in zip(PROMPTS, "aab", strict=True)]


@pytest.mark.parametrize("one", [True, False])
def test_the_depth_score_is_that_of_plain_numpy(one):
    found = depth_score.depth_score(LM, CASES, one=one)
    cuts = depth_score.draw_boundaries(CASES, one)
    assert all(c == [6] for c in cuts) if one else all(len(c) > 1 for c in cuts)
    _, output = Plain(LM).propagated(PROMPTS, cuts)
    np.testing.assert_allclose(found.effect, output.mean(0), atol=1e-3)
    layers = np.arange(6)
    assert found.score == pytest.approx(layers @ output.mean(0) / output.mean(0).sum(), abs=1e-3)
    group = output[:2].mean(0)
    assert found.groups["a"] == pytest.approx(layers @ group / group.sum(), abs=1e-3)
    assert found.effect[-1] == 0 and found.prompts == 3


def test_a_constant_effect_has_its_score_in_the_middle():
    assert depth_score.expected_layer(np.full(24, 0.3)) == pytest.approx(11.5)
    assert np.isnan(depth_score.expected_layer(np.zeros(4)))


def test_short_answers_are_left_out_and_too_short_prompts_told():
    found = depth_score.depth_score(LM, [*CASES[:1], ([1] * 10, 7, "c")])
    assert (found.prompts, found.skipped) == (1, 1)
    with pytest.raises(UserError, match="none of the 1 answers has more than 4 tokens within the"):
        depth_score.depth_score(LM, [([1] * 10, 7, "c")])
    with pytest.raises(UserError, match="none of the 1 answers has a token within the context"):
        depth_score.depth_score(LM, [([1] * 10, 10, "c")], one=True)
    with pytest.raises(
        UserError, match="future effects need more than 12 tokens, the longest has 11"
    ):
        effects.draw_boundaries([[1] * 11])


def test_the_depth_score_of_a_real_model_is_that_of_plain_numpy(tmp_path):
    if not STORIES.is_dir():
        pytest.skip("the model is not on this machine")
    from loopjax.interop.import_hf import import_hf

    import_hf(str(STORIES), tmp_path / "run")
    lm = open_model(tmp_path / "run")
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    prompt = lm.tokenizer.encode(text)
    found = depth_score.depth_score(lm, [(prompt, 12, "story")])
    cuts = depth_score.draw_boundaries([(prompt, 12, "story")], one=False)
    _, output = Plain(lm).propagated([prompt], cuts)
    np.testing.assert_allclose(found.effect, output[0], atol=1e-3)
    alone = effects.local(lm, [prompt], cuts)
    np.testing.assert_allclose(alone.matrix, Plain(lm).local([prompt], cuts), atol=1e-3)


def test_blocks_just_copied_are_equal_and_others_are_not():
    lm = language_model("8")
    grown = surgery.grow(lm.params, lidas(8, 4))
    grown = dataclasses.replace(lm, params=grown, plan=DepthPlan.parse("12"))
    found = similarity.block_similarity(grown, 4)  # 0 1 2 3 | 4 5 2 3 | 4 5 6 7
    ffn = {k: np.asarray(grown.params["layers"][k], np.float64) for k in similarity.FEED_FORWARD}
    flat = np.concatenate([w.reshape(3, 4, -1) for w in ffn.values()], axis=-1).reshape(3, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(found.matrix, flat @ flat.T, atol=1e-6)
    pairs = similarity.block_similarity(grown, 2).matrix  # 01 23 | 45 23 | 45 67
    assert pairs[1, 3] == pytest.approx(1) and pairs[2, 4] == pytest.approx(1)
    assert abs(pairs[0, 1]) < 0.1
    with pytest.raises(UserError, match="--block 5 does not divide the 12 unique layers"):
        similarity.block_similarity(grown, 5)


def test_batches_fit_and_chunks_cover():
    parts = LM.batch_parts

    def rows(n_bytes=1, most=10**6, cost=lambda rows: -rows, lm=LM, T=32):
        return batching.rows_at_once(lm, T, n_bytes, most, cost)

    assert rows() == 2048 // 32 * parts and rows(cost=lambda rows: rows) == 512 // 32 * parts
    assert rows(T=1024) == 5 * parts and rows(lm=one_device(), T=4096) == 5
    assert rows(2**40) == parts and rows(2**40, lm=one_device()) == 2
    assert rows(batching.HOST_BYTES // 5) == 5 * parts  # what fits is never rounded up
    assert rows(most=5 * parts + 1) == 6 * parts
    assert rows(cost=lambda rows: abs(rows - 19 * parts)) == 19 * parts
    for n, size in ((1, 4), (5, 4), (16, 16), (17, 16)):
        chosen = np.concatenate(list(batching.chunks(n, size)))
        assert sorted(set(chosen.tolist())) == list(range(n)) and len(chosen) % size == 0


def one_device():
    return language_model("1-2x2-1", "", jax.devices()[:1])


@pytest.mark.slow
def test_one_program_measures_a_prompt_and_all_of_its_length():
    compiled = []

    def listen(event, seconds, **about):
        if event.endswith("backend_compile_duration") and "_ablated" in about["fun_name"]:
            compiled.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for lm in (language_model("1-2x2-2", "fsdp=2,tensor=2"), language_model("1-2x2-2", "")):
            for run in (effects.propagated, effects.local):
                run(lm, [[5] * 40, [*range(33)]], [[8, 16, 24, 32], [8, 16, 24, 28]])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == ["jit(_ablated)", "jit(_ablated_for_one)"] * 2


@pytest.mark.slow
def test_small_batches_give_what_large_ones_do(monkeypatch):
    lm, expected = one_device(), {}
    for rows in (50, 2, 3):
        monkeypatch.setattr(effects, "rows_at_once", lambda *args, rows=rows: rows)
        for run in (effects.propagated, effects.local):
            found = run(lm, PROMPTS[:1], CUTS[:1]).matrix
            np.testing.assert_allclose(found, expected.setdefault(run, found), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("T", "vocab_size"), [(64, 2048), (512, 512)])
def test_the_memory_of_a_row_is_about_what_xla_reports(T, vocab_size):
    cfg = dataclasses.replace(LM.cfg, d_model=128, d_ff=384, vocab_size=vocab_size)
    plan, S = DepthPlan.parse("1x2"), jax.ShapeDtypeStruct
    init = functools.partial(model.init_params, cfg, 1, jax.random.key(0))
    params = meta.unbox(jax.eval_shape(init))
    clean = {"residual": S((3, 1, T, 128), "float32"), "embedded": S((1, T, 128), "float32")}

    def n_bytes(B):
        batch = {name: S((B,), "int32") for name in ("source", "until", "since")}
        program = effects._program(cfg, plan)
        layer = effects.SUBLAYERS["layer"]
        lowered = program.lower(params, clean, 0, batch, T, sublayers=layer)
        # Buffers are assigned after optimization, which the other tests switch off.
        options = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
        return lowered.compile(options).memory_analysis().temp_size_in_bytes

    reported = (n_bytes(24) - n_bytes(16)) / 8
    assert 0.8 < effects.bytes_of_row(cfg, T) / reported < 1.6


def test_results_come_back_as_they_were_and_only_for_what_they_are_about(tmp_path, monkeypatch):
    found, about = norms.norms(LM, PROMPTS[:1]), {"plan": "1-2x2-1", "seeds": (1, 2)}
    monkeypatch.setattr(store, "SHORT", 6)
    store.save(tmp_path, "norms", about, found, 0.1, "norms")
    again = store.load(tmp_path, "norms", "norms", norms.Norms, about)
    assert {k: v.tolist() for k, v in found.largest.items()} == again.largest
    for field in dataclasses.fields(found):
        if field.name != "largest":
            value = getattr(again, field.name)
            np.testing.assert_array_equal(value, getattr(found, field.name))
    assert store.load(tmp_path, "norms", "norms", norms.Norms, {"plan": "6"}) is None
    assert store.load(tmp_path, "norms", "future", effects.Effects, about) is None
    arrays = (tmp_path / "norms.npz").read_bytes()
    store.save(tmp_path, "norms", {"plan": "6"}, found, 0.1, "norms")
    (tmp_path / "norms.npz").write_bytes(arrays)  # as a process leaves it that is killed in between
    assert store.load(tmp_path, "norms", "norms", norms.Norms, {"plan": "6"}) is None
    for damaged in (b"damaged", arrays[:-9]):
        (tmp_path / "norms.npz").write_bytes(damaged)
        assert store.load(tmp_path, "norms", "norms", norms.Norms, {"plan": "6"}) is None


@pytest.mark.slow
def test_every_result_has_a_picture(tmp_path):
    pictures = [
        diagnostics.plot_norms(
            {"a": norms.norms(LM, PROMPTS[:1]), "b": norms.norms(LM, PROMPTS[1:])}
        ),
        diagnostics.plot_effects({"a": effects.local(LM, PROMPTS[:1], CUTS[:1])}, title="local"),
        diagnostics.plot_depth_score({"a": depth_score.depth_score(LM, CASES[:1])}),
        diagnostics.plot_similarity({"a": similarity.block_similarity(LM, 1)}),
    ]
    for number, fig in enumerate(pictures):
        figure.save(fig, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes()[:4] == b"\x89PNG"
