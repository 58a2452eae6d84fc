"""The diagnostics of `loopjax analyze`: one table, which every command and the report read.

A new diagnostic is one file and one row here. The file holds three things, in any names:

    @dataclasses.dataclass
    class Result: ...                   arrays are declared as np.ndarray

    def run(lm, cases, options, each):  -> Result
        cases    [(token ids, start of the answer, group)]: the prompts that the row asks for
        options  dict of what the command line sets (see `Diagnostic.settings`)
        each     `map` that resumes: each(compute, cases) -> list of what `compute(case)` returns,
                 a dict of arrays, with the same names and shapes for every case

    def plot(results, colors=None):     {label: Result} -> matplotlib figure

The row makes it available as `loopjax analyze --what NAME`, with its JSON file, its picture, its
place in the report and in `--help`.
"""

import dataclasses
import importlib
from collections.abc import Callable

from loopjax.depth import DepthPlan
from loopjax.errors import UserError, require


@dataclasses.dataclass(frozen=True)
class Diagnostic:
    """A row of the table.

    `result`, `run`, `plot`, `finding` and `tables` are references, "module:name". They are imported when they
    are needed: a report reads results without evaluation code, and `analyze` writes numbers without
    matplotlib.

    Attributes:
      name: value of `--what`; new files carry it as "diagnostic".
      title: what is computed, in one line, for `--help`.
      section: heading of the section of the report; diagnostics may share one.
      caption: caption of its figures; {of} is replaced by the prompts and settings.
      result: the dataclass of the result.
      run: the computation, see above.
      plot: the figure, see above.
      prompts: number of prompts from the start of the prompt set; 0 for none, None for all.
      settings: names of the options that the result depends on.
      needs_lens: whether options["lens"], a trained Tuned Lens, is needed.
      needs: (module, extra) that `run` needs beyond the base install, as in `errors.require`.
      shows: first paragraph of the section; of diagnostics that share one, the first row has it.
      look: how to read the figures, likewise; both must be true for any numbers.
      finding: ({label: result}, families) -> sentences below a figure, computed from its results.
      marks_blocks: whether its figure marks where blocks begin.
      windows: whether it is defined for plans with windows (`depth.Window`), whose residual stream is not
        the sum of the updates of its layers.
      loops: whether it is of loops, so that a plan needs one, or a window.
      tables: (`report.collect.Collection`) -> list of tables below the figures.
    """

    name: str
    title: str
    section: str
    caption: str
    result: str
    run: str
    plot: str
    prompts: int | None = None
    settings: tuple[str, ...] = ()
    needs_lens: bool = False
    needs: tuple[str, str] | None = None
    shows: str = ""
    look: str = ""
    finding: str = ""
    tables: str = ""
    marks_blocks: bool = False
    windows: bool = False
    loops: bool = False

    def result_type(self) -> type:
        return _imported(self.result)

    def computation(self) -> Callable:
        """`run`; raises MissingPackage if its optional package is not installed."""
        self.check_installed()
        return _imported(self.run)

    def requirement(self, plan: DepthPlan) -> str:
        """What the diagnostic needs that a plan is not, as a phrase; "" if it is defined for the plan."""
        if plan.windows and not self.windows:
            return "a plan without windows"
        return "a plan with a loop or a window" if self.loops and not plan.is_looped else ""

    def check_plan(self, plan: DepthPlan) -> None:
        """Raises UserError for a plan that the diagnostic is not defined for."""
        if missing := self.requirement(plan):
            raise UserError(f"{self.name} needs {missing}, not {plan} (see --depth)")

    def check_installed(self) -> None:
        """Raises MissingPackage if the optional package of `run` is not installed."""
        if self.needs:
            require(*self.needs, self.name)

    def draw(self, results: dict, colors: dict | None = None, blocks: dict | None = None):
        """The figure of {label: result}; blocks: {label: executed layers at which one begins}."""
        marks = {"blocks": blocks} if self.marks_blocks else {}
        return _imported(self.plot)(results, colors, **marks)

    def finding_function(self) -> Callable | None:
        return _imported(self.finding) if self.finding else None

    def table_builder(self) -> Callable | None:
        return _imported(self.tables) if self.tables else None


