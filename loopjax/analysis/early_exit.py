"""What a model would say at every depth, read by a lens: vocabulary, divergence, task accuracy.

Exit i reads the residual that *enters* executed layer i (Kapl et al. 2025, Figures 1, 8, 14, 15;
Kapl et al. 2026, Figure 2). The whole model is what exit E would be.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.analysis import lens as lens_lib
from loopjax.analysis.lens import Lens
from loopjax.errors import UserError
from loopjax.evals import suite
from loopjax.evals.evaluate import run_task
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm import score
from loopjax.lm.batching import bucket, default_batch_tokens
from loopjax.lm.loaded_model import LanguageModel

TOP = 5  # tokens whose overlap is measured
TASKS = ("lambada_openai", "var_assign_math_0")
SCORED = ("loglikelihood", "multiple_choice")  # kinds of tasks whose answers are given


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far each exit agrees with the model; means over the tokens of a prompt, then over prompts.

    Attributes:
      overlap: share of the 5 likeliest tokens that are among the model's 5, 0..1, [E].
      kl_early_final: KL(p_i || p_final), nats, [E].
      kl_final_early: KL(p_final || p_i), which the lens was trained on, nats, [E].
      n_prompts, n_tokens: what they are means of.
    """

    overlap: np.ndarray
    kl_early_final: np.ndarray
    kl_final_early: np.ndarray
    n_prompts: int
    n_tokens: int


@dataclasses.dataclass(frozen=True)
class ExitAccuracy:
    """Accuracy of the tasks when every logit is that of an exit; chance is not corrected for.

    Attributes:
      tasks: names of the K tasks.
      accuracy: share of right answers, 0..1, [K, E].
      unmodified: of the whole model in the same evaluation, [K].
      relative: accuracy over unmodified, [K, E]; NaN where the model has nothing right.
      n_items: items of each task, int [K].
    """

    tasks: tuple[str, ...]
    accuracy: np.ndarray
    unmodified: np.ndarray
    relative: np.ndarray
    n_items: np.ndarray


def agreement(
    lm: LanguageModel,
    lens: Lens,
    prompts: Sequence[Sequence[int]],
    each=map,
    batch_tokens: int | None = None,
) -> Agreement:
    """Top-5 overlap and KL of every exit with the model, at all positions of prompts of token ids.

    Args:
      lens: `lens.load`, or `lens.logit_lens` for untranslated residuals.
      each: `results.Parts.each`, to keep what is done; its parts are batches.
      batch_tokens: tokens per batch, over all devices; by default what suits the platform.

    Raises UserError for a prompt that is longer than the context.
    """
    if not prompts or not all(map(len, prompts)):
        raise ValueError("there is no prompt, or one of them is empty")
    longest = max(map(len, prompts))
    if longest > lm.context:
        raise UserError(f"a prompt of {longest} tokens is longer than the context of {lm.context}")

    def of_batch(tokens_BT):
        compare = _comparison(lm.cfg, lm.plan, lens_lib.positions_at_once(lm, *tokens_BT.shape))
        found_EB3 = jax.device_get(compare(lm.params, lens, lm.put(tokens_BT)))
        return {"sums": found_EB3.sum(axis=1, dtype=np.float64)}  # rows of padding are 0

    sums_E3 = np.zeros((lm.plan.n_effective, 3))
    batches = _batches(prompts, lm, batch_tokens or default_batch_tokens(lm))
    with lm.on_mesh():
        for found in each(of_batch, batches):
            sums_E3 += found["sums"]
    return Agreement(*sums_E3.T / len(prompts), len(prompts), sum(map(len, prompts)))


