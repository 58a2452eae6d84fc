"""The lens against plain computations: its loss, its training, and what exits say and score."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from loopjax import model, surgery
from loopjax.analysis import early_exit, exit_accuracy, lens, lens_training
from loopjax.analysis.activations import activations
from loopjax.checkpoint import checksums
from loopjax.data.hops import PHop
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.evals import evaluate, suite
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm import score
from loopjax.plots import accuracy, diagnostics
from loopjax.plots.figure import png
from tests.test_score import language_model, random_requests

T = 24
TRAINING = lens.Training(steps=6, tokens=10 * T)
MIXTURE = {"p_hop_2": 0.75, "p_hop_3": 0.25}


def tiny(depth="1-1x2-1", mesh="fsdp=2,tensor=2", devices=None, **params):
    """A random model with the meta of a checkpoint, to be trained on p-hop sequences."""
    lm = language_model(depth, mesh, devices, context=64)
    lm = dataclasses.replace(lm, params={**lm.params, **params}, _cut=[])
    config = {"seed": 0, "seq_len": T, "data_dir": ""}
    sums = checksums({"params": lm.params})
    meta = {"checksums": sums, "plan": depth, "config": config, "phases": [{"mixture": MIXTURE}]}
    return dataclasses.replace(lm, meta=meta, tokenizer=None)


LM, ONE = tiny(), tiny(mesh="", devices=jax.devices()[:1])
E, D = LM.plan.n_effective, LM.cfg.d_model
STEP = jax.jit(lens.loss_and_gradient, static_argnames=("cfg", "plan", "parts", "chunk"))
PROMPTS = [list(range(3, 24)), [7, 1, 200] * 10, [9] * 18, [5]]


def some_lens(lm, seed=0):
    """A lens that is neither trained nor zero."""
    keys = jax.random.split(jax.random.key(seed))
    weight, bias = jax.random.normal(keys[0], (E, D, D)), jax.random.normal(keys[1], (E, D))
    return lens.placed(lens.Lens(0.3 * weight / D**0.5, 0.3 * bias), lm)


def cut_short(lm, i):
    """The model that ends before executed layer i > 0."""
    params = surgery.reorder(jax.device_get(lm.params), lm.plan.order[:i])
    return dataclasses.replace(lm, params=params, plan=DepthPlan.of([(i, 1)]), _cut=[])


def plain_loss(translators, params, tokens_BT, cfg, plan):
    """KL(p_final || p_i) [E] over the tokens that are none of padding (-1), all logits at once."""
    h_XBTD = activations(params, jnp.maximum(tokens_BT, 0), cfg, plan).residual
    weight_EDD, bias_ED = translators
    moved = jnp.einsum("ebtd,edf->ebtf", h_XBTD[:-1], weight_EDD) + bias_ED[:, None, None]
    early = jnp.stack([model.unembed(params, h, cfg) for h in h_XBTD[:-1] + moved])
    p = jax.nn.softmax(model.unembed(params, h_XBTD[-1], cfg))
    kl_EBT = jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(early)), axis=-1)
    return jnp.where(tokens_BT >= 0, kl_EBT, 0.0).sum((1, 2)) / jnp.sum(tokens_BT >= 0)


@pytest.mark.parametrize("lm", [ONE, LM], ids=["one device", "a mesh"])
def test_loss_and_gradient_are_those_of_the_plain_computation(lm):
    tokens = np.random.default_rng(0).integers(0, 264, (16, 13))
    tokens[3, 7:] = tokens[5] = tokens[11] = -1
    some = some_lens(ONE)

    def total(translators, params):
        losses_E = plain_loss(translators, params, tokens, lm.cfg, lm.plan)
        return losses_E.sum(), losses_E

    gradient = jax.jit(jax.grad(total, has_aux=True))
    plain = gradient((some.weight, some.bias), jax.device_get(lm.params))
    with lm.on_mesh():
        args = (lm.params, lens.placed(some, lm), lm.put(tokens))
        losses_E, grads = STEP(*args, cfg=lm.cfg, plan=lm.plan, parts=4, chunk=5)
    np.testing.assert_allclose(losses_E, plain[1], rtol=1e-5)
    np.testing.assert_allclose(grads.weight, plain[0][0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(grads.bias, plain[0][1], rtol=1e-4, atol=1e-7)
    # Two passes of one layer have translators, and gradients, of their own.
    assert np.abs(grads.weight[1] - grads.weight[2]).max() > 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_updates_are_those_of_the_formula(optimizer):
    made = lens.Training(optimizer, steps=4).make_optimizer()
    x = np.array([0.5, -1.0])
    params, momentum, second, most = jnp.array(x), np.zeros(2), np.zeros(2), np.zeros(2)
    state = made.init(params)
    for t, gradient in enumerate(np.array([[3.0, 4.0], [0.3, -0.2], [-6.0, 1.0], [0.1, 0.1]])):
        updates, state = made.update(jnp.array(gradient), state, params)
        params = optax.apply_updates(params, updates)
        g = gradient / max(1.0, np.linalg.norm(gradient)) + 1e-3 * x
        if optimizer == "sgd":
            momentum = 0.9 * momentum + g
            x = x - 0.1 * (1 - t / 4) * (g + 0.9 * momentum)
        else:
            momentum, second = 0.9 * momentum + 0.1 * g, 0.999 * second + 0.001 * g * g
            most = np.maximum(most, second)
            scale = np.sqrt(most / (1 - 0.999 ** (t + 1))) + 1e-8
            x = x - 1e-3 * (1 - t / 4) * momentum / (1 - 0.9 ** (t + 1)) / scale
        np.testing.assert_allclose(params, x, rtol=1e-5)


def test_adam_of_the_lens_is_that_of_pytorch_with_amsgrad():
    """torch.optim.Adam(amsgrad=True, lr=1e-3) gives -0.0059064, optax.amsgrad -0.0033277."""
    gradients = [1.0, *[0.1] * 9]
    x = first = second = most = 0.0
    for t, g in enumerate(gradients, 1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        most = max(most, second)
        x -= 1e-3 * first / (1 - 0.9**t) / ((most / (1 - 0.999**t)) ** 0.5 + 1e-8)
    assert x == pytest.approx(-0.0059064, abs=5e-8)
    made = optax.chain(lens_training.scale_by_amsgrad(), optax.scale_by_learning_rate(1e-3))
    params = jnp.zeros(())
    state = made.init(params)
    for g in gradients:
        updates, state = made.update(jnp.array(g), state, params)
        params = optax.apply_updates(params, updates)
    assert float(params) == pytest.approx(x, rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(file of a training that nothing interrupted, its lens)."""
    path = tmp_path_factory.mktemp("lens") / "made" / "lens.npz"
    return path, lens.train(path, LM, TRAINING, progress="")


