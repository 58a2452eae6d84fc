"""Decoding with a KV cache: batches of prompts of unequal length, a few compiled shapes.

A prompt is read in one forward pass (`prefill`), which returns the keys and values of every
*executed* layer. They are right-aligned in the cache, so that all rows of a batch write their next
token to the same slot; `first_B` is the first slot of each row. The device then generates CHUNK
tokens at a time, and the host checks for stop strings in between.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from loopjax import block, exits, model, windows
from loopjax.errors import UserError
from loopjax.lm import exit_decoding
from loopjax.lm.batching import bucket
from loopjax.lm.loaded_model import LanguageModel
from loopjax.progress import Progress

CHUNK = 16  # tokens between two checks for stop strings
CACHE_AXES = ("batch", "kv_heads", "seq", "head_size")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, otherwise sampled.

    Attributes:
      temperature: divisor of the logits.
      top_p: nucleus sampling threshold: only the fewest tokens whose probabilities sum to at least
        this are sampled.
      seed: sampling seed; the random draws for prompt i depend only on (seed, i).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature {self.temperature} must be at least 0")
        if 0 < self.temperature < 1e-6:  # logits divided by it would exceed float32
            raise UserError(
                f"--temperature {self.temperature} must be 0 (greedy) or at least 1e-06"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p} must lie within 0..1 and be positive")
        if not 0 <= self.seed < 2**32:  # JAX would drop the higher bits
            raise UserError(f"--seed {self.seed} must lie within 0..{2**32 - 1}")


@dataclasses.dataclass
class Generation:
    """The continuation of a prompt.

    Attributes:
      tokens: generated tokens before the end of document, or wholly before the first stop string.
      text: decoded tokens, without special tokens, and the part of a token before a stop string.
      ended: reason for the end: "eos", "stop" (a stop string) or "length".
      truncated: number of tokens cut from the left of the prompt to fit it into the context.
      repeats: with early exits, repetitions of the loop in the step that chose each of `tokens`; the
        first is chosen by the prompt, which is read at full depth.
    """

    tokens: list[int]
    text: str
    ended: str
    truncated: int = 0
    repeats: list[int] = dataclasses.field(default_factory=list)


def generate(
    lm: LanguageModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    sampling: Sampling = Sampling(),
    batch_size: int = 64,
    progress: str = "",
) -> list[Generation]:
    """Continues prompts of token ids, each of at least one token.

    Prompts longer than the context minus `max_new_tokens` are truncated on the left, as in
    lm-evaluation-harness.

    Args:
      stop: strings that end a continuation; not included in its text. They may contain special
        tokens, like "<|im_end|>".
      batch_size: prompts per batch, over all devices.
      progress: label of the progress bar; empty for none.
    """
    room = room_for_prompt(lm, max_new_tokens)
    if not all(prompts):
        raise ValueError("a prompt is empty")
    generations: list[Generation | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][-room:]), reverse=True)
    with lm.on_mesh(), Progress(len(prompts), progress) as shown:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            cut = [prompts[i][-room:] for i in numbers]
            for i, generation in zip(
                numbers, _continue(lm, cut, numbers, max_new_tokens, stop, sampling), strict=True
            ):
                generation.truncated = max(0, len(prompts[i]) - room)
                generations[i] = generation
            shown.update(len(numbers))
    return generations


def room_for_prompt(lm: LanguageModel, n: int, name: str = "--max-new-tokens") -> int:
    """Tokens of a prompt that n new tokens leave room for; `name` is what set n, for the error."""
    if not 1 <= n < lm.context:
        raise UserError(
            f"{name} {n} must lie within 1..{lm.context - 1}, the context minus one token"
        )
    return lm.context - n


def _continue(lm, prompts, numbers, max_new_tokens, stop, sampling) -> list[Generation]:
    """The continuations of one batch; `numbers` are the prompts' indices, which seed the sampling."""
    B = lm.batch_parts * bucket(-(-len(prompts) // lm.batch_parts), least=1)
    T = bucket(max(map(len, prompts)))
    tokens = np.zeros((B, T), np.int32)
    lengths = np.ones(B, np.int32)
    seeds = np.zeros(B, np.int32)
    for r, (prompt, number) in enumerate(zip(prompts, numbers, strict=True)):
        tokens[r, : len(prompt)] = prompt
        lengths[r] = len(prompt)
        seeds[r] = number
    chunks = -(-max_new_tokens // CHUNK)
    start, step = _programs(lm.cfg, lm.plan, sampling.temperature, sampling.top_p, lm.exit)
    rows = lm.put({"tokens": tokens, "lengths": lengths, "seeds": seeds})
    key = jax.random.key(sampling.seed)
    state = start(lm.params, rows, key, slots=T + chunks * CHUNK)
    outside = {name: leaf for name, leaf in lm.params.items() if name != "layers"}
    ends = [_End(lm.tokenizer, stop, max_new_tokens) for _ in prompts]
    for _ in range(chunks):
        state, *made_BN = step(outside, lm.layers, state, key)
        for end, *row in zip(ends, *jax.device_get(made_BN), strict=False):
            end.add(*(numbers.tolist() for numbers in row))
        if all(end.ended for end in ends):
            break
    return [end.generation() for end in ends]


class _End:
    """The tokens of one continuation, and where it ends."""

    def __init__(self, tokenizer, stop: Sequence[str], limit: int):
        self.tokenizer = tokenizer
        marks = tokenizer.special_texts()
        stop = [s for s in stop if s]
        # Stop strings that are seen with special tokens in the text, and those seen without.
        self.stop = {True: [s for s in stop if any(mark in s for mark in marks)]}
        self.stop[False] = [s for s in stop if s not in self.stop[True]]
        self.limit = limit
        self.tokens: list[int] = []
        self.repeats: list[int] = []
        self.text = ""
        self.ended = ""

    def add(self, new: list[int], repeats: Sequence[int] = ()) -> None:
        if self.ended:
            return
        self.repeats += repeats
        new = new[: self.limit - len(self.tokens)]
        if self.tokenizer.eos_id in new:
            new = new[: new.index(self.tokenizer.eos_id)]
            self.ended = "eos"
        self.tokens += new
        if not self.ended and len(self.tokens) == self.limit:
            self.ended = "length"
        self.text = self.decoded(len(self.tokens))
        if cuts := [cut for special in self.stop if (cut := self.cut(special))]:
            self.tokens, self.text = min(cuts, key=lambda cut: tuple(map(len, cut)))
            self.ended = "stop"

    def decoded(self, n: int, special: bool = False) -> str:
        return self.tokenizer.decode(self.tokens[:n], special=special)

    def cut(self, special: bool) -> tuple[list[int], str] | None:
        """(tokens, text) before the first stop string of one kind; None if there is none."""
        whole = self.decoded(len(self.tokens), special)
        places = [whole.find(s) for s in self.stop[special] if s in whole]
        if not places:
            return None
        before = whole[: min(places)]
        counts = range(len(self.tokens), -1, -1)
        n = next(n for n in counts if before.startswith(self.decoded(n, special)))
        # A stop string may begin within a token.
        return self.tokens[:n], self.decoded(n) + before[len(self.decoded(n, special)) :]

    def generation(self) -> Generation:
        repeats = self.repeats[: len(self.tokens)]
        return Generation(self.tokens, self.text, self.ended or "length", repeats=repeats)


def prefill(params, tokens_BT, cfg, plan):
    """(residual stream before the final norm [B, T, D], a `KVCache` of T slots per executed layer)."""
    x_BTD, sown = model.intermediates(params, tokens_BT, cfg, plan, ("key", "value"))
    key, value = (sown[name].swapaxes(2, 3) for name in ("key", "value"))
    return x_BTD, tuple(map(block.KVCache, key, value))


def decode_step(params, layers, tokens_BT, cfg, plan, placement: block.Placement, caches):
    """(residual stream before the final norm [B, T, D], the caches with the tokens written to them).

    The blocks are not scanned: a scan copies what it slices from a stack (weights, caches), while the
    cost of a step with few tokens is to read those once.

    Args:
      layers: the parameters of each unique layer; the rest is read from `params`.
      caches: a `KVCache` for each executed layer.
    """
    x_BTD = model.outside_stack(params, cfg, tokens_BT, "embedded")
    context = model.context_of(cfg, placement.positions_BT, x_BTD, placement, weights=params)
    written = []
    for segment in plan.segments:
        for iteration in range(segment.repeats):
            entered_BTD, here = x_BTD, context
            if (gates := windows.gates(segment, iteration)) is not None:
                here = context.replace(gates=gates)
            for _ in range(segment.layers):
                e = len(written)
                x_BTD, here, cache, _ = model.advance(layers, e, x_BTD, here, cfg, plan, caches[e])
                written.append(cache)
            x_BTD = windows.stepped(segment, entered_BTD, x_BTD)
            context = here.replace(gates=context.gates)
    return x_BTD, tuple(written)


@functools.lru_cache(maxsize=16)
def _programs(cfg, plan, temperature: float, top_p: float, rule: exits.Rule | None):
    """The two compiled programs: prompts to a state, and a state to CHUNK more tokens."""
    choose = functools.partial(_choose, temperature=temperature, top_p=top_p)
    start = functools.partial(_start, cfg=cfg, plan=plan, choose=choose, rule=rule)
    steps = functools.partial(_steps, cfg=cfg, plan=plan, choose=choose, rule=rule)
    return jax.jit(start, static_argnames="slots"), jax.jit(steps, donate_argnums=2)


def _start(params, rows, key, *, slots: int, cfg, plan, choose, rule) -> dict:
    """The state after the prompts: caches, the next token and first slot of each row, the next slot."""
    tokens_BT, lengths_B = rows["tokens"], rows["lengths"]
    T = tokens_BT.shape[1]
    x_BTD, caches = prefill(params, tokens_BT, cfg, plan)
    x_B1D = jnp.take_along_axis(x_BTD, (lengths_B - 1)[:, None, None], axis=1)
    logits_BV = model.unembed(params, x_B1D, cfg)[:, 0]
    first_B = T - lengths_B

    def aligned(new_BKTC):
        source_BT = (jnp.arange(T)[None] - first_B[:, None]) % T
        right = jnp.take_along_axis(new_BKTC, source_BT[:, None, :, None], axis=2)
        padded = jnp.pad(right, ((0, 0), (0, 0), (0, slots - T), (0, 0)))
        return nn.with_logical_constraint(padded, CACHE_AXES)

    state = {
        "caches": jax.tree.map(aligned, caches),
        "next": choose(logits_BV, key, rows["seeds"], lengths_B),
        "first": first_B,
        "seeds": rows["seeds"],
        "slot": jnp.int32(T),
    }
    if rule is not None:  # this token is chosen at full depth
        state["repeats"] = jnp.full(first_B.shape, exits.loop_of(plan).repeats, jnp.int32)
    return state


def _steps(params, layers, state, key, *, cfg, plan, choose, rule):
    """The state after CHUNK more tokens per row, and these tokens, [B, CHUNK].

    With a rule of early exits also the repetitions in the steps that chose them, [B, CHUNK].
    """
    slots = jnp.arange(state["caches"][0].key.shape[2])
    first_B = state["first"]

    def next_logits(next_B, placement, caches):
        args = params, layers, next_B[:, None], cfg, plan
        if rule is not None:
            return exit_decoding.decode_step(*args, rule, placement, caches)
        x_B1D, caches = decode_step(*args, placement, caches)
        return model.unembed(params, x_B1D, cfg)[:, 0], None, caches

    def step(carry, _):
        caches, next_B, slot, repeats_B = carry
        positions_B = slot - first_B
        mask_B1S = (slots[None] >= first_B[:, None]) & (slots[None] <= slot)
        placement = block.Placement(positions_B[:, None], mask_BTS=mask_B1S[:, None], slot=slot)
        logits_BV, count_B, caches = next_logits(next_B, placement, caches)
        chosen_B = choose(logits_BV, key, state["seeds"], positions_B + 1)
        made = (next_B,) if rule is None else (next_B, repeats_B)
        return (caches, chosen_B, slot + 1, count_B), made

    carry = (state["caches"], state["next"], state["slot"], state.get("repeats"))
    (caches, next_B, slot, repeats_B), made_NB = jax.lax.scan(step, carry, length=CHUNK)
    after = {"caches": caches, "next": next_B, "slot": slot}
    if rule is not None:
        after["repeats"] = repeats_B
    return {**state, **after}, *(made.T for made in made_NB)


def _choose(logits_BV, key, seeds_B, positions_B, *, temperature: float, top_p: float):
    """The next token of each row, int32 [B]."""
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV), axis=-1) - jax.nn.softmax(sorted_BV)
        kept_BV = (before_BV < top_p).at[:, 0].set(True)  # also where float32 rounds top_p to 0
        least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)

    def draw(logits_V, seed, position):
        own = jax.random.fold_in(jax.random.fold_in(key, seed), position)
        return jax.random.categorical(own, logits_V)

    return jax.vmap(draw)(logits_BV, seeds_B, positions_B).astype(jnp.int32)
