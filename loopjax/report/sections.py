"""The sections of a page, in order: what each shows, how to read it, which results it needs.

A section about a diagnostic comes from its row in `analysis/diagnostics.py`. Any other section is a
row here, with a function from a `Context` to pictures, tables and sentences (none if there are no
data). The texts here hold for any numbers; what the numbers say is a `Text` made from them.
"""

import dataclasses
import functools
from collections.abc import Callable

from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.report import figures, finetune_curves


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
      title: the heading.
      shows: what the section shows, for a newcomer; true for any numbers.
      look: how to read it; true for any numbers.
      build: Context -> [Picture | Table | Text], empty if there are no data.
      needs: kinds of results; if a model lacks one, the page lists the command for it.
      finetuned: whether fine-tuning runs are among its models.
      lacking: entries -> evaluations that the section lacks, as `finetune_curves.missing` has them.
    """

    title: str
    shows: str
    look: str
    build: Callable
    needs: tuple[str, ...] = ()
    finetuned: bool = True
    lacking: Callable | None = None


_MODELS = (
    Section(
        title="Models",
        shows="Every model with its depth, its costs and its held-out loss.",
        look="Models with equally many executed layers cost the same at inference; models with "
        "equally many unique layers have the same parameters. NLL per token is comparable only "
        "between models with the same tokenizer.",
        build=figures.models_section,
        finetuned=False,
    ),
    Section(
        title="Lineage",
        shows="Each row of boxes is the stack of layers from one training step on. Each box is a "
        "layer, in the color of the layer of the first stack that it was copied from.",
        look="Follow one color down: bold lines are copies made by growth. An underlined group in "
        "the last row is one pass of a loop: the same weights run again.",
        build=figures.lineage_section,
        finetuned=False,
    ),
    Section(
        title="Training",
        shows="The same curves twice: against training steps, and against training FLOPs.",
        look="Curves are compared at equal steps (left) and at equal cost (right). A growing model "
        "runs fewer layers in its early steps, which cost less.",
        build=figures.training_section,
        needs=("nll",),
        finetuned=False,
    ),
    Section(
        title="Mixture",
        shows="The share of each data source during the training, where it follows the held-out "
        "evaluations.",
        look="A source whose share rises was furthest from its bound. Shares end at the floor.",
        build=figures.mixture_section,
        finetuned=False,
    ),
    Section(
        title="Trade-offs",
        shows="Each metric against the costs in which the models differ: unique parameters, FLOPs "
        "per token at inference, training FLOPs.",
        look="Compare models at equal cost, one above the other, or at equal score, side by side. "
        "Markers that would lie on one another are drawn side by side.",
        build=figures.tradeoff_section,
        needs=("eval",),
        finetuned=False,
    ),
)
_EVALUATIONS = (
    Section(
        title="Layer interventions",
        shows="Accuracy when layers are swapped, skipped, reversed or repeated, against the first "
        "affected layer. The dashed line is the unmodified model; the dotted line and the gray area "
        "are reached without doing the task.",
        look="A point far below its dashed line is an edit that breaks the model; a point near it is "
        "an edit that the model tolerates. A model at its floor cannot lose accuracy.",
        build=figures.intervention_section,
        needs=("intervene swap", "intervene skip", "intervene reverse", "intervene repeat"),
    ),
    Section(
        title="In-context learning",
        shows="Accuracy against the number of shots (solved examples in the prompt), with 95% "
        "confidence intervals over items.",
        look="A rising curve makes use of its shots. Overlapping intervals show no difference.",
        build=figures.icl_section,
        needs=("icl",),
    ),
    Section(
        title="Fine-tuning",
        shows="Accuracy after fine-tuning against the number of training examples: means over runs "
        "with different seeds. At 0 is the model before fine-tuning.",
        look="A curve that rises early needs fewer examples. Lines of one color and different dashes "
        "are the same model initialized differently, for example with its loop untied.",
        build=figures.finetuning_section,
        lacking=finetune_curves.missing,
    ),
)


def sections() -> tuple[Section, ...]:
    """All sections: models, diagnostics, evaluations."""
    by_title: dict[str, list[str]] = {}
    for name, row in DIAGNOSTICS.items():
        by_title.setdefault(row.section, []).append(name)
    return _MODELS + tuple(_of_diagnostics(*each) for each in by_title.items()) + _EVALUATIONS


def _of_diagnostics(title: str, names: list[str]) -> Section:
    first = DIAGNOSTICS[names[0]]
    return Section(
        title=title,
        shows=first.shows or f"{first.title[:1].upper()}{first.title[1:]}.",
        look=first.look,
        build=functools.partial(figures.diagnostic_section, names=tuple(names)),
        needs=tuple(names),
    )