def same(a, b):
    return all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b)))  # noqa: B905


def test_training_brings_every_exit_nearer_to_the_model_on_other_tokens(trained):
    prompts = [PHop(2, "train", T, 5)[i]["inputs"].tolist() for i in range(8)]
    before = early_exit.agreement(LM, lens.logit_lens(LM), prompts)
    after = early_exit.agreement(LM, trained[1], prompts)
    assert (after.kl_final_early < before.kl_final_early).all()
    losses = np.load(trained[0])["losses"]
    assert losses.shape == (6, E) and (losses[-1] < losses[0]).all()


def test_batches_hold_the_sources_in_their_proportion_and_never_repeat_within_an_epoch():
    data = lens._Windows(ONE, TRAINING, None, None)
    rows = [tuple(row) for step in range(4) for row in data.batch(step, 16)[:10]]
    assert len(set(rows)) == 40 and data.cut(ONE, 4 * T) == (3, 4)
    assert (data.batch(0, 16)[10:] == -1).all()
    assert rows[:10] == [tuple(row) for row in data.batch(0, 10)]
    other = lens._Windows(ONE, dataclasses.replace(TRAINING, seed=1), None, None)
    assert rows[:10] != [tuple(row) for row in other.batch(0, 10)]
    assert not np.array_equal(data.batch(0, 10), data.batch(1, 10))


def test_a_killed_training_ends_in_the_same_lens(trained, tmp_path, monkeypatch):
    path, batch, asked = tmp_path / "lens.npz", lens._Windows.batch, []

    def killed(self, step, rows):
        asked.append(step)
        if asked.count(step) == 1 and step in (3, 5):
            raise KeyboardInterrupt
        return batch(self, step, rows)

    monkeypatch.setattr(lens._Windows, "batch", killed)
    for step in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            lens.train(path, LM, TRAINING, checkpoint_every=2, progress="")
        with pytest.raises(UserError) as told:
            lens.load(path, LM)
        assert str(told.value) == f"lens {path} is unfinished, at step {step} of 6"
    resumed = lens.train(path, LM, TRAINING, checkpoint_every=2, progress="")
    assert asked == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5]
    assert same(resumed, trained[1]) and same(lens.load(path, LM), trained[1])
    assert np.array_equal(np.load(path)["losses"], np.load(trained[0])["losses"])


