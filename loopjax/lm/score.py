"""Log-likelihoods of continuations: few shapes, little padding, no context computed twice.

Requests with the same context become one row. Its tokens are the context followed by the
continuations as *branches*: each attends to the context and itself, at the positions it would have
alone. So ten options for one prompt cost about one forward pass, and a continuation of one token,
which is read at the end of the context, has no extra cost.

    tokens      c0 c1 c2 | a0 a1 | b0        continuations a0 a1 a2 and b0 b1
    positions    0  1  2 |  3  4 |  3
    branch       0  0  0 |  1  1 |  2        a token attends to branch 0 and its own, up to itself
    read at            c2  a0 a1               a0, a1, a2
                       c2  b0                  b0, b1

Rows are sorted by length and padded to one of few lengths; all batches have about the same number
of tokens.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import block, model
from loopjax import exits as exits_lib
from loopjax.errors import UserError
from loopjax.lm.batching import bucket, default_batch_tokens
from loopjax.lm.loaded_model import LanguageModel
from loopjax.progress import Progress

READ_CHUNK = 64  # positions per row whose logits are in memory at a time


@dataclasses.dataclass
class Row:
    """One sequence of a batch.

    Attributes:
      tokens: token ids.
      positions: position of each token.
      branches: branch of each token; 0 is the context.
      reads: (slot, target token, request) for each token of each continuation.
    """

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    reads: list[tuple[int, int, int]]

    @property
    def branched(self) -> bool:
        return self.branches[-1] > 0


@dataclasses.dataclass
class Scores:
    """Scores of all requests.

    Attributes:
      logprobs: sum of the log-probabilities of each continuation, [requests]; with exits
        [E + 1, requests], the last row for the model itself.
      greedy: whether greedy decoding generates the continuation, of the same shape.
      cut: whether a request was cut to the context, [requests].
      rows: number of sequences computed.
      tokens: number of tokens computed.
      repeats: with early exits, repetitions of the loop of all tokens together; else 0.
    """

    logprobs: np.ndarray
    greedy: np.ndarray
    cut: np.ndarray
    rows: int
    tokens: int
    repeats: int = 0

    @property
    def truncated(self) -> int:
        """Number of requests cut to the context."""
        return int(self.cut.sum())


def log_likelihoods(
    lm: LanguageModel,
    requests: Sequence[tuple[list[int], list[int]]],
    *,
    batch_tokens: int | None = None,
    progress: str = "",
    exits=None,
) -> Scores:
    """log p(continuation | context) of (context, continuation) pairs of token ids.

    A request longer than the model's context is cut on the left, as in lm-evaluation-harness;
    `cut` marks such requests. Both must have at least one token.

    Args:
      batch_tokens: tokens per batch, over all devices (default: chosen by platform).
      progress: label of the progress bar; empty for none.
      exits: an `analysis.lens.Lens`, to score at all its exits at once.
    """
    rows, cut = make_rows(requests, lm.context)
    shape = (len(requests),) if exits is None else (lm.plan.n_effective + 1, len(requests))
    logprobs, greedy, repeats = np.zeros(shape), np.ones(shape, bool), 0
    with lm.on_mesh(), Progress(len(requests), progress) as shown:
        score = _scorer(lm.cfg, lm.plan, lm.exit if exits is None else None)
        for batch, branched in _batches(rows, lm, batch_tokens or default_batch_tokens(lm)):
            arrays = _arrays(batch, lm)
            scored, best, counted = jax.device_get(
                score(lm.params, lm.put(arrays), exits, branched=branched)
            )
            repeats += int(counted)
            for r, row in enumerate(batch):
                for n, (_, _, request) in enumerate(row.reads):
                    logprobs[..., request] += scored[..., r, n]
                    greedy[..., request] &= best[..., r, n]
            shown.update(len({request for row in batch for *_, request in row.reads}))
    n_tokens = sum(len(row.tokens) for row in rows)
    return Scores(logprobs, greedy, cut, len(rows), n_tokens, repeats)


def make_rows(requests, context: int) -> tuple[list[Row], np.ndarray]:
    """(rows, whether each request is cut); requests with the same context share rows."""
    options: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    cut = np.zeros(len(requests), bool)
    for number, (before, after) in enumerate(requests):
        if not before or not after:
            empty = "continuation" if before else "context"
            raise UserError(f"request {number} has an empty {empty}; it needs at least one token")
        if len(after) > context:
            raise UserError(
                f"a continuation of {len(after)} tokens is longer than the context of {context}"
            )
        cut[number] = len(before) + len(after) > context + 1
        before = before[max(0, len(before) + len(after) - context - 1) :]
        options.setdefault(tuple(before), {}).setdefault(tuple(after), []).append(number)
    rows = [row for before, after in options.items() for row in _rows_of(before, after, context)]
    return rows, cut


def _rows_of(context: tuple, options: dict, limit: int):
    """Rows of a context and its continuations, of at most about twice the model's context."""
    row = None
    for continuation, numbers in options.items():
        inputs = continuation[:-1]
        if row is None or len(row.tokens) + len(inputs) > 2 * limit:
            if row:
                yield row
            n = len(context)
            row = Row(list(context), list(range(n)), [0] * n, [])
        slots = [len(context) - 1, *range(len(row.tokens), len(row.tokens) + len(inputs))]
        for slot, token in zip(slots, continuation, strict=True):
            row.reads += [(slot, token, number) for number in numbers]
        if inputs:
            row.tokens += inputs
            row.positions += range(len(context), len(context) + len(inputs))
            row.branches += [row.branches[-1] + 1] * len(inputs)
    yield _unbranched(row)


