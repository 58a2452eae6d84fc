"""loopjax as a model of lm-evaluation-harness.

`loopjax eval` uses it; so does the harness's own command line:

    python -m loopjax.evals.harness --model loopjax --model_args checkpoint=DIR,depth=4-4x3-4 \
        --tasks hellaswag
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import model
from loopjax.errors import UserError, require
from loopjax.lm import decode, score
from loopjax.lm.loaded_model import LanguageModel, open_model

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError:
    # Analyses without tasks import this module too; `LoopjaxLM` reports the missing extra.
    TemplateLM = object

    def register_model(name: str):
        return lambda cls: cls


MAX_GEN_TOKENS = 256
ARGUMENTS = ("checkpoint", "depth", "dtype", "max_length", "tokenizer", "mesh", "batch_tokens",
             "generation_batch", "ema")  # fmt: skip
PROBE = "The quick brown fox jumps over the lazy dog."


@register_model("loopjax")
class LoopjaxLM(TemplateLM):
    """A `LanguageModel` with the interface of the harness; all devices serve one model.

    Args:
      checkpoint: DIR or DIR@STEP, or a `LanguageModel`.
      depth: plan that the model runs by (default: the plan it was trained with).
      dtype, max_length, tokenizer, mesh: arguments of `open_model`.
      batch_tokens: tokens per scoring batch.
      generation_batch: prompts per decoding batch.
      batch_size, max_batch_size, device: ignored; the harness passes them to every model.
    """

    def __init__(
        self,
        checkpoint,
        depth: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        tokenizer: str | None = None,
        mesh: str = "",
        batch_tokens: int | None = None,
        generation_batch: int = 64,
        ema: bool = False,
        batch_size=None,
        max_batch_size=None,
        device=None,
        **unknown,
    ):
        require("lm_eval.api", "eval", "evaluating tasks")
        super().__init__()
        if unknown:
            raise UserError(
                f"--model_args has no {next(iter(unknown))!r}; it has {', '.join(ARGUMENTS)} (the "
                'harness splits at "," and "=": link a directory whose name has them to another name)'
            )
        if not isinstance(checkpoint, LanguageModel):
            depth = None if depth is None else str(depth)
            checkpoint = open_model(
                checkpoint, depth, dtype=dtype, context=max_length, tokenizer=tokenizer, mesh=mesh,
                ema=ema,
            )  # fmt: skip
        self.lm: LanguageModel = checkpoint
        self.batch_tokens = batch_tokens
        self.generation_batch = generation_batch
        self.truncated = 0  # requests cut on the left to fit the context
        self.cut_items: set = set()  # numbers of the items that these requests belong to
        self._cut = np.zeros(0, bool)  # whether each of the last requests was cut
        self.exited = [0, 0]  # with early exits: tokens, and repetitions of the loop of all of them
        self.shown = True  # whether a progress bar is shown
        self.check()

    def check(self) -> None:
        """Compares the score of a known text with one plain forward pass."""
        lm = dataclasses.replace(self.lm, exit=None)
        ids = [self.prefix_token_id, *self.tok_encode(PROBE, add_special_tokens=False)]
        ids = ids[: lm.context]
        tokens = np.array([ids] * lm.batch_parts, np.int32)
        with lm.on_mesh():
            forward = jax.jit(model.forward, static_argnames=("cfg", "plan"))
            logits = forward(lm.params, lm.put(tokens), cfg=lm.cfg, plan=lm.plan)[0, :-1]
        logprobs = jax.nn.log_softmax(logits)
        expected = float(jnp.sum(logprobs[jnp.arange(len(ids) - 1), jnp.array(ids[1:])]))
        # Two requests of one context: the scoring with branches is checked too.
        requests = [(ids[:1], ids[1:]), (ids[:1], ids[2:])]
        scored = score.log_likelihoods(lm, requests, batch_tokens=self.batch_tokens).logprobs[0]
        per_token = 1e-4 if lm.cfg.dtype == "float32" else 0.05
        if not math.isfinite(expected) or abs(scored - expected) > per_token * len(ids):
            raise RuntimeError(
                f"scoring gives log p = {scored} for a text whose forward pass gives {expected}"
            )

    @property
    def eot_token_id(self) -> int:
        return self.lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.lm.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        return self.lm.context

    @property
    def max_gen_toks(self) -> int:
        return min(MAX_GEN_TOKENS, self.lm.context // 2)

    @property
    def tokenizer_name(self) -> str:
        return self.lm.tokenizer.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs):
        codec = self.lm.tokenizer
        if add_special_tokens is False or string.startswith(codec.decode([codec.bos_id]) or "\0"):
            return codec.encode_batch([string])[0].tolist()
        return codec.encode(string)

    def get_model_info(self) -> dict:
        return {"loopjax": self.lm.describe()}

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both; the harness takes from the whole what lies behind those of the context.

        Nothing is left of the continuation where a token spans both. It is then tokenized alone.
        """
        before, after = super()._encode_pair(context, continuation)
        if not after:
            # The harness moves white space at the end of the context to the continuation.
            space = context[len(context.rstrip()) :]
            after = self.tok_encode(space + continuation, add_special_tokens=False)
        # Nothing is left of a context of white space.
        return before or [self.prefix_token_id], after

    def _count(self, tokens: int, repeats: int) -> None:
        self.exited = [self.exited[0] + tokens, self.exited[1] + repeats]

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        # Tokenizing is quick: the progress bar is for scoring alone.
        self.shown = not disable_tqdm
        for number, request in enumerate(requests):
            if not request.args[1]:
                raise UserError(
                    f"request {number} has an empty continuation, which has no likelihood"
                )
        answers = super().loglikelihood(requests, disable_tqdm=True)
        self.cut_items.update(requests[i].doc_id for i in np.flatnonzero(self._cut))
        return answers

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs):
        scores = score.log_likelihoods(
            self.lm,
            [(context, continuation) for _, context, continuation in requests],
            batch_tokens=self.batch_tokens,
            progress=f"scoring at {self.lm.plan}" if self.shown else "",
        )
        self._count(scores.tokens, scores.repeats)
        self._cut = scores.cut
        self.truncated += scores.truncated
        pairs = zip(scores.logprobs.tolist(), scores.greedy.tolist(), strict=True)
        answers = []
        for (key, _, _), answer in zip(requests, pairs, strict=True):
            answers.append(answer)
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        self.shown = not disable_tqdm
        windows, owners = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[number] += logprob
        self.cut_items.update(requests[owners[i]].doc_id for i in np.flatnonzero(self._cut))
        for request, logprob in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logprob)
        return sums

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        texts: list[str] = [""] * len(requests)
        for settings, numbers in _by_settings(requests, self.max_gen_toks).items():
            until, max_tokens, sampling = settings
            decode.room_for_prompt(self.lm, max_tokens, "the task's max_gen_toks")
            prompts = [self.tok_encode(requests[i].args[0]) for i in numbers]
            generations = decode.generate(
                self.lm,
                [prompt or [self.prefix_token_id] for prompt in prompts],
                max_tokens,
                stop=until,
                sampling=sampling,
                batch_size=self.generation_batch,
                progress="" if disable_tqdm else f"decoding at {self.lm.plan}",
            )
            for i, generation in zip(numbers, generations, strict=True):
                texts[i] = generation.text
                self._count(len(generation.repeats), sum(generation.repeats))
                if generation.truncated:
                    self.truncated += 1
                    self.cut_items.add(requests[i].doc_id)
                self.cache_hook.add_partial("generate_until", requests[i].args, generation.text)
        return texts


def _by_settings(requests, default_max_tokens: int) -> dict:
    """Indices of the requests by (stop strings, maximum of new tokens, sampling)."""
    groups: dict = {}
    for number, request in enumerate(requests):
        kwargs = normalize_gen_kwargs(request.args[1], default_max_tokens)
        until = kwargs.get("until") or []
        until = (until,) if isinstance(until, str) else tuple(until)
        temperature = float(kwargs.get("temperature", 0.0)) if kwargs.get("do_sample") else 0.0
        try:
            sampling = decode.Sampling(temperature, float(kwargs.get("top_p", 1.0)))
        except UserError as error:
            raise UserError(f"the task's {str(error).removeprefix('--')}") from None
        groups.setdefault((until, int(kwargs["max_gen_toks"]), sampling), []).append(number)
    return groups


if __name__ == "__main__":
    import sys

    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"loopjax: {error}", file=sys.stderr)
        sys.exit(2)
