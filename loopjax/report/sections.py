"""The sections of a page, in order: what each shows, what to look for, and how to get its data.

A new one is an entry of `SECTIONS` and a function from entries and colors to parts; it has no parts
where there are no data for it.
"""

import dataclasses
from collections.abc import Callable

from loopjax.report import tables
from loopjax.report.figures import (
    costs,
    depth,
    effects,
    exits,
    finetuning,
    icl,
    interventions,
    lineages,
    norms,
    similarity,
    training,
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
      title, shows, look: the heading, and a sentence each: what is shown, what to look for.
      build: (entries, colors) -> [Picture | Table], empty where there are no data.
      needs: kinds of results of which each is asked for where a model has none.
      tuned: whether runs of fine-tuning are among its models.
    """

    title: str
    shows: str
    look: str
    build: Callable
    needs: tuple[str, ...] = ()
    tuned: bool = True


SECTIONS = (
    Section(
        "Models",
        "Every model with its depth, its cost and how well it predicts.",
        "Compare models of equal executed layers (the same inference cost) or of equal parameters; "
        "NLL in nats per token compares only models of one tokenizer.",
        tables.models,
        tuned=False,
    ),
    Section(
        "Lineage",
        "Each row of boxes is the stack of layers from one training step on, each box a layer in the "
        "color of the layer of the first stack that it descends from.",
        "Follow one color down: bold lines are copies made by growth, and an underlined group of "
        "the lowest row is one pass of a loop, the same weights run again.",
        lineages,
        tuned=False,
    ),
    Section(
        "Training",
        "Loss against update steps and against training FLOPs.",
        "A grown model trails at equal steps, since its early steps are cheap; at equal FLOPs it "
        "should be level or ahead.",
        training,
        ("nll",),
        tuned=False,
    ),
    Section(
        "Trade-offs",
        "What each model achieves against what it costs to store, to run and to train.",
        "A loop moves left in parameters at unchanged inference FLOPs, growth moves left in training "
        "FLOPs; what lies higher (or lower, for losses) at equal cost is better.",
        costs,
        ("eval",),
        tuned=False,
    ),
    Section(
        "Where it computes",
        "The depth score: a layer is erased before an answer begins, and the curve is how much the "
        "predictions of the answer change; the score (dashed) is the mean layer under the curve.",
        "A score above the standard model's means that later layers do more for the answer; in the "
        "papers' models of 1.7B parameters the grown and looped ones have it.",
        depth,
        ("depth_score",),
    ),
    Section(
        "Early exits",
        "What the model would predict if it stopped before a layer, read by a trained lens.",
        "A standard model approaches its final prediction steadily; grown and looped models stay "
        "flat through the middle and rise late, loops in steps after each pass.",
        exits,
        ("overlap", "exit_accuracy"),
    ),
    Section(
        "Residual stream",
        "How large the residual stream is at each executed layer, what attention, MLP and layer add "
        "relative to it, and in which direction.",
        "A curve that repeats every block (every loop pass, or as many layers as growth added at "
        "once) says that the model does the same things again at the same place of each block; the "
        "table puts a number on it.",
        norms,
        ("norms",),
    ),
    Section(
        "Effects of erasing a layer",
        "Row s, column l: how much the update of layer l changes, as a share, when layer s is erased; "
        "0 is none, 1 is all of it.",
        "Bright columns at equal distances are layers that gather what earlier tokens left, one in "
        "each block; a standard model has them early in depth only, or none.",
        effects,
        ("future_local", "future", "current_attention"),
    ),
    Section(
        "Layer interventions",
        "Accuracy when layers are swapped, skipped, reversed or repeated, against the first layer "
        "that is touched; dashed is the unmodified model, dotted is guessing.",
        "Grown models keep their accuracy when whole blocks of the middle are swapped or skipped, "
        "where a standard model falls; repeating a block of a grown model can raise it.",
        interventions,
        ("intervene swap", "intervene skip", "intervene reverse", "intervene repeat"),
    ),
    Section(
        "In-context examples",
        "Accuracy against the number of solved examples in the prompt, with 95% intervals.",
        "A curve that goes on rising uses more examples; look for models that part only when there "
        "are many.",
        icl,
        ("icl",),
    ),
    Section(
        "Fine-tuning",
        "Accuracy after fine-tuning against the number of training examples: the mean of runs that "
        "differ in their seed and, shaded, their range; at 0 the model as it was before.",
        "A curve that rises early learns from fewer examples, as the papers' grown and looped models "
        "do; broken lines are the same model begun otherwise, a loop untied first, say.",
        finetuning,
    ),
    Section(
        "Similarity of blocks",
        "Cosine of the feed-forward weights of each two blocks of layers, 1 for equal ones.",
        "Blocks that growth copied stay alike: around the middle and symmetric for LIDAS, towards "
        "the beginning for MIDAS; a model trained as one stack has none.",
        similarity,
        ("similarity",),
    ),
)