def _unbranched(row: Row) -> Row:
    """A single branch is a plain sequence, which needs no mask."""
    if row.branches[-1] == 1:
        row.branches = [0] * len(row.tokens)
    return row


def _batches(rows: list[Row], lm: LanguageModel, batch_tokens: int):
    """(batch, whether its rows are branched), by padded length, longest first."""

    def shape(row):
        return bucket(len(row.tokens)), row.branched

    for (length, branched), alike in itertools.groupby(
        sorted(rows, key=shape, reverse=True), shape
    ):
        size = lm.batch_parts * max(1, batch_tokens // length // lm.batch_parts)
        while batch := list(itertools.islice(alike, size)):
            yield batch, branched


def _arrays(batch: list[Row], lm: LanguageModel) -> dict:
    """int32 arrays [B, T] and [B, N], padded so that few shapes are compiled."""
    parts = lm.batch_parts
    B = parts * bucket(-(-len(batch) // parts), least=1)
    T = bucket(max(len(row.tokens) for row in batch))
    N = bucket(max(len(row.reads) for row in batch), least=1)
    names = ("tokens", "positions", "branches")
    out = {name: np.zeros((B, T), np.int32) for name in names}
    # Padding is a branch of its own: no token attends to it.
    out["branches"][:] = -1
    out |= {name: np.zeros((B, N), np.int32) for name in ("slots", "targets")}
    for r, row in enumerate(batch):
        for name in names:
            out[name][r, : len(row.tokens)] = getattr(row, name)
        out["slots"][r, : len(row.reads)] = [slot for slot, _, _ in row.reads]
        out["targets"][r, : len(row.reads)] = [target for _, target, _ in row.reads]
    return out


@functools.lru_cache(maxsize=16)
def _scorer(cfg, plan, rule):
    score = functools.partial(_score, cfg=cfg, plan=plan, rule=rule)
    return jax.jit(score, static_argnames="branched")


def _score(params, batch, exits, *, cfg, plan, rule, branched: bool):
    """Log-probability of each target, and whether it is the most likely token; both [B, N].

    With exits both are [E + 1, B, N]. Also the repetitions of all tokens together, with a rule of
    early exits; else 0.
    """
    placement = _placement(batch) if branched else None
    targets_BN = batch["targets"]
    if exits is None:
        x_BTD, repeats = _residual(params, batch, cfg, plan, rule, placement)
        x_BND = jnp.take_along_axis(x_BTD, batch["slots"][..., None], axis=1)
        return *_read(params, x_BND, targets_BN, cfg), repeats
    at = (params, batch["tokens"], batch["slots"], cfg, plan, placement)
    read = jax.lax.map(lambda x_BND: _read(params, x_BND, targets_BN, cfg), exits.residuals(*at))
    return *read, 0


def _residual(params, batch, cfg, plan, rule, placement):
    """The residual stream [B, T, D], and the repetitions of all tokens (0 without a rule)."""
    if rule is None:
        return model.residual(params, batch["tokens"], cfg, plan, placement), 0
    there_BT = batch["branches"] >= 0
    args = params, batch["tokens"], cfg, plan, rule, placement, there_BT
    x_BTD, count_BT = exits_lib.residual(*args)
    return x_BTD, jnp.sum(count_BT)


def _read(params, x_BND, targets_BN, cfg):
    """Log-probability of each target given the residual it is read from, and whether it is the argmax."""

    def read(args):
        x_BnD, target_Bn = args
        logits_BnV = model.unembed(params, x_BnD, cfg)
        logprobs_BnV = jax.nn.log_softmax(logits_BnV)
        logprob_Bn = jnp.take_along_axis(logprobs_BnV, target_Bn[..., None], axis=-1)[..., 0]
        return logprob_Bn, jnp.argmax(logits_BnV, axis=-1) == target_Bn

    # Logits are [..., V]: compute those of few positions per row at a time.
    B, N = targets_BN.shape
    chunk = next(c for c in range(min(N, READ_CHUNK), 0, -1) if N % c == 0)
    chunks = tuple(
        x.reshape(B, N // chunk, chunk, *x.shape[2:]).swapaxes(0, 1) for x in (x_BND, targets_BN)
    )
    return tuple(x.swapaxes(0, 1).reshape(B, N) for x in jax.lax.map(read, chunks))


def _placement(batch) -> block.Placement:
    return block.Placement(batch["positions"], batch["branches"], shared_context=True)
