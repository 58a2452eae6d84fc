"""Compares runs in one self-contained HTML page: a table, curves against steps and FLOPs."""

import base64
import dataclasses
import html
import json
import pathlib

from loopjax import figure
from loopjax.errors import UserError
from loopjax.figure import COLOURS, INK
from loopjax.log import duration, read_rows

_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that are compared with one another.

    Attributes:
      title, text: heading and the paragraph below it (HTML).
      runs: directories of finished runs.
      metric: column of metrics.jsonl that is drawn; by default the held-out NLL.
      label: what its axis says.
      accuracies: sources whose held-out accuracy gets a column, with the column's title.
    """

    title: str
    text: str
    runs: list
    metric: str = "eval/nll"
    label: str = "held-out NLL (nats per token)"
    accuracies: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a finished run left behind."""

    name: str
    phases: list[dict]
    result: dict
    rows: list[dict]

    @property
    def plan(self) -> str:
        """The plan, with the way to it: "4 → 8 → 12 (lidas)"."""
        plans = list(dict.fromkeys(phase["plan"] for phase in self.phases))
        operators = {p["operator"] for p in self.phases if p["plan"] != plans[0]}
        return " → ".join(plans) + (f" ({', '.join(sorted(operators))})" if operators else "")

    @property
    def label(self) -> str:
        """For a legend."""
        n = self.result["parameters"]
        short = next(f"{n / size:.3g}{unit}" for size, unit in _UNITS if n >= size)
        return f"{self.name}: {self.plan}, {short} parameters"

    def curve(self, metric: str):
        """(steps, FLOPs, values) of a metric, the final evaluation included."""
        points = [(r["step"], r["flops"], r[metric]) for r in self.rows if metric in r]
        final = self.result["heldout"].get(metric.removeprefix("eval/"))
        if metric.startswith("eval/") and final is not None:
            points.append((self.result["steps"], self.result["training_flops"], final))
        return list(zip(*points, strict=True)) if points else [(), (), ()]


def load_run(directory) -> Finished:
    """Reads the directory of a finished run."""
    directory = pathlib.Path(directory)
    try:
        result = json.loads((directory / "result.json").read_text())
        phases = json.loads((directory / "phases.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is not the directory of a finished run: {error}") from None
    return Finished(directory.name, phases, result, read_rows(directory / "metrics.jsonl"))


def write_report(path, groups: list[Group], title: str = "loopjax", lead: str = "") -> None:
    """Writes the page, and its figure as a PNG beside it."""
    path = pathlib.Path(path)
    loaded = [(group, [load_run(run) for run in group.runs]) for group in groups]
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = picture(loaded)
    path.with_suffix(".png").write_bytes(drawn)
    sections = [
        f"<h2>{html.escape(group.title)}</h2>\n<p>{group.text}</p>\n{table(group, runs)}"
        for group, runs in loaded
    ]
    versions = loaded[0][1][0].result["versions"]
    page = _PAGE.format(
        title=html.escape(title),
        lead=lead,
        picture=base64.b64encode(drawn).decode(),
        sections="\n".join(sections),
        device=html.escape(", ".join(sorted({r.result["device"] for _, rs in loaded for r in rs}))),
        versions=html.escape(", ".join(f"{k} {v}" for k, v in versions.items())),
    )
    path.write_text(page)


def table(group: Group, runs: list[Finished]) -> str:
    """The HTML table of a group."""
    heads = ["run", "plan", "unique layers", "effective layers", "parameters", "training FLOPs",
             "wall-clock", "NLL (held out)"]  # fmt: skip
    heads += [title for _, title in group.accuracies] or ["accuracy"]
    rows = []
    for colour, run in zip(COLOURS * len(runs), runs, strict=False):
        r, heldout = run.result, run.result["heldout"]
        names = [f"{source}/accuracy" for source, _ in group.accuracies] or ["accuracy"]
        cells = [
            f'<span class="dot" style="background:{colour}"></span>{html.escape(run.name)}',
            html.escape(run.plan),
            str(r["unique_layers"]),
            str(r["effective_layers"]),
            f"{r['parameters']:,}",
            f"{r['training_flops']:.3g}",
            duration(r["wall_clock_s"]),
            f"{heldout['nll']:.4f}" if "nll" in heldout else "–",
            *(f"{heldout[name]:.1%}" if name in heldout else "–" for name in names),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def picture(loaded: list[tuple[Group, list[Finished]]]) -> bytes:
    """PNG: a row per group, its metric against steps (left) and training FLOPs (right)."""
    fig = figure.new(10, 3.4 * len(loaded))
    axes = fig.subplots(len(loaded), 2, squeeze=False, sharey="row")
    for (group, runs), (by_steps, by_flops) in zip(loaded, axes, strict=True):
        for colour, run in zip(COLOURS * len(runs), runs, strict=False):
            steps, flops, values = run.curve(group.metric)
            for axis, x in ((by_steps, steps), (by_flops, flops)):
                axis.plot(x, values, color=colour, linewidth=2, label=run.label)
                axis.plot(x[-1:], values[-1:], "o", color=colour, markersize=5)
        by_steps.set_title(group.title, loc="left", color=INK, fontsize=11, fontweight="bold")
        by_steps.set_ylabel(group.label, color=INK)
        by_steps.set_xlabel("training steps", color=INK)
        by_flops.set_xlabel("training FLOPs", color=INK)
        by_flops.legend(frameon=False, fontsize=9, labelcolor=INK)
        for axis in (by_steps, by_flops):
            figure.plain(axis)
    return figure.png(fig)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #1f2937; background: #fff;
       margin: 2.5rem auto; max-width: 66rem; padding: 0 1.25rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .3rem; }}
p {{ max-width: 46rem; margin: .3rem 0 .9rem; }}
img {{ width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th {{ text-align: right; font-weight: 600; color: #4b5563; border-bottom: 2px solid #e5e7eb; }}
td {{ text-align: right; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }}
th, td {{ padding: .4rem .7rem; }}
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
.dot {{ display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em; }}
footer {{ margin-top: 2.5rem; color: #6b7280; font-size: .85rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{lead}</p>
<img alt="Curves of the runs against training steps and training FLOPs"
 src="data:image/png;base64,{picture}">
{sections}
<footer><p>{device}. {versions}</p>
<p>FLOPs by formula (6 P + 12 E D T per token: P matrix parameters executed, E executed layers, D
width, T context); wall-clock includes compilation, evaluation and checkpoints.</p></footer>
</body>
</html>
"""
