"""`loopjax nll`: held-out negative log-likelihood by source, of a checkpoint or of a whole run.

In nats per token and, for text, in bits per byte: bits of all tokens over bytes of the text. The data are the held-out split of the data that
the checkpoint was trained on, or other data with the same tokenizer.
"""

import collections
import dataclasses
import functools
import math

import jax
import numpy as np

from loopjax import config as config_lib
from loopjax import exits
from loopjax.checkpoint import locate, tokenizer_of, versions
from loopjax.data import pipeline
from loopjax.errors import UserError
from loopjax.evals.token_bytes import TokenBytes
from loopjax.lm.loaded_model import LanguageModel, open_model
from loopjax.results import schema
from loopjax.step import eval_step


def measure(
    checkpoint,
    *,
    all_steps: bool = False,
    depths=(None,),
    mixture: dict | None = None,
    data_dir=None,
    batches: int = 16,
    batch_size: int = 32,
    mesh: str = "",
    dtype: str | None = None,
    context: int | None = None,
    exit: exits.Rule | None = None,
    max_repeats: int | None = None,
    ema: bool = False,
    say=print,
) -> dict:
    """Rows of {"step", "depth", "nll", "accuracy", "bits_per_byte", "sources": {name: ...}}.

    Args:
      checkpoint: DIR or DIR@STEP.
      all_steps: measure all checkpoints of the run; a plan that does not fit one is skipped there.
      depths: plans; None is the plan that the checkpoint was trained with.
      mixture: weight of each source; by default that of the last training phase.
      data_dir: directory of the sources; by default that of the training.
      context: tokens per sequence, at most as in training.
      exit, max_repeats: rule by which tokens leave the loop early, and its repetitions at most; rows
        then have "exits", the fields of `exits.Saving`.
      ema: whether to measure the moving average of the parameters.
      batches, batch_size: at most this many batches of this many sequences per source.
    """
    directory, step = locate(checkpoint)
    steps = [step]
    if all_steps:
        steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())
    rows, sources, weights, counts = [], None, None, None
    for step in steps:
        source = f"{directory}@{step}"
        lm = open_model(source, mesh=mesh, dtype=dtype, context=context, text=False, ema=ema)
        if sources is None:
            sources, weights = open_heldout(lm, mixture, data_dir)
            counts = TokenBytes(lm.tokenizer) if lm.tokenizer else None
        for depth in depths:
            try:
                at_plan = lm.with_plan(depth) if depth else lm
                if exit or max_repeats:
                    at_plan = at_plan.with_exit(exit, max_repeats)
            except UserError as error:
                if not all_steps:
                    raise
                say(f"step {step}: skipped, {error}")
                continue
            row = {"step": step, "depth": str(at_plan.plan)}
            row |= (
                {"weights": lm.digest} if ema else {}
            )  # not those that the checkpoint is known by
            row |= _over(at_plan, sources, weights, counts, batches, batch_size)
            rows.append(row)
            say(as_line(row))
    return {
        **schema.header("nll"), "checkpoint": str(directory), "mixture": weights, "data_dir": data_dir and str(data_dir),
        "batches": batches, "batch_size": batch_size, "context": lm.context, **({"exit": str(exit)} if exit else {}), "model": lm.describe(),
        "versions": versions(), "rows": rows,
    }  # fmt: skip


def open_heldout(lm: LanguageModel, mixture, data_dir) -> tuple[dict, dict]:
    """(held-out sources, their weights); raises UserError if they have another tokenizer."""
    saved, phases = lm.meta["config"], lm.meta["phases"]
    weights = mixture or (dict(phases[-1]["mixture"]) if phases else {})
    if not weights:
        raise UserError("the checkpoint does not record its training data; set --mixture")
    config = config_lib.default()
    config.seed, config.seq_len = saved["seed"], min(saved["seq_len"], lm.context)
    config.data_dir = saved["data_dir"] if data_dir is None else str(data_dir)
    config.model.vocab_size = lm.cfg.vocab_size
    tokenizer = tokenizer_of(lm.path.parent)
    sources = pipeline.open_sources(
        config, list(weights), "heldout", tokenizer, lm.meta.get("add_bos")
    )
    names = {source.tokenizer for source in sources.values()}
    known = lm.tokenizer.name if lm.tokenizer else lm.meta.get("tokenizer")
    if known and names != {known}:
        raise UserError(f"the data have the tokenizer {names.pop()}, the checkpoint has {known}")
    return sources, weights


def _over(lm: LanguageModel, sources: dict, weights: dict, counts, *sizes: int) -> dict:
    """The metrics of every source, and their mean weighted by the mixture."""
    by_source = {name: _source(lm, source, counts, *sizes) for name, source in sources.items()}
    total = sum(weights.values())
    keys = [
        k for k in ("nll", "accuracy", "bits_per_byte") if all(k in s for s in by_source.values())
    ]
    means = {k: sum(weights[n] / total * s[k] for n, s in by_source.items()) for k in keys}
    exited = [source["exits"] for source in by_source.values() if "exits" in source]
    if exited:
        tokens = sum(e["tokens"] for e in exited)
        repeats = sum(e["tokens"] * e["repeats"] for e in exited)
        means["exits"] = _saving(lm, tokens, repeats)
    return {**means, "sources": by_source}


def _saving(lm: LanguageModel, tokens: int, repeats: float) -> dict:
    args = lm.cfg, lm.plan, lm.exit, lm.context, tokens, repeats
    return dataclasses.asdict(exits.saving(*args))


def _source(
    lm: LanguageModel, source, counts: TokenBytes | None, n_batches: int, batch_size: int
) -> dict:
    B = lm.batch_parts * -(-min(batch_size, len(source)) // lm.batch_parts)
    step, n_bytes = _step(lm.cfg, lm.plan, lm.exit), 0
    sums: collections.Counter = collections.Counter()
    with lm.on_mesh():
        for batch in pipeline.heldout_batches(source, B, n_batches, np.arange(B)):
            for key, value in jax.device_get(step(lm.params, lm.put(batch))).items():
                sums[key] += value.item()
            if counts and source.finite:  # running text
                n_bytes += counts.count(batch["inputs"], batch["targets"])
    n = sums["targets"]
    out = {"nll": sums["nll"] / n, "accuracy": sums["hits"] / n, "tokens": int(n)}
    if source.one_answer:
        out["exact"] = sums["exact"] / sums["rows"]
    if lm.exit:
        out["exits"] = _saving(lm, int(sums["inputs"]), sums["repeats"])
    if n_bytes:
        out |= {"bytes": n_bytes, "bits_per_byte": sums["nll"] / math.log(2) / n_bytes}
    return out


@functools.lru_cache(maxsize=32)
def _step(cfg, plan, rule):
    return jax.jit(functools.partial(eval_step, cfg=cfg, plan=plan, rule=rule))


def as_line(row: dict) -> str:
    parts = [f"step {row['step']}  {row['depth']}  nll {row['nll']:.4f}"]
    if "bits_per_byte" in row:
        parts.append(f"bits/byte {row['bits_per_byte']:.4f}")
    parts.append(f"accuracy {row['accuracy']:.4f}")
    if "exits" in row:
        parts.append(exits.Saving(**row["exits"]).as_text())
    if len(row["sources"]) > 1:
        parts += [f"{name} {source['nll']:.4f}" for name, source in row["sources"].items()]
    return "  ".join(parts)