def _imported(reference: str):
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


# The numbers of prompts are those of the papers (effects: 10 and 20 of GSM8K). Sections of the
# report appear in the order of their first rows.
_ROWS = (
    Diagnostic(
        name="depth_score",
        title="how deep the layers are that the answer depends on",
        section="Depth score",
        shows="Each layer is ablated before the answer begins. The curve shows how much the "
        "predictions of the answer change; the depth score (bar on the axis) is the mean layer, weighted "
        "by that change.",
        look="A higher score means that later layers contribute more to the answer. Scores are "
        "comparable between models with equally many executed layers, on the same prompts.",
        caption="Change of the predictions of the answer when a layer is ablated before it ({of}).",
        result="loopjax.analysis.depth_score:DepthScore",
        run="loopjax.analysis.depth_score:run",
        plot="loopjax.plots.diagnostics:plot_depth_score",
        finding="loopjax.report.diagnostic_findings:depth_score",
        tables="loopjax.report.tables:depth_scores",
        settings=("one_boundary",),
    ),
    Diagnostic(
        name="overlap",
        title="how far the prediction at an exit before each layer agrees with the model's",
        section="Early exits",
        shows="What the model would predict if it stopped before a layer, read by a Tuned Lens (a "
        "linear map trained for each layer).",
        look="Where a curve is flat, layers do not bring the exit nearer to the model's prediction; "
        "where it rises, they do. Two predictions share likely tokens also by chance, more so in a "
        "small vocabulary.",
        caption="Share of the 5 most likely tokens in common with the model, and KL divergence in "
        "both directions ({of}).",
        result="loopjax.analysis.early_exit:Agreement",
        run="loopjax.analysis.early_exit:run",
        plot="loopjax.plots.diagnostics:plot_agreement",
        finding="loopjax.report.diagnostic_findings:overlap",
        prompts=20,
        settings=("training", "lens_data"),
        needs_lens=True,
        windows=True,
    ),
    Diagnostic(
        name="exit_accuracy",
        title="accuracy on tasks if the model stopped before each layer",
        section="Early exits",
        caption="Accuracy at each exit, and of the whole model at the right ({of}).",
        result="loopjax.analysis.early_exit:ExitAccuracy",
        run="loopjax.analysis.exit_accuracy:run",
        plot="loopjax.plots.accuracy:plot_exit_accuracy",
        finding="loopjax.report.diagnostic_findings:exit_accuracy",
        tables="loopjax.report.tables:whole_model_accuracy",
        prompts=0,
        settings=("training", "lens_data", "tasks", "limit", "data_dir"),
        needs_lens=True,
        windows=True,
        needs=("lm_eval", "eval"),
    ),
    Diagnostic(
        name="norms",
        title="norm of the residual stream, and what attention, MLP and layer add to it",
        section="Residual stream",
        shows="The norm of the residual stream at each executed layer; the size of what attention, "
        "MLP and the whole layer add, relative to it; and the cosine between the two.",
        look="A curve that repeats with every block (each pass of a loop, or as many layers as one "
        "growth step adds) means that the model does similar work at the same place of each block; "
        "the table measures this, and what short stacks give by chance.",
        caption="Norms, relative contributions and cosines, means over tokens ({of}).",
        result="loopjax.analysis.norms:Norms",
        run="loopjax.analysis.norms:run",
        plot="loopjax.plots.diagnostics:plot_norms",
        marks_blocks=True,
        finding="loopjax.report.diagnostic_findings:norms",
        tables="loopjax.report.tables:cycles_of_norms",
        prompts=20,
    ),
    Diagnostic(
        name="trajectories",
        title="whether the state of a loop settles, drifts or rotates, and which answers change",
        section="Trajectories of loops",
        shows="The state after each repetition of a loop, also beyond those of its plan (vertical line): its "
        "distance to the state before, the angle between successive updates, and the answers if the "
        "loop ended there and the rest of the model ran.",
        look="A distance that falls to 0 is a fixed point, which attracts if the spectral radius is below "
        "1. A constant distance with an angle near 0 is a drift, with a larger angle an orbit. Where the "
        "answers no longer change, further repetitions are of no use; where they change and fewer are "
        "right, they do harm.",
        caption="The loop over its repetitions, means over tokens ({of}).",
        result="loopjax.analysis.trajectories:Trajectories",
        run="loopjax.analysis.trajectories:run",
        plot="loopjax.plots.trajectories:plot",
        finding="loopjax.report.diagnostic_findings:trajectories",
        prompts=10,
        settings=("repetitions",),
        windows=True,
        loops=True,
    ),
    Diagnostic(
        name="future_local",
        title="change of one layer's update at later tokens when only it misses an ablated layer",
        section="Effects of ablating a layer",
        shows="Row s, column l: relative change of the update of layer l when layer s is ablated; 0 "
        "is no change, 1 is a change as large as the update.",
        look="A strong column is a layer that reads what earlier tokens computed in many layers; a "
        "strong row is a layer that many others depend on. Strong columns at equal distances are a "
        "cycle; the table measures it, and what short stacks give by chance.",
        caption="Effects on later tokens, where only the measured layer misses the ablated one ({of}).",
        result="loopjax.analysis.effects:Effects",
        run="loopjax.analysis.effects:run_future_local",
        plot="loopjax.plots.diagnostics:plot_future_local",
        marks_blocks=True,
        finding="loopjax.report.diagnostic_findings:future_local",
        tables="loopjax.report.tables:cycles_of_effects",
        prompts=10,
    ),
    Diagnostic(
        name="future",
        title="change of later layers at later tokens, everything after the ablated layer recomputed",
        section="Effects of ablating a layer",
        caption="Effects on later tokens, everything after the ablated layer recomputed ({of}).",
        result="loopjax.analysis.effects:Effects",
        run="loopjax.analysis.effects:run_future",
        plot="loopjax.plots.diagnostics:plot_future",
        marks_blocks=True,
        finding="loopjax.report.diagnostic_findings:effects",
        prompts=10,
    ),
    Diagnostic(
        name="current_attention",
        title="effects of ablating a layer's attention, at all tokens",
        section="Effects of ablating a layer",
        caption="Effects of ablating a layer's attention at all tokens ({of}).",
        result="loopjax.analysis.effects:Effects",
        run="loopjax.analysis.effects:run_current_attention",
        plot="loopjax.plots.diagnostics:plot_current_attention",
        marks_blocks=True,
        finding="loopjax.report.diagnostic_findings:effects",
        prompts=20,
    ),
    Diagnostic(
        name="similarity",
        title="similarity of blocks of layers in their feed-forward weights",
        section="Similarity of blocks",
        shows="Cosine similarity of the feed-forward weights of every two blocks of layers; 1 for "
        "equal blocks.",
        look="A cosine near 1 means that two blocks are nearly equal, for instance copies that have "
        "not diverged; near 0 they are unrelated.",
        caption="Feed-forward weights of blocks, above the diagonal ({of}).",
        result="loopjax.analysis.similarity:Similarity",
        run="loopjax.analysis.similarity:run",
        plot="loopjax.plots.diagnostics:plot_similarity",
        finding="loopjax.report.diagnostic_findings:similarity",
        prompts=0,
        settings=("block",),
        windows=True,
    ),
)
DIAGNOSTICS = {row.name: row for row in _ROWS}


def defaults() -> list[str]:
    """What `--what all` runs: all but those that first train a lens, which takes long."""
    return [name for name, row in DIAGNOSTICS.items() if not row.needs_lens]
