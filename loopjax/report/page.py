"""The page: sections of one or several groups of models, in one HTML file that loads nothing.

Figures are SVG with text that can be searched; beside them stand their numbers as JSON, which
`page.js` reads. Without JavaScript all figures and tables are there, and models can be hidden.
"""

import dataclasses
import functools
import html
import json
import pathlib
import re
import shlex
from collections.abc import Callable
from importlib import resources

from loopjax.checkpoint import versions
from loopjax.errors import UserError
from loopjax.files import write_text
from loopjax.plots import figure
from loopjax.plots.diagnostics import PLOTS
from loopjax.report import collect, figures, finetune_curves, svg, tables
from loopjax.report.elements import Picture, table_html
from loopjax.report.sections import SECTIONS, Section


@dataclasses.dataclass(frozen=True)
class Group:
    """Models that are compared with one another.

    Attributes:
      title, text: heading and the paragraph below it (HTML); no heading where there is none.
      paths: runs, checkpoints and results, each maybe "LABEL=PATH".
      metric: column of metrics.jsonl that is drawn; by default the held-out NLL.
      label: what its axis says.
      accuracies: sources whose held-out accuracy counts beside the NLL, with its title.
      wanted: whether the page ends with what could be added, and how.
    """

    title: str
    text: str
    paths: list
    metric: str = "eval/nll"
    label: str = figures.NLL
    accuracies: tuple[tuple[str, str], ...] = ()
    wanted: bool = True


def write_report(path, groups: list[Group], title: str = "loopjax", lead: str = "", figures=None):
    """Writes the page.

    Args:
      lead: a paragraph below the title (HTML).
      figures: a directory; each figure is written there too, as PDF and PNG.

    Raises UserError where a path is no model and no result, or the page cannot be written.
    """
    path = pathlib.Path(path)
    figure.new(1, 1)  # is matplotlib there?
    page = _Page(figures and pathlib.Path(figures))
    body = [page.group(group, number) for number, group in enumerate(groups)]
    text = _fill(
        _resource("page.html"), title=html.escape(title), lead=lead and f"<p>{lead}</p>",
        style=_resource("page.css") + page.rules(), legend=page.legend(), body="\n".join(body),
        notes=page.notes(), footer=page.footer(), data=page.data(), script=_resource("page.js"),
    )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _resource(name: str) -> str:
    return (resources.files("loopjax.report") / name).read_text()


def _fill(text: str, **parts: str) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], text)