def test_a_finished_lens_is_reused(trained, monkeypatch):
    monkeypatch.setattr(lens, "_updater", None)
    assert same(lens.train(trained[0], LM, TRAINING, progress=""), trained[1])
    assert same(lens.load(trained[0], LM), trained[1])


def test_eight_devices_train_the_lens_that_one_trains(trained, tmp_path):
    alone = lens.train(tmp_path / "lens.npz", ONE, TRAINING, batch_tokens=4 * T, progress="")
    np.testing.assert_allclose(alone.weight, trained[1].weight, atol=1e-5)
    np.testing.assert_allclose(alone.bias, trained[1].bias, atol=1e-5)
    assert tuple(trained[1].weight.sharding.spec) == (None, "fsdp", None)


def silent(lm):
    """The model whose layers write nothing into the residual stream."""
    nothing = {name: jnp.zeros_like(lm.params["layers"][name]) for name in ("output", "down")}
    return dataclasses.replace(lm, params={**lm.params, "layers": lm.params["layers"] | nothing})


def test_a_model_whose_layers_write_nothing_needs_no_translator():
    found = early_exit.agreement(silent(LM), lens.logit_lens(LM), PROMPTS)
    assert np.array_equal(found.overlap, np.ones(E))
    assert np.abs([found.kl_early_final, found.kl_final_early]).max() < 1e-6
    tokens = LM.put(np.arange(16 * 13).reshape(16, 13))
    with LM.on_mesh():
        args = (silent(LM).params, lens.logit_lens(LM), tokens)
        _, grads = STEP(*args, cfg=LM.cfg, plan=LM.plan, parts=4, chunk=5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) < 1e-6


def cut_short_logits(lm, prompt):
    """Logits [E + 1, T, V] of the model cut short before each executed layer, and of the whole."""
    params, tokens = jax.device_get(lm.params), np.array([prompt])
    embedded = model.outside_stack(params, lm.cfg, tokens, "embedded")
    logits, forward = [model.unembed(params, embedded, lm.cfg)], jax.jit(model.forward, static_argnums=(2, 3))  # fmt: skip
    for i in range(1, E + 1):
        short = cut_short(lm, i)
        logits.append(forward(short.params, tokens, lm.cfg, short.plan))
    return np.array(logits, np.float64)[:, 0]


def plain_agreement(early, final):
    """(overlap, KL(early || final), KL(final || early)) of log-probabilities [T, V]."""
    top = [[set(np.argsort(-row, kind="stable")[:5]) for row in rows] for rows in (early, final)]
    overlap = np.mean([len(a & b) / 5 for a, b in zip(*top, strict=True)])
    pairs = ((early, final), (final, early))
    return overlap, *(np.sum(np.exp(p) * (p - q), axis=-1).mean() for p, q in pairs)


