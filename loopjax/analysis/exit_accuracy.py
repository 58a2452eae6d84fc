"""Accuracy on tasks if the model stopped before each layer (Kapl et al. 2025, Figures 8, 15)."""

from collections.abc import Sequence

import numpy as np

from loopjax.analysis.early_exit import TASKS, ExitAccuracy
from loopjax.analysis.lens import Lens
from loopjax.errors import UserError
from loopjax.evals import suite
from loopjax.evals.evaluate import run_task
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm import score
from loopjax.lm.loaded_model import LanguageModel

SCORED = ("loglikelihood", "multiple_choice")  # types of tasks whose answers are given


def run(lm, cases, options, each) -> ExitAccuracy:
    """`loopjax analyze --what exit_accuracy`."""
    return accuracy(
        lm,
        options["lens"],
        options["tasks"],
        limit=options["limit"],
        data_dir=options["data_dir"],
        say=options["say"],
        each=each,
    )


class ExitLM(LoopjaxLM):
    """The harness's model, scored at all exits at once; it answers like the whole model.

    `answers` holds, for each (context, continuation) requested, the pair (log-probability, whether
    greedy decoding gives it) of every exit and, last, of the model.
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
      say: called with a line for each finished task.
      each: `store.Parts.each`, to resume; its parts are tasks.

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
    """The harness's requests for each document, in order."""
    items: dict = {}
    for request in sorted(task.instances, key=lambda request: request.idx):
        items.setdefault(request.doc_id, []).append(request)
    return list(items.values())


def _accuracy(task, items, answers, i: int) -> float:
    """The accuracy that the harness computes from the answers of exit i."""
    hits = [
        task.process_results(item[0].doc, [answers[request.args][i] for request in item])["acc"]
        for item in items
    ]
    return float(task.aggregation()["acc"](hits))