class _Page:
    """What groups of models add up to."""

    def __init__(self, figures: pathlib.Path | None):
        self.figures = figures
        self.numbers: dict[str, dict] = {}  # of each figure, by its id
        self.shown: list[tuple[str, str, str, str]] = []  # of each entry: group, label, word, color
        self.left_out: list[str] = []
        self.devices: dict[str, None] = {}

    def group(self, group: Group, number: int) -> str:
        """The HTML of a group."""
        entries, notes = collect.collect(group.paths)
        shown, bases = finetune_curves.shown(entries)
        colors = figure.colors([*(entry.label for entry in shown), *bases])
        owners = {label: f"m{len(self.shown) + k}" for k, label in enumerate(colors)}
        self.shown += [(group.title, label, word, colors[label]) for label, word in owners.items()]
        self.left_out += notes
        self.devices |= dict.fromkeys(e.model.result["device"] for e in entries if e.model.result)
        special = {
            tables.models: {"accuracies": group.accuracies},
            figures.training: {"metric": group.metric, "label": group.label},
            figures.costs: {"accuracies": group.accuracies},
        }
        made, level = [], 3 if group.title else 2
        for section in SECTIONS:
            build: Callable = functools.partial(section.build, **special.get(section.build, {}))
            chosen = [
                entry for entry in entries if section.tuned or not finetune_curves.sources(entry)
            ]
            if chosen and (parts := build(chosen, colors)):
                show = functools.partial(self.part, owners=owners, colors=colors, group=number,
                                         section=section)  # fmt: skip
                made.append(
                    f"<section>\n<h{level}>{html.escape(section.title)}</h{level}>\n"
                    f"<p>{html.escape(section.shows)}</p>\n"
                    f'<p class="look"><b>Look for:</b> {html.escape(section.look)}</p>\n'
                    + "\n".join(show(part) for part in parts)
                    + "\n</section>"
                )
        if group.title:
            made.insert(0, f"<h2>{html.escape(group.title)}</h2>\n<p>{group.text}</p>")
        if group.wanted and (commands := wanted(entries)):
            made.append(_wanted_html(commands, level))
        return "\n".join(made)

    def part(self, part, *, owners, colors, group: int, section: Section) -> str:
        """The HTML of a picture or a table."""
        if not isinstance(part, Picture):
            return table_html(part, owners, colors)
        key = f"f{len(self.numbers)}"
        if self.figures:
            self.save(part, f"{group + 1}-" if group else "")
        names = ", ".join(label for label in owners)
        drawing, numbers, thinned = svg.convert(
            part.figure, owners, f"{section.title}. {part.caption} Models: {names}.", key
        )
        self.numbers[key] = numbers
        note = f" Lines of more than {svg.POINTS:,} points are thinned, extremes kept." * thinned
        values = _values(numbers)
        return (
            f'<figure id="{key}"><div class="drawing">{drawing}</div>'
            f"<figcaption>{html.escape(part.caption + note)}</figcaption>{values}</figure>"
        )

    def save(self, part: Picture, prefix: str) -> None:
        name = prefix + re.sub(r"[^\w.-]+", "-", part.name).strip("-").lower()
        try:
            self.figures.mkdir(parents=True, exist_ok=True)
            for kind in ("pdf", "png"):
                part.figure.savefig(self.figures / f"{name}.{kind}", dpi=200)
        except OSError as error:
            raise UserError(
                f"--figures {self.figures} cannot be written: {error.strerror}"
            ) from None

    def legend(self) -> str:
        """A box to tick for each entry."""
        made, before = [], ""
        for group, label, word, color in self.shown:
            if group != before:
                made.append(f'<span class="of">{html.escape(group)}</span>')
            before = group
            made.append(
                f'<label><input type="checkbox" id="{word}" checked>'
                f'<span class="dot" style="background:{color}"></span>{html.escape(label)}</label>'
            )
        return "\n".join(made)

    def rules(self) -> str:
        """A model whose box is not ticked is hidden, also without JavaScript."""
        return "\n".join(
            f"body:has(#{word}:not(:checked)) [data-model={word}] {{ display: none; }}"
            for _, _, word, _ in self.shown
        )

    def notes(self) -> str:
        if not self.left_out:
            return ""
        items = "".join(f"<li>{html.escape(note)}</li>" for note in self.left_out)
        return f"<section><h2>Left out</h2><ul>{items}</ul></section>"

    def footer(self) -> str:
        said = ", ".join(f"{name} {version}" for name, version in versions().items())
        devices = f"Trained on {', '.join(self.devices)}. " if self.devices else ""
        return html.escape(f"{devices}Made by {said}.")

    def data(self) -> str:
        # "</script>" in a label would end the element.
        return json.dumps(self.numbers, separators=(",", ":"), allow_nan=False).replace(
            "</", "<\\/"
        )


ROWS = 64  # of a table of numbers below a figure


