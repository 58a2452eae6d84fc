"""Figures 5 and 11, and 3, 6, 9 to 11 of Kapl et al. 2025: layers swapped, skipped, reversed."""

import statistics

import experiment
import stored
import summary
from claims import Claim, effect

from loopjax.data.floors import mean_floors
from loopjax.plots import figure, spread
from loopjax.plots.accuracy import plot_interventions
from loopjax.run_record import spread as in_words

TITLE = "Layers swapped, skipped and reversed (Figures 5 and 11)"
PAPER = (
    "Grown models keep most of their accuracy when middle blocks of up to four layers are swapped or "
    "skipped, where the standard model collapses; single layers may be swapped in all but the fully "
    "looped model, whose passes depend on the order inside the block."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    models = runs(study)
    block = study.scale.block
    edited = {
        op: {
            role: [study.intervene(run, op, sizes, tasks=study.scale.tasks) for run in directories]
            for role, directories in models.items()
        }
        for op, sizes in (("swap", (1, block)), ("skip", (1, block)), ("reverse", (block,)))
        if (op, block) != ("reverse", 2)  # the same as swapping two single layers
    }
    kept, rows, remaining = {}, [], {}
    for op, by_role in edited.items():
        for size in sorted({row["size"] for row in by_role["standard"][0]["rows"]}):
            shares = {role: _kept(results, size, block) for role, results in by_role.items()}
            kept |= {(op, size, role): share for role, share in shares.items()}
            cells = (in_words(share, 2) if share else "–" for share in shares.values())
            rows.append((f"{op} {size}", *cells))
            remaining[f"{op} {size}"] = {role: share for role, share in shares.items() if share}
    finding = (
        "Remaining share of the unmodified accuracy above chance, mean over tasks and all starts "
        "after the first block."
    )
    claims = [
        _more(f"LIDAS keeps more than the standard model when blocks of {block} layers are swapped",
              "keeps most", kept["swap", block, "lidas"], kept["swap", block, "standard"]),
        _more("The standard model keeps more than the loop when single layers are swapped",
              "keeps most", kept["swap", 1, "standard"], kept["swap", 1, "loop"]),
    ]  # fmt: skip
    by_start = {
        op: {role: list(map(stored.edited, results)) for role, results in by_role.items()}
        for op, by_role in edited.items()
    }
    data = {
        "floor": _floor(edited["skip"], study.scale.tasks), "remaining": remaining,
        "by_start": by_start,
    }  # fmt: skip
    return experiment.Outcome(finding, claims, ("edit (layers)", *ROLES), rows, data)


def _more(text: str, paper: str, above: list[float], below: list[float]) -> Claim:
    """A claim on shares by seed."""
    if len(above) != len(below) or not above:
        blocked = "A model that has learned no task has no accuracy to lose."
        return Claim(text, paper, effect([0.0]), 0.05, blocked=blocked)
    return Claim(text, paper, effect(summary.differences(above, below)), 0.05)


def _floor(by_role: dict, tasks) -> dict | None:
    """{"rule", "share"}: what the best trivial rule keeps of the accuracy above chance, mean over models.

    None if its accuracy is not known, or if it is chance.
    """
    known = mean_floors(tasks)
    shares = []
    for result in (result for results in by_role.values() for result in results):
        plain = statistics.fmean(result["unmodified"][task]["accuracy"] for task in tasks)
        if known and known.best[1] > known.chance and plain > known.chance:
            shares.append((known.best[1] - known.chance) / (plain - known.chance))
    return {"rule": known.best[0], "share": statistics.fmean(shares)} if shares else None


def figures(data: dict) -> dict:
    """The share that remains after each edit; accuracies by the first edited layer, where stored."""
    by_start = data.get("by_start", {})
    drawn = {f"order-{op}": plot_interventions(by_role) for op, by_role in by_start.items()}
    return {"order": _remaining(data["remaining"], data["floor"])} | drawn


def _remaining(shares: dict, floor: dict | None):
    fig = figure.new(5.6, 3.2)
    axis = fig.subplots()
    roles = [role for role in ROLES if any(role in by_role for by_role in shares.values())]
    looks, shifts, lines, seeds = figure.looks(roles), figure.shifts(roles), {}, []
    for role in roles:
        at = [k for k, by_role in enumerate(shares.values()) if role in by_role]
        spreads = [spread.of(by_role[role]) for by_role in shares.values() if role in by_role]
        seeds += [one.n for one in spreads]
        lines[role] = figure.curve(
            axis, at, [one.mean for one in spreads], role, looks[role], ends=spread.ends(spreads),
            shift=2 * shifts[role], linestyle="none", markersize=6,
        )  # fmt: skip
    figure.plain(axis)
    lines["unmodified"] = axis.axhline(1, color=figure.INK, linestyle="--", linewidth=1, zorder=1)
    if floor:
        axis.set_ylim(min(axis.get_ylim()[0], floor["share"] - 0.05), axis.get_ylim()[1])
        lines |= figure.floors(axis, best=(floor["rule"], floor["share"]))
    figure.ticks(axis, range(len(shares)), [_edit(name) for name in shares])
    axis.set_xlim(-0.5, len(shares) - 0.5)
    figure.labels(axis, "", "share of accuracy above chance kept")
    figure.legend(fig, lines, spread.note(seeds))
    return fig


def _edit(name: str) -> str:
    """ "swap 2" as a tick: what is done to how many layers."""
    op, size = name.split()
    if op == "swap":
        return "swap two\nlayers" if size == "1" else f"swap blocks\nof {size} layers"
    return f"{op} {size}\nlayer{'s' * (size != '1')}"


def _kept(results: list[dict], size: int, first: int) -> list[float]:
    """Remaining share of the accuracy above chance, for starts from `first` on, by seed.

    Leaves out tasks that a model has not learned, and models that have learned none.
    """
    kept = []
    for result in results:
        shares = []
        for task in result["metrics"]:
            chance = result["chance"][task]
            plain = result["unmodified"][task]["accuracy"]
            shares += [
                (row["tasks"][task]["accuracy"] - chance) / (plain - chance)
                for row in result["rows"]
                if plain > chance + 0.02 and row["size"] == size and row["start"] >= first
            ]
        kept += [statistics.fmean(shares)] if shares else []
    return kept


if __name__ == "__main__":
    experiment.main(__file__)