def test_the_untrained_lens_is_the_logit_lens_and_reads_the_model_cut_short():
    prompts = [PROMPTS[1], PROMPTS[1][:20]]
    found = early_exit.agreement(LM, lens.logit_lens(LM), prompts, batch_tokens=64)
    log_p = cut_short_logits(LM, prompts[0])
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    expected = np.mean(
        [[plain_agreement(p[:n], log_p[-1, :n]) for p in log_p[:-1]] for n in (30, 20)], axis=0
    )
    np.testing.assert_allclose(found.overlap, expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(found.kl_early_final, expected[:, 1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.kl_final_early, expected[:, 2], rtol=1e-4, atol=1e-7)
    assert (found.n_prompts, found.n_tokens) == (2, 50)


def test_the_model_agrees_with_itself():
    logits = jax.random.normal(jax.random.key(0), (2, 7, 264)) * 4
    log_p = jax.nn.log_softmax(logits)
    overlap, *divergences = early_exit.agreements(log_p, log_p)
    assert (np.array(overlap) == 1).all() and not np.array(divergences).any()


def test_prompts_weigh_the_same_however_long_and_whatever_stands_beside_them():
    some = some_lens(LM)
    together = early_exit.agreement(LM, some, PROMPTS)
    alone = [early_exit.agreement(LM, some, [prompt]) for prompt in PROMPTS]
    for name in ("overlap", "kl_early_final", "kl_final_early"):
        mean = np.mean([getattr(a, name) for a in alone], axis=0)
        np.testing.assert_allclose(getattr(together, name), mean, rtol=1e-5)
    elsewhere = early_exit.agreement(ONE, some_lens(ONE), PROMPTS, batch_tokens=1)
    np.testing.assert_allclose(elsewhere.kl_final_early, together.kl_final_early, rtol=1e-5)
    np.testing.assert_allclose(elsewhere.overlap, together.overlap, atol=1e-6)


def test_exits_score_what_their_translators_say_and_the_last_is_the_model():
    some = some_lens(ONE)

    @jax.jit
    def of_exits(params, tokens):
        h_ETD = activations(params, tokens[None], ONE.cfg, ONE.plan).residual[:-1, 0]
        moved = jnp.einsum("etd,edf->etf", h_ETD, some.weight) + some.bias[:, None]
        return jax.nn.log_softmax(model.unembed(params, h_ETD + moved, ONE.cfg))

    def logprobs_after(tokens):
        """[E, V] behind each of the tokens."""
        return np.array(of_exits(ONE.params, np.pad(tokens, (0, 32 - len(tokens)))))

    requests, context = random_requests(2, seed=0, longest=20), [1, 2, 3]
    best = int(logprobs_after(context)[1, 2].argmax())  # of exit 1
    then = int(logprobs_after([*context, 7])[1, 3].argmax())
    requests += [(context, [best]), (context, [7, then])]
    found = score.log_likelihoods(LM, requests, exits=some_lens(LM))
    unmodified = score.log_likelihoods(LM, requests)
    np.testing.assert_allclose(found.logprobs[-1], unmodified.logprobs, rtol=1e-6)
    assert (found.greedy[-1] == unmodified.greedy).all()
    assert found.greedy[1, -2:].tolist() == [True, False] and best != 7
    for number, (context, after) in enumerate(requests):
        logprobs = logprobs_after(context + after)
        at = np.arange(len(context) - 1, len(context + after) - 1)
        expected = logprobs[:, at, after].sum(axis=1)
        np.testing.assert_allclose(found.logprobs[:-1, number], expected, rtol=1e-4)
        greedy = (logprobs[:, at].argmax(-1) == np.array(after)).all(axis=1)
        assert (found.greedy[:-1, number] == greedy).all()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A directory with a few items of LAMBADA and of a task that is decoded."""
    place = tmp_path_factory.mktemp("texts")
    lines = [{"text": f"The {word} was lost until she found the {word}"} for word in ("cat", "x")]
    (place / "lambada_openai.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (place / "nq_open_f1.jsonl").write_text('{"question": "why", "answer": ["so"]}')
    return place


@pytest.fixture(scope="module")
def reader():
    """A model that reads text."""
    lm = language_model("1-1x2-1", "", jax.devices()[:1], context=300)
    return dataclasses.replace(lm, meta=ONE.meta)


@pytest.mark.slow
def test_accuracy_at_an_exit_is_that_of_the_model_cut_short(reader, texts, monkeypatch):
    monkeypatch.setattr(LoopjaxLM, "check", lambda self: None)  # which other tests hold to its word
    tasks, kwargs = ["lambada_openai", "var_assign_math_0"], {"limit": 24, "num_fewshot": 0}
    logit, said = lens.logit_lens(reader), []
    found = exit_accuracy.accuracy(reader, logit, tasks, data_dir=texts, say=said.append, **kwargs)
    assert found.tasks == tuple(tasks) and found.n_items.tolist() == [2, 24]
    assert found.accuracy.shape == found.relative.shape == (2, E) and len(said) == 2
    harness = LoopjaxLM(cut_short(reader, 2))
    for k, (name, task) in enumerate(suite.load(tasks, texts, 0)["tasks"].items()):
        expected = evaluate.run_task(harness, name, task, 24)["metrics"]["acc,none"]
        assert found.accuracy[k, 2] == pytest.approx(expected, abs=1e-12)
    assert found.accuracy[1, 2] != found.unmodified[1] > 0 == found.unmodified[0]
    np.testing.assert_allclose(found.relative[1] * found.unmodified[1], found.accuracy[1])
    assert np.isnan(found.relative[0]).all()


def test_a_task_that_is_decoded_is_refused(reader, texts):
    with pytest.raises(UserError) as told:
        exit_accuracy.accuracy(reader, None, ["nq_open_f1"], data_dir=texts)
    assert str(told.value) == ("task nq_open_f1 has no accuracy (acc) of answers that are scored")


def test_curves_of_several_models_are_drawn():
    curve = np.linspace(0, 1, E)
    agrees = early_exit.Agreement(curve, curve, curve, 3, 40)
    short = early_exit.Agreement(curve[:2], curve[:2], curve[:2], 3, 40)
    assert png(diagnostics.plot_agreement({"a": agrees, "b": short}))[:4] == b"\x89PNG"
    rows = np.stack([curve, np.full(E, np.nan)])
    scores = early_exit.ExitAccuracy(("x", "y"), rows, np.ones(2), rows, np.array([9, 9]))
    one = early_exit.ExitAccuracy(("y",), rows[:1], np.ones(1), rows[:1], np.array([9]))
    assert png(accuracy.plot_exit_accuracy({"a": scores, "b": one}))[:4] == b"\x89PNG"


def test_a_lens_of_something_else_is_refused_in_a_sentence(trained, tmp_path):
    path, found = trained[0], []

    def told(lm, how=lens.load, *args, **kwargs):
        with pytest.raises(UserError) as error:
            how(path, lm, *args, **kwargs)
        return str(error.value)

    other = dataclasses.replace(LM, plan=DepthPlan.parse("1-1x3-1"))
    assert told(other) == f"lens {path} is for the plan 1-1x2-1, not 1-1x3-1"
    swapped = dataclasses.replace(LM, order=(0, 2, 1, 3))
    assert told(swapped) == f"lens {path} is for the layer order None, not (0, 2, 1, 3)"
    sums = {**LM.meta["checksums"], "params/embed": 1}
    weights = dataclasses.replace(LM, meta={**LM.meta, "checksums": sums})
    assert told(weights) == f"lens {path} is for other weights than those of nowhere"
    longer = dataclasses.replace(TRAINING, steps=7)
    assert told(LM, lens.train, longer) == (
        f"lens {path} was trained with steps=6, not 7; choose another file"
    )
    assert told(LM, lens.train, TRAINING, mixture={"p_hop_2": 1.0}) == (
        f"lens {path} was trained with mixture={MIXTURE}, not {{'p_hop_2': 1.0}}; choose another file"
    )
    seed = dataclasses.replace(LM, meta={**LM.meta, "config": {**LM.meta["config"], "seed": 3}})
    assert told(seed, lens.train, TRAINING) == (
        f"lens {path} was trained on other data; choose another file"
    )
    adam = lens.Training("adam", steps=1, tokens=16 * T)
    path = tmp_path / "adam.npz"
    lens.train(path, LM, adam, progress="")
    with np.load(path) as stored:
        arrays = dict(stored)
    about = json.loads(str(arrays.pop("about")))
    assert about.pop("amsgrad")  # as an earlier version wrote it
    np.savez(path, about=np.array(json.dumps(about)), **arrays)
    assert told(LM, lens.train, adam) == (
        f"lens {path} is of an earlier version, whose adam took smaller steps; choose another file"
    )
    assert lens.load(path, LM).bias.shape == (E, D)  # and it can still be read
    path = trained[0]
    whole = path.read_bytes()
    for damage in (whole[:-300], whole[:200] + b"\xff" + whole[201:], b"", b"no lens"):
        (tmp_path / "bad.npz").write_bytes(damage)
        with pytest.raises(UserError) as error:
            lens.load(tmp_path / "bad.npz", LM)
        found.append(str(error.value))
    says = f"lens {tmp_path}/bad.npz is damaged, or not a lens ("
    assert all(sentence.startswith(says) and sentence.endswith(")") for sentence in found), found
    assert "Bad CRC-32" in found[1]


def test_other_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match=r"^lens .*/none.npz does not exist$"):
        lens.load(tmp_path / "none.npz", LM)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^lens .*/file/lens.npz cannot be written: \w"):
        lens.train(tmp_path / "file" / "lens.npz", LM, TRAINING)
    with pytest.raises(UserError, match=r"^the lens's optimizer='lamb' must be sgd or adam$"):
        lens.Training("lamb")
    with pytest.raises(UserError, match=r"^the lens's steps=0 must be at least 1$"):
        lens.Training(steps=0)
    with pytest.raises(
        UserError, match=r"^a prompt of 65 tokens is longer than the context of 64$"
    ):
        early_exit.agreement(LM, lens.logit_lens(LM), [[1], [2] * 65])
    with pytest.raises(ValueError, match="there is no prompt, or a prompt is empty"):
        early_exit.agreement(LM, lens.logit_lens(LM), [[1], []])
    broken = tiny(final_norm=LM.params["final_norm"] * np.nan)
    with pytest.raises(UserError, match=r"^the lens's loss is not finite at step 1$"):
        lens.train(tmp_path / "lens.npz", broken, TRAINING, progress="")
