"""The page: sections about one or more groups of models, in one self-contained HTML file.

Figures are SVG with searchable text; their numbers are beside them as JSON, which `page.js` reads.
Without JavaScript, all figures and tables are visible, models can be hidden, and the page is light or
dark as the reader's system is.
"""

import html
import json
import pathlib
import re
import shlex
from importlib import resources

from loopjax import outputs, paths
from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.checkpoint import versions
from loopjax.errors import UserError
from loopjax.files import write_text
from loopjax.plots import figure, roles
from loopjax.report import collect, families, finetune_curves, legends, svg, theme
from loopjax.report.context import Context, Group
from loopjax.report.elements import Picture, Text, table_html, text_html
from loopjax.report.sections import Section, sections


def write_report(path, groups: list[Group], title: str = "loopjax", lead: str = "", figures=None):
    """Writes the page.

    Args:
      lead: a paragraph below the title (HTML).
      figures: a directory; each figure is also written there, as PDF and PNG.

    Raises UserError if a path is neither a model nor a result, if the page cannot be written, or if
    matplotlib is not installed.
    """
    path = paths.of(path)
    if not figure.installed():
        raise UserError("a report needs matplotlib: pip install 'loopjax[report]'")
    outputs.check_file(path, "")
    if figures:
        outputs.check_directory(figures, "--figures")
    page = _Page(figures and paths.of(figures))
    body = [page.group(group, number) for number, group in enumerate(groups)]
    text = _fill(
        _resource("page.html"), title=html.escape(title), lead=lead and f"<p>{lead}</p>",
        style="\n".join([theme.css(page.colors), _resource("page.css"), page.rules()]),
        contents=page.contents(), legend=page.legend(), body="\n".join(body), notes=page.notes(),
        footer=page.footer(), data=page.data(), script=_resource("page.js"),
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
    """The parts of a page, collected over its groups."""

    def __init__(self, figures: pathlib.Path | None):
        self.figures = figures
        self.numbers: dict[str, dict] = {}  # of each figure, by its id
        self.shown: list[tuple[str, str, str, str]] = []  # of each entry: group, label, word, sign
        self.colors: set[str] = set()  # of all figures
        self.headings: list[tuple[int, str, str]] = []  # level, title, id
        self.skipped: list[str] = []
        self.devices: dict[str, None] = {}

    def group(self, group: Group, number: int) -> str:
        """The HTML of a group."""
        collection = collect.collect(group.paths)
        entries = collection.entries
        colored, bases = finetune_curves.shown(entries)
        looks = _looks(colored, bases)
        owners = {label: f"m{len(self.shown) + k}" for k, label in enumerate(looks)}
        self.shown += [
            (group.title, k, word, legends.marker(looks[k])) for k, word in owners.items()
        ]
        self.colors |= {look.color for look in looks.values()}
        self.skipped += collection.notes
        self.devices |= dict.fromkeys(e.model.result["device"] for e in entries if e.model.result)
        without = [entry for entry in entries if not finetune_curves.sources(entry)]
        level = 3 if group.title else 2
        parts = []
        if group.title:
            word = self.listed(2, group.title)
            parts.append(f'<h2 id="{word}">{html.escape(group.title)}</h2>\n<p>{group.text}</p>')
        for section in sections():
            models = collect.Collection(entries if section.finetuned else without)
            context = Context(models, looks, group)
            if models.entries and (elements := section.build(context)):
                body = self.elements(elements, owners, looks, number, section)
                word = self.listed(level, section.title)
                parts.append(_section_html(section, word, level, body))
        if group.wanted and (commands := wanted(entries)):
            parts.append(_wanted_html(commands, self.listed(level, "Missing results"), level))
        return "\n".join(parts)

    def listed(self, level: int, title: str) -> str:
        """The id of a part of the page, which is now in its contents."""
        word = f"s{len(self.headings)}"
        self.headings.append((level, title, word))
        return word

    def elements(
        self, elements, owners: dict, looks: dict, group: int, section: Section
    ) -> list[str]:
        """The HTML of a section's elements; figures with one legend in a row show it once."""
        parts, before = [], None
        for element in elements:
            if isinstance(element, Text):
                text = text_html(element)
                if parts and parts[-1].startswith("<figure id="):  # beside it, where there is room
                    text = f'<div class="pair">{parts.pop()}{text}</div>'
            elif isinstance(element, Picture):
                text, before = self.picture(element, owners, group, section, before)
            else:
                text, before = table_html(element, owners, looks), None
            parts.append(text)
        return parts

    def picture(self, picture: Picture, owners: dict, group: int, section: Section, before):
        """(HTML of a picture, its legend); the legend is left out where it is the one before."""
        key = f"f{len(self.numbers)}"
        if self.figures:
            self.save(picture, f"{group + 1}-" if group else "")
        drawn = svg.convert(
            picture.figure,
            owners,
            f"{section.title}. {picture.caption} Models: {', '.join(owners)}.",
            key,
        )
        self.numbers[key] = drawn.numbers
        self.colors |= drawn.colors
        legend = legends.as_html(drawn.legend)
        note = (
            f" Lines with more than {svg.POINTS:,} points are thinned; extremes are kept."
            * drawn.thinned
        )
        label = html.escape(f"{section.title}: {picture.caption} Arrow keys read its values.")
        text = (
            f'<figure id="{key}" style="width:{drawn.width}px">{legend if legend != before else ""}'
            f'<div class="drawing" tabindex="0" role="group" aria-label="{label}">{drawn.svg}</div>'
            f"<figcaption>{html.escape(picture.caption + note)}</figcaption>"
            f"{_values(drawn.numbers)}</figure>"
        )
        return text, legend

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
        """A check box for each entry."""
        boxes = []
        before = ""
        for group, label, word, sign in self.shown:
            if group != before:
                boxes.append(f'<span class="of">{html.escape(group)}</span>')
            before = group
            boxes.append(
                f'<label><input type="checkbox" id="{word}" checked>'
                f"{sign}<span>{html.escape(label)}</span></label>"
            )
        return "\n".join(boxes)

    def contents(self) -> str:
        """Links to the sections."""
        links = [
            f'<a href="#{word}"{" class=group" if level == 2 and grouped else ""}>{html.escape(title)}</a>'
            for grouped in [any(level == 3 for level, _, _ in self.headings)]
            for level, title, word in self.headings
        ]
        return "\n".join(links)

    def rules(self) -> str:
        """CSS that hides a model whose box is not checked, also without JavaScript."""
        return "\n".join(
            f"body:has(#{word}:not(:checked)) [data-model={word}] {{ display: none; }}"
            for _, _, word, _ in self.shown
        )

    def notes(self) -> str:
        if not self.skipped:
            return ""
        items = "".join(f"<li>{html.escape(note)}</li>" for note in self.skipped)
        return f"<section><h2>Skipped files</h2><ul>{items}</ul></section>"

    def footer(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in versions().items())
        devices = f"Trained on {', '.join(self.devices)}. " if self.devices else ""
        return html.escape(f"{devices}Report created with {packages}.")

    def data(self) -> str:
        # "</script>" or "<!--<script>" in a label would change where the element ends.
        text = json.dumps(self.numbers, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c")


def _looks(colored: list[collect.Entry], bases: list[str]) -> dict[str, roles.Look]:
    """{label: look} of the entries with a color of their own, and of base models known by name only."""
    looks = families.looks(families.families(colored))
    looks = {entry.label: looks[entry.label] for entry in colored}
    taken = sum(kind.role not in roles.ROLES for kind in families.kinds(colored).values())
    return looks | {name: roles.look("other", repeated=taken + k) for k, name in enumerate(bases)}


def _section_html(section: Section, word: str, level: int, body: list[str]) -> str:
    look = (
        f'<p class="look"><b>How to read it:</b> {html.escape(section.look)}</p>\n'
        if section.look
        else ""
    )
    return (
        f'<section id="{word}">\n<h{level}>{html.escape(section.title)}</h{level}>\n'
        f"<p>{html.escape(section.shows)}</p>\n{look}" + "\n".join(body) + "\n</section>"
    )


ROWS = 64  # largest number of rows of a table of numbers below a figure


def _values(numbers: dict) -> str:
    """The numbers of a figure's lines as tables to unfold, if there are few."""
    tables = []
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
        tables.append(
            f'<div class="wide" tabindex="0"><table><caption>{html.escape(axis["title"] or axis["ylabel"])}'
            f'</caption><thead><tr><th scope="col">{html.escape(axis["xlabel"])}</th>{heads}</tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    return f"<details><summary>Numbers</summary>{''.join(tables)}</details>" if tables else ""


def wanted(entries: list[collect.Entry]) -> dict[str, list[str]]:
    """{title of a section: commands whose results it would show too}."""
    by_title: dict[str, list[str]] = {}
    for section in sections():
        lines = []
        for entry in entries:
            missing = [kind for kind in section.needs if kind not in entry.results]
            if "nll" in missing and entry.nll is not None:
                missing.remove("nll")
            if not finetune_curves.sources(entry):
                lines += commands(entry, missing)
        if section.lacking:
            lines += [_evaluation(*evaluation) for evaluation in section.lacking(entries)]
        if lines:
            by_title[section.title] = lines
    return by_title


def commands(entry: collect.Entry, kinds: list[str]) -> list[str]:
    """The commands that compute these kinds of results of an entry."""
    lines = []
    for kind in kinds:
        if kind.startswith("intervene "):
            if entry.plan.windows:
                continue
            op = kind.removeprefix("intervene ")
            size = {"swap": "1,2,4", "skip": "1,2,4"}.get(op, "4")
            times = ("--times", "1,2") if op == "repeat" else ()
            lines.append(_command(entry, "intervene", op, "--op", op, "--size", size, *times))
        elif kind == "eval":
            lines.append(_command(entry, "eval", kind, "--tasks", "paper_suite"))
        elif kind in ("icl", "nll"):
            lines.append(_command(entry, kind, kind))
    diagnostics = [kind for kind in kinds if kind in DIAGNOSTICS]
    if diagnostics := [k for k in diagnostics if not DIAGNOSTICS[k].requirement(entry.plan)]:
        lines.append(_command(entry, "analyze", "signature", "--what", ",".join(diagnostics)))
    return lines


def _evaluation(entry: collect.Entry, of: str, tasks: list[str], settings: dict) -> str:
    """The command that evaluates an entry with the settings of the entries it is compared with."""
    flags = ["--tasks", ",".join(tasks)]
    for name in ("num_fewshot", "limit", "data_dir"):
        if settings.get(name) is not None:
            flags += [f"--{name.replace('_', '-')}", str(settings[name])]
    return _command(entry, "eval", f"finetuning {of}".strip(), *flags)


def _command(entry: collect.Entry, verb: str, name: str, *flags: str) -> str:
    """A command whose output is where a report finds it."""
    model = entry.model
    at = "" if entry.own else f"-{entry.plan}"
    depth = [] if entry.own else ["--depth", str(entry.plan)]
    if model.directory.resolve() != paths.of(model.checkpoint).resolve():
        at = f"-{model.step}{at}"
    name = re.sub(r"[^\w.]+", "-", name) + at + ("" if verb == "analyze" else ".json")
    words = ["loopjax", verb, "--checkpoint", model.checkpoint, *depth, *flags]
    return shlex.join([*words, "--output", str(model.directory / name)])


def _wanted_html(commands: dict[str, list[str]], word: str, level: int) -> str:
    items = "\n".join(
        f"<h{level + 1}>{html.escape(title)}</h{level + 1}>"
        f'<pre tabindex="0">{html.escape(chr(10).join(lines))}</pre>'
        for title, lines in commands.items()
    )
    return (
        f'<section class="wanted" id="{word}"><h{level}>Missing results</h{level}>\n<p>These commands compute the results '
        "that this page lacks. Run them, then the same report command again.</p>\n"
        "<details><summary>Commands</summary>\n"
        f"{items}\n</details></section>"
    )
