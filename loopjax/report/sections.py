"""The sections of a page, in order: what each shows, what to look for, which results it needs.

A section about a diagnostic comes from its row in `analysis/diagnostics.py`. Any other section is a
row here, with a function from a `Context` to pictures and tables (none if there are no data).
"""

import dataclasses
import functools
from collections.abc import Callable

from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.report import figures, finetune_curves, tables


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
      title: the heading.
      shows: what the section shows, for a newcomer.
      look: what to look for.
      build: Context -> [Picture | Table], empty if there are no data.
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
        look="Compare models with equally many executed layers (the same inference cost) or equally "
        "many parameters. NLL in nats per token is only comparable between models with the same "
        "tokenizer.",
        build=tables.models,
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
        shows="Loss against training steps and against training FLOPs.",
        look="A grown model has a higher loss at equal steps, because its early steps are cheap; at "
        "equal FLOPs it should be level or better.",
        build=figures.training_section,
        needs=("nll",),
        finetuned=False,
    ),
    Section(
        title="Trade-offs",
        shows="The scores of each model against its parameters, inference FLOPs and training FLOPs.",
        look="A loop has fewer parameters at unchanged inference FLOPs, growth has fewer training "
        "FLOPs. At equal cost, higher scores (and lower losses) are better.",
        build=figures.tradeoff_section,
        needs=("eval",),
        finetuned=False,
    ),
)
_EVALUATIONS = (
    Section(
        title="Layer interventions",
        shows="Accuracy when layers are swapped, skipped, reversed or repeated, against the first "
        "affected layer. The dashed line is the unmodified model, the dotted line is chance.",
        look="Grown models keep their accuracy when whole blocks in the middle are swapped or "
        "skipped, where a standard model loses accuracy. Repeating a block of a grown model can "
        "raise its accuracy.",
        build=figures.intervention_section,
        needs=("intervene swap", "intervene skip", "intervene reverse", "intervene repeat"),
    ),
    Section(
        title="In-context learning",
        shows="Accuracy against the number of shots (solved examples in the prompt), with 95% "
        "confidence intervals.",
        look="A curve that keeps rising makes use of more shots. Look for models that differ only "
        "at many shots.",
        build=figures.icl_section,
        needs=("icl",),
    ),
    Section(
        title="Fine-tuning",
        shows="Accuracy after fine-tuning against the number of training examples: the mean over "
        "runs with different seeds and, shaded, their range. At 0 is the model before fine-tuning.",
        look="A curve that rises early needs fewer examples, as for the papers' grown and looped "
        "models. Dashed lines are the same model initialized differently, for example with its loop "
        "untied.",
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
