"""Evaluation on held-out data during training."""

import functools

import jax

from loopjax.data import pipeline
from loopjax.depth import DepthPlan
from loopjax.run import Run
from loopjax.step import eval_step


class HeldoutEvaluation:
    """A function of parameters and plan that evaluates them on the held-out data of a run.

    Batches are read once, and one program is compiled per plan.
    """

    def __init__(self, run: Run):
        self.run = run
        self._steps: dict = {}

    @functools.cached_property
    def _batches(self) -> dict[str, list]:
        config = self.run.config
        sizes = (config.batch_size, config.eval_batches, self.run.rows)
        return {
            name: list(pipeline.heldout_batches(source, *sizes))
            for name, source in self.run.heldout.items()
        }

    def __call__(self, params, plan: DepthPlan) -> dict[str, float]:
        """{"eval/nll": nats per token, "eval/accuracy": share of argmax hits, ...}.

        These two are means over the sources weighted by the last mixture; each source has its own
        as "eval/SOURCE/nll". Sources with one answer per row (`one_answer`) also have "exact", the
        share of rows with every token of the answer right. Empty without held-out data.
        """
        if plan not in self._steps:
            self._steps[plan] = jax.jit(functools.partial(eval_step, cfg=self.run.cfg, plan=plan))
        step = self._steps[plan]
        weights = self.run.phases[-1].mixture
        by_source = {}
        total = {"nll": 0.0, "accuracy": 0.0}
        for name, source in self.run.heldout.items():
            batches = map(self.run.to_device, self._batches[name])
            sums = [step(params, batch) for batch in batches]
            nll, hits, n = (sum(float(s[k]) for s in sums) for k in ("nll", "hits", "targets"))
            by_source[f"eval/{name}/nll"] = nll / n
            by_source[f"eval/{name}/accuracy"] = hits / n
            if source.one_answer:
                exact, rows = (sum(float(s[k]) for s in sums) for k in ("exact", "rows"))
                by_source[f"eval/{name}/exact"] = exact / rows
            share = weights[name] / sum(weights.values())
            total["nll"] += share * nll / n
            total["accuracy"] += share * hits / n
        if not by_source:
            return {}
        return {"eval/nll": total["nll"], "eval/accuracy": total["accuracy"], **by_source}