def _batches(prompts, lm: LanguageModel, batch_tokens: int):
    """The prompts as int32 [B, T], the longest first, -1 for padding; few shapes."""

    def length(prompt):
        return bucket(len(prompt))

    for T, alike in itertools.groupby(sorted(prompts, key=length, reverse=True), length):
        size = lm.batch_parts * max(1, batch_tokens // T // lm.batch_parts)
        while batch := list(itertools.islice(alike, size)):
            B = lm.batch_parts * bucket(-(-len(batch) // lm.batch_parts), least=1)
            tokens_BT = np.full((B, T), -1, np.int32)
            for row_T, prompt in zip(tokens_BT, batch, strict=False):
                row_T[: len(prompt)] = prompt
            yield tokens_BT


@functools.lru_cache(maxsize=16)
def _comparison(cfg, plan, chunk: int):
    return jax.jit(functools.partial(compare, cfg=cfg, plan=plan, chunk=chunk))


def compare(params, lens: Lens, tokens_BT, *, cfg, plan, chunk: int):
    """Means over the tokens of each row of (overlap, KL(p_i || p_final), KL(p_final || p_i)), [E, B, 3].

    The arguments are those of `lens.add_exits`.
    """

    def of_exit(translator, h_BnD, final_BnV, mask_Bn):
        early_BnV = lens_lib.exit_logprobs(translator, params, h_BnD, cfg)
        found_Bn3 = jnp.stack(agreements(early_BnV, final_BnV), axis=-1)
        return jnp.sum(jnp.where(mask_Bn[..., None], found_Bn3, 0.0), axis=1)

    zero_EB3 = jnp.zeros((plan.n_effective, tokens_BT.shape[0], 3))
    sums_EB3 = lens_lib.add_exits(of_exit, zero_EB3, params, lens, tokens_BT, cfg, plan, chunk)
    return sums_EB3 / jnp.maximum(jnp.sum(tokens_BT >= 0, axis=1), 1)[:, None]


def agreements(early_BTV, final_BTV):
    """(overlap, KL(early || final), KL(final || early)) of log-probabilities; [B, T] each."""
    (_, early_BTk), (_, final_BTk) = (jax.lax.top_k(p, TOP) for p in (early_BTV, final_BTV))
    shared_BT = jnp.sum(early_BTk[..., :, None] == final_BTk[..., None, :], axis=(-2, -1))
    overlap_BT = shared_BT / TOP
    return overlap_BT, lens_lib.kl(early_BTV, final_BTV), lens_lib.kl(final_BTV, early_BTV)


class ExitLM(LoopjaxLM):
    """The harness's model that is scored at all exits at once; it answers as the whole model.

    `answers` keeps, for each (context, continuation) that was asked, the (log-probability, whether
    it is what greedy decoding gives) of every exit and, last, of the model.
    """

    def __init__(self, lm: LanguageModel, lens: Lens, batch_tokens: int | None = None):
        super().__init__(lm, batch_tokens=batch_tokens)
        self.lens, self.answers = lens, {}

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs):
        scores = score.log_likelihoods(
            self.lm,
            [(context, continuation) for _, context, continuation in requests],
            batch_tokens=self.batch_tokens,
            progress=f"scoring the exits of {self.lm.plan}" if self.shown else "",
            exits=self.lens,
        )
        self.truncated += scores.truncated
        found = zip(scores.logprobs.T.tolist(), scores.greedy.T.tolist(), strict=True)
        for (text, _, _), (logprobs, greedy) in zip(requests, found, strict=True):
            self.answers[text] = list(zip(logprobs, greedy, strict=True))
        return [self.answers[text][-1] for text, _, _ in requests]


def accuracy(
    lm: LanguageModel,
    lens: Lens,
    tasks: Sequence[str] = TASKS,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    data_dir=None,
    batch_tokens: int | None = None,
    say=print,
    each=map,
) -> ExitAccuracy:
    """Accuracy of tasks at every exit; one forward pass gives those of all exits.

    Args:
      tasks: names of tasks and groups whose answers are scored, not decoded.
      num_fewshot, limit, data_dir, batch_tokens: as for `evaluate.evaluate`.
      say: told of each task when it is finished.
      each: `results.Parts.each`, to keep the tasks that are done.

    Raises UserError for a task that is decoded, or has no accuracy.
    """
    loaded = suite.load(tasks, data_dir, num_fewshot)["tasks"]
    for name, task in loaded.items():
        if task.OUTPUT_TYPE not in SCORED or "acc" not in task.aggregation():
            raise UserError(f"task {name} has no accuracy (acc) of answers that are scored")
    harness = ExitLM(lm, lens, batch_tokens)

    def of_task(named):
        harness.answers.clear()
        n_items, items = run_task(harness, *named, limit)["n_samples"], _items(named[1])
        exits = range(lm.plan.n_effective + 1)
        found = [_accuracy(named[1], items, harness.answers, i) for i in exits]
        say(f"{named[0]}  " + "  ".join(f"{value:.4f}" for value in found))
        return {"accuracy": np.array(found), "n_items": np.array(n_items)}

    found = list(each(of_task, loaded.items()))
    accuracy_KX, n_items_K = (np.stack([f[k] for f in found]) for k in ("accuracy", "n_items"))
    accuracy_KE, unmodified_K = accuracy_KX[:, :-1], accuracy_KX[:, -1]
    of = np.where(unmodified_K > 0, unmodified_K, np.nan)[:, None]
    return ExitAccuracy(tuple(loaded), accuracy_KE, unmodified_K, accuracy_KE / of, n_items_K)


def _items(task) -> list[list]:
    """The requests that the harness made of each document, in order."""
    items: dict = {}
    for request in sorted(task.instances, key=lambda request: request.idx):
        items.setdefault(request.doc_id, []).append(request)
    return list(items.values())


def _accuracy(task, items, answers, i: int) -> float:
    """What the harness makes of the answers of exit i."""
    hits = [
        task.process_results(item[0].doc, [answers[request.args][i] for request in item])["acc"]
        for item in items
    ]
    return float(task.aggregation()["acc"](hits))
