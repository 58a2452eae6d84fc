"""Evaluation on held-out data during training."""

import functools
import threading

import jax

from loopjax import sharding
from loopjax.ahead import Ahead
from loopjax.compilation import shapes_of
from loopjax.data import pipeline
from loopjax.depth import DepthPlan
from loopjax.run import Run
from loopjax.step import eval_step


class HeldoutEvaluation:
    """A function of parameters and plan that evaluates them on the held-out data of a run.

    Batches are read once, and one program is compiled per plan.

    Args:
      run: the run.
      ahead: thread that reads and compiles before the first evaluation.
    """

    def __init__(self, run: Run, ahead: Ahead):
        self.run = run
        self._ahead = ahead
        self._reading = threading.Lock()
        self._batches: dict[tuple[str, str], list] | None = None
        self._plan: DepthPlan | None = None
        self._programs: dict = {}

    def begin(self, params, plan: DepthPlan) -> None:
        """Begins to read the data, and to compile for parameters like these and a plan."""
        if plan != self._plan:
            make = functools.partial(self._compiled, shapes_of(params), plan)
            self._ahead.begin(("evaluation", plan), make)

    def _compiled(self, params, plan: DepthPlan) -> dict:
        """{(split, source): program}; data whose batches have the same shapes share a program."""
        step = jax.jit(functools.partial(eval_step, cfg=self.run.cfg, plan=plan))
        programs: dict[tuple, object] = {}
        by_data = {}
        for data, batches in self._read().items():
            size = self.run.config.batch_size
            batch = sharding.global_shapes(batches[0], self.run.batch_sharding, size)
            kind = tuple((key, batch[key]) for key in sorted(batch))
            if kind not in programs:
                programs[kind] = step.lower(params, batch).compile()
            by_data[data] = programs[kind]
        return by_data

    def _read(self) -> dict[tuple[str, str], list]:
        """{(split, source): batches}, of the rows of this process; splits are "eval" and "train"."""
        with self._reading:
            if self._batches is None:
                config = self.run.config
                sizes = (config.batch_size, config.eval_batches, self.run.rows)
                n = config.batch_size * config.eval_batches
                data = {("eval", name): source for name, source in self.run.heldout.items()}
                if config.eval_train:
                    sources = self.run.stream.sources
                    for name in self.run.heldout:
                        data["train", name] = pipeline.Sample(sources[name], n)
                self._batches = {
                    key: list(pipeline.heldout_batches(source, *sizes))
                    for key, source in data.items()
                }
            return self._batches

    def of_state(self, state, plan: DepthPlan) -> dict[str, float]:
        """The evaluation of a train state: that of its parameters, and with an average of the
        parameters the same numbers of that as "eval_ema/nll", "eval_ema/SOURCE/nll", ..."""
        found = self(state.params, plan)
        if state.ema is not None:
            average = self(state.ema, plan)
            found |= {name.replace("eval/", "eval_ema/", 1): n for name, n in average.items()}
        return found

    def __call__(self, params, plan: DepthPlan) -> dict[str, float]:
        """{"eval/nll": nats per token, "eval/accuracy": share of argmax hits, ...}.

        These two are means over the sources weighted by the last mixture of the config; each source
        has its own as "eval/SOURCE/nll". Sources with one answer per row (`one_answer`) also have
        "exact", the share of rows with every token of the answer right. Empty without held-out data.
        """
        return self._metrics("eval", params, plan)

    def of_training(self, params, plan: DepthPlan) -> dict[str, float]:
        """The same of a fixed sample of the training data, "train/..."; {} unless it is asked for."""
        return self._metrics("train", params, plan) if self.run.config.eval_train else {}

    def _metrics(self, split: str, params, plan: DepthPlan) -> dict[str, float]:
        if plan != self._plan:
            make = functools.partial(self._compiled, shapes_of(params), plan)
            self._programs = self._ahead.get(("evaluation", plan), make)
            self._plan = plan
        weights = self.run.phases[-1].mixture
        by_source = {}
        total = {"nll": 0.0, "accuracy": 0.0}
        for name, source in self.run.heldout.items():
            batches = map(self.run.to_device, self._read()[split, name])
            sums = [self._programs[split, name](params, batch) for batch in batches]
            nll, hits, n = (sum(float(s[k]) for s in sums) for k in ("nll", "hits", "targets"))
            by_source[f"{split}/{name}/nll"] = nll / n
            by_source[f"{split}/{name}/accuracy"] = hits / n
            if source.one_answer:
                exact, rows = (sum(float(s[k]) for s in sums) for k in ("exact", "rows"))
                by_source[f"{split}/{name}/exact"] = exact / rows
            share = weights[name] / sum(weights.values())
            total["nll"] += share * nll / n
            total["accuracy"] += share * hits / n
        if not by_source:
            return {}
        return {f"{split}/{name}": value for name, value in total.items()} | by_source