def _values(numbers: dict) -> str:
    """The numbers of a figure's lines as tables to be folded out, where they are few."""
    made = []
    for axis in numbers["axes"]:
        lines = [line for line in axis["lines"] if "points" in line]
        x = sorted({value for line in lines for value in line["points"][0]})
        if not lines or len(x) > ROWS:
            continue
        heads = "".join(
            f'<th scope="col" data-model="{line["model"]}">{html.escape(line["label"])}</th>'
            for line in lines
        )
        rows = []
        for at in x:
            cells = []
            for line in lines:
                value = dict(zip(*line["points"], strict=True)).get(at)
                text = "–" if value is None else f"{value:.4g}"
                cells.append(f'<td data-model="{line["model"]}">{text}</td>')
            rows.append(f'<tr><th scope="row">{at:g}</th>{"".join(cells)}</tr>')
        made.append(
            f'<div class="wide"><table><caption>{html.escape(axis["title"] or axis["ylabel"])}'
            f'</caption><thead><tr><th scope="col">{html.escape(axis["xlabel"])}</th>{heads}</tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    return f"<details><summary>Numbers</summary>{''.join(made)}</details>" if made else ""


def wanted(entries: list[collect.Entry]) -> dict[str, list[str]]:
    """{title of a section: commands whose results it would show too}."""
    made: dict[str, list[str]] = {}
    for section in SECTIONS:
        lines = made[section.title] = []
        for entry in entries:
            missing = [kind for kind in section.needs if kind not in entry.results]
            if "nll" in missing and entry.nll is not None:
                missing.remove("nll")
            if not finetune_curves.sources(entry):
                lines += commands(entry, missing)
        if section.build is figures.finetuning:
            lines += [_evaluation(*about) for about in finetune_curves.missing(entries)]
    return {title: lines for title, lines in made.items() if lines}


def commands(entry: collect.Entry, kinds: list[str]) -> list[str]:
    """The commands that give these kinds of results of an entry."""
    made = []

    def add(verb, name, *flags):
        made.append(_command(entry, verb, name, *flags))

    for kind in kinds:
        if kind.startswith("intervene "):
            op = kind.removeprefix("intervene ")
            size = {"swap": "1,2,4", "skip": "1,2,4"}.get(op, "4")
            times = ("--times", "1,2") if op == "repeat" else ()
            add("intervene", op, "--op", op, "--size", size, *times)
        elif kind == "eval":
            add("eval", kind, "--tasks", "paper_suite")
        elif kind in ("icl", "nll"):
            add(kind, kind)
    if diagnostics := [kind for kind in kinds if kind in PLOTS]:
        add("analyze", "signature", "--what", ",".join(diagnostics))
    return made


def _evaluation(entry: collect.Entry, of: str, tasks: list[str], settings: dict) -> str:
    """The command that evaluates an entry as those were that it is drawn with."""
    flags = ["--tasks", ",".join(tasks)]
    for name in ("num_fewshot", "limit", "data_dir"):
        if settings.get(name) is not None:
            flags += [f"--{name.replace('_', '-')}", str(settings[name])]
    return _command(entry, "eval", f"finetuning {of}".strip(), *flags)


def _command(entry: collect.Entry, verb: str, name: str, *flags: str) -> str:
    """A command whose output lies where a report finds it."""
    model, at = entry.model, "" if entry.own else f"-{entry.plan}"
    depth = [] if entry.own else ["--depth", str(entry.plan)]
    if model.directory.resolve() != pathlib.Path(model.checkpoint).resolve():
        at = f"-{model.step}{at}"
    name = re.sub(r"[^\w.]+", "-", name) + at + ("" if verb == "analyze" else ".json")
    words = ["loopjax", verb, "--checkpoint", model.checkpoint, *depth, *flags]
    return shlex.join([*words, "--output", str(model.directory / name)])


def _wanted_html(commands: dict[str, list[str]], level: int) -> str:
    items = "\n".join(
        f"<h{level + 1}>{html.escape(title)}</h{level + 1}>"
        f'<pre tabindex="0">{html.escape(chr(10).join(lines))}</pre>'
        for title, lines in commands.items()
    )
    return (
        f"<section><h{level}>What could be added</h{level}>\n<p>These commands leave results "
        "where the same report finds them.</p>\n<details><summary>Commands</summary>\n"
        f"{items}\n</details></section>"
    )
