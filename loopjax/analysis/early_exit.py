"""Predictions of a model at every depth, read by a lens: most likely tokens, KL divergence.

Exit i reads the residual that *enters* executed layer i (Kapl et al. 2025, Figures 1, 8, 14, 15;
Kapl et al. 2026, Figure 2). Exit E would be the whole model. The accuracy of exits on tasks
is computed in `exit_accuracy.py`, which needs the evaluation harness; its result is declared here,
so that it can be read without the harness.
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
from loopjax.lm.batching import bucket, default_batch_tokens
from loopjax.lm.loaded_model import LanguageModel

TOP = 5  # tokens whose overlap is measured
TASKS = ("lambada_openai", "var_assign_math_0")  # of exit_accuracy


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement of each exit with the model; means over the tokens of a prompt, then over prompts.

    Attributes:
      overlap: share of the 5 most likely tokens that are among the model's 5, 0..1, [E].
      kl_early_final: KL(p_i || p_final), nats, [E].
      kl_final_early: KL(p_final || p_i), the loss of the lens, nats, [E].
      n_prompts, n_tokens: total numbers of prompts and tokens.
    """

    overlap: np.ndarray
    kl_early_final: np.ndarray
    kl_final_early: np.ndarray
    n_prompts: int
    n_tokens: int


@dataclasses.dataclass(frozen=True)
class ExitAccuracy:
    """Accuracy on tasks when the logits are those of an exit; not corrected for chance.

    Attributes:
      tasks: names of the K tasks.
      accuracy: share of right answers, 0..1, [K, E].
      unmodified: accuracy of the whole model in the same evaluation, [K].
      relative: accuracy over unmodified, [K, E]; NaN where the model has no right answer.
      n_items: number of items of each task, int [K].
    """

    tasks: tuple[str, ...]
    accuracy: np.ndarray
    unmodified: np.ndarray
    relative: np.ndarray
    n_items: np.ndarray


def run(lm, cases, options, each) -> Agreement:
    """`loopjax analyze --what overlap`."""
    return agreement(lm, options["lens"], [tokens for tokens, _, _ in cases], each)


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
      each: `store.Parts.each`, to resume; its parts are batches.
      batch_tokens: tokens per batch, over all devices; by default chosen for the platform.

    Raises UserError for a prompt that is longer than the context.
    """
    if not prompts or not all(map(len, prompts)):
        raise ValueError("there is no prompt, or a prompt is empty")
    longest = max(map(len, prompts))
    if longest > lm.context:
        raise UserError(f"a prompt of {longest} tokens is longer than the context of {lm.context}")

    def of_batch(tokens_BT):
        compare = _comparison(lm.cfg, lm.plan, lens_lib.positions_at_once(lm, *tokens_BT.shape))
        means_EB3 = jax.device_get(compare(lm.params, lens, lm.put(tokens_BT)))
        return {"sums": means_EB3.sum(axis=1, dtype=np.float64)}  # rows of padding are 0

    sums_E3 = np.zeros((lm.plan.n_effective, 3))
    batches = _batches(prompts, lm, batch_tokens or default_batch_tokens(lm))
    with lm.on_mesh():
        for part in each(of_batch, batches):
            sums_E3 += part["sums"]
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
