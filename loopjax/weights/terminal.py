"""The result of `numbers.inspect` as text for a terminal of 80 columns."""

import datetime
import textwrap

from loopjax.depth import DepthPlan, Segment
from loopjax.lineage import compact
from loopjax.progress import duration
from loopjax.text_table import aligned

SHORT = {"attention_norm": "a.norm", "mlp_norm": "m.norm", "matrices": "matrix"}
ANSI = (34, 31, 32, 35, 33, 36, 94, 91, 92, 95, 93, 96)


def render(result: dict, *, layers: bool, color: bool) -> str:
    """The text of a result of `numbers.inspect`."""
    plan = result["plan"]
    lineage = result["lineage"]
    parts = [
        _head(result["checkpoint"]),
        f"Plan {plan['text']}: {plan['unique']} unique layers, {plan['executed']} executed",
        draw_plan(DepthPlan.parse(plan["text"])),
        "Lineage",
        _events(lineage["events"]),
        draw_descent(lineage, color=color),
        *_parameters(result["parameters"], result["checkpoint"]["mesh"]),
    ]
    if layers:
        parts += _layers(result["layers"])
    if "against" in result:
        parts += _comparison(result["against"], layers)
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(about: dict) -> str:
    written = "at an unknown time"
    if about["written"] is not None:
        written = datetime.datetime.fromtimestamp(about["written"]).strftime("%Y-%m-%d %H:%M:%S")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    mesh = ", ".join(f"{axis}={n}" for axis, n in about["mesh"].items())
    rows = [
        ("checkpoint", f"{about['directory']}/{about['step']}"),
        ("step", _step(about)),
        ("saved", f"{written}, after {duration(about['wall_clock_s'])} of training"),
        ("written by", f"{about['devices']} device{'s'[: about['devices'] > 1]}"
                       + (f" ({mesh})" if mesh else "")),
        ("format", str(about["format"])),
        ("versions", textwrap.fill(versions, 80, initial_indent=" " * 14,
                                   subsequent_indent=" " * 14)[14:]),
    ]  # fmt: skip
    if about["branched_from"]:
        rows.insert(1, ("branched from", about["branched_from"]))
    if source := about["source"]:
        text = f"{source['from']} ({source['architecture']}, {source['dtype']})"
        rows.insert(1, ("imported from", text))
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


def _step(about: dict) -> str:
    """Step and tokens; also the share of all steps, except for an imported model of zero steps."""
    share = (
        f" of {about['steps']:,} ({about['step'] / about['steps']:.0%})" if about["steps"] else ""
    )
    return f"{about['step']:,}{share}, {about['tokens']:,} tokens"


def table(heads, rows, left: int = 1, gap: int = 2) -> str:
    return "\n".join(aligned([heads, *rows], left, gap))


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def cosine(value: float | None) -> str:
    """Three digits; 1.000 only for exactly 1."""
    if value is None:
        return "–"
    return f"{value if value == 1 else min(value, 0.999):.3f}".replace("-0.000", "0.000")


def draw_plan(plan: DepthPlan, width: int = 80) -> str:
    """Segments as boxes of layer indices, a loop as an arrow back below its box.

    Long segments are shortened until the drawing fits; if it still does not fit, it is wrapped.
    """
    for most in range(max(s.layers for s in plan.segments), 2, -1):
        boxes = [_box(segment, most) for segment in plan.segments]
        if sum(len(box[1]) for box in boxes) + 2 <= width:
            break
    else:
        boxes = [_box(segment, 3) for segment in plan.segments]
    lines = [["", "", "", ""]]
    for box in boxes:
        if lines[-1][1] and len(lines[-1][1]) + len(box[1]) + 2 > width:
            lines.append(["", "", "", ""])
        lines[-1] = [old + new for old, new in zip(lines[-1], box, strict=True)]
    for line in lines:
        line[1] += "─▶"
    return "\n".join(row.rstrip() for line in lines for row in line if row.strip())


def _box(segment: Segment, most: int) -> tuple[str, str, str, str]:
    """Four lines of equal length: the box, with the arrow into it on its left."""
    first = segment.start
    last = segment.stop - 1
    text = " ".join(map(str, range(first, segment.stop)))
    if segment.layers > most:
        text = f"{first} {first + 1} … {last}"
    if segment.repeats == 1:
        bar = "─" * (len(text) + 2)
        return f"  ┌{bar}┐", f"─▶│ {text} │", f"  └{bar}┘", " " * (len(text) + 6)
    label = f"◀ ×{segment.repeats} "
    text = text.center(len(label) - 3)
    bar = "─" * (len(text) + 2)
    back = label.center(len(text) + 7, "─")
    return f"    ┌{bar}┐  ", f"─┬─▶│ {text} │─┬", f" │  └{bar}┘ │", f" ╰{back}╯"


def draw_descent(lineage: dict, *, color: bool, width: int = 80) -> str:
    """A column for each layer: its index in every stage, oldest first, colored by ancestor."""
    chains = lineage["descent"]
    per_row = (width - 8) // 3
    if len(lineage["stages"]) == 1:
        return ""
    rows = ["Index of every layer in each stack, from its ancestor (first row) down"]
    for start in range(0, len(chains), per_row):
        rows += ["", f"{'step':>8}"]
        part = chains[start : start + per_row]
        for k, stage in enumerate(lineage["stages"]):
            cells = (_colored(f"{chain[k]:>3}", chain[0], color) for chain in part)
            rows.append(f"{stage['step']:>8,}" + "".join(cells))
    return "\n".join(rows)


def _colored(text: str, ancestor: int, color: bool) -> str:
    return f"\x1b[{ANSI[ancestor % len(ANSI)]}m{text}\x1b[0m" if color else text


def _events(events: list[dict]) -> str:
    return table(
        ("step", "operator", "plan", "order: old index of each layer"),
        [
            (f"{e['step']:,}", e["operator"], e["plan"], compact(e["order"] or ()) or "as before")
            if k
            else (f"{e['step']:,}", e["operator"], e["plan"], "")
            for k, e in enumerate(events)
        ],
        left=4,
    )


def _parameters(result: dict, mesh: dict[str, int]) -> list[str]:
    rate = result["learning_rate"]
    updates = result["updates"]
    last = "none yet" if rate is None else f"number {updates:,}, at learning rate {rate:.3g}"
    title = (
        f"Parameters: {result['unique']:,}; if every executed layer had its own: "
        f"{result['effective']:,}\nLast update: {last}"
    )
    shapes = [
        (m["name"], "x".join(map(str, m["shape"])), m["dtype"], cut(m["sharding"], mesh))
        for m in result["modules"]
    ]
    rows = [*result["modules"], {"name": "all", **result["all"]}]
    columns = ("norm", "rms", "first_moment_rms", "second_moment_rms", "update_rms", "update_ratio")
    numbers = [(row["name"], *(number(row[column]) for column in columns)) for row in rows]
    heads = ("module", "norm", "weight", "moment 1", "moment 2", "update", "lr·u/w")
    note = (
        "update: direction of the last update, m̂/(√v̂+ε); lr·u/w: the update times the\n"
        "learning rate, relative to the weights; all but norm are root mean squares"
    )
    return [
        title,
        table(("module", "shape", "dtype", "sharding"), shapes, left=4),
        table(heads, numbers),
        note,
    ]


def cut(sharding: list[list[str]] | None, mesh: dict[str, int]) -> str:
    """The mesh axes that shard each array axis, "- fsdp tensor"; axes of one device do not."""
    axes = ("+".join(axis for axis in names if mesh[axis] > 1) for names in sharding or ())
    text = " ".join(axis or "-" for axis in axes)
    return text if set(text) - set("- ") else "whole"


def _layers(result: dict) -> list[str]:
    kinds = [*result["norms"], "matrices"]
    heads = [SHORT.get(kind, kind) for kind in kinds]
    norms = [
        (i, *(number(value, 4) for value in values))
        for i, values in enumerate(zip(*result["norms"].values(), strict=True))
    ]

    def rows(pairs):
        return table(
            ("layers", *heads),
            [
                ("{} {}".format(*p["layers"]), *(cosine(p["cosine"][k]) for k in kinds))
                for p in pairs
            ],
            gap=1,
        )

    parts = ["Norms by layer", table(("layer", *heads[:-1]), norms)]
    if result["neighbors"]:
        title = "Cosine of neighboring layers (matrix: all matrices as one vector)"
        parts += [title, rows(result["neighbors"])]
    for since in sorted({pair["since"] for pair in result["copies"]}):
        pairs = [pair for pair in result["copies"] if pair["since"] == since]
        parts += [f"Cosine of copies that were one layer until step {since:,}", rows(pairs)]
    return parts


def _comparison(result: dict, layers: bool) -> list[str]:
    parts = [f"Compared with {result['directory']}/{result['step']}"]
    fields = [("plan", *result["plan"])] if result["plan"] else []
    for part in ("model", "config", "data"):
        fields += [(f"{part}.{name}", *values) for name, values in result[part].items()]
    if fields:
        rows = [(name, short(here), short(there)) for name, here, there in fields]
        parts.append(table(("difference", "first", "second"), rows, left=3))
    if result["lineage"]:
        parts.append("\n".join(map(_short_lineage, ("first", "second"), result["lineage"])))
    if not fields and not result["lineage"]:
        parts.append("Plan, lineage, model, config and data are the same.")
    parts.append(textwrap.fill(f"Layers: {result['rule']}", 80))
    parts += distances("module", ((m["name"], m) for m in result["modules"]))
    if layers:
        pairs = (("{} {}".format(*m["layers"]), m) for m in result["layers"])
        parts += distances("layers (matrices)", pairs)
    if result["not_compared"]:
        parts.append(textwrap.fill(left_out(result["not_compared"]), 80))
    return parts


def distances(head: str, rows) -> list[str]:
    rows = [(name, number(d["distance"], 4), cosine(d["cosine"])) for name, d in rows]
    return [table((head, "|a-b|/|a|", "cosine"), rows)] if rows else []


def left_out(modules: list[dict]) -> str:
    by_reason: dict[str, list[str]] = {}
    for module in modules:
        by_reason.setdefault(module["why"], []).append(module["name"])
    parts = (f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
    return f"Not compared: {'; '.join(parts)}."


def _short_lineage(which: str, events: list[dict]) -> str:
    steps = (f"{e['plan']} by {e['operator']} at {e['step']:,}" for e in events[1:])
    text = f"lineage of the {which}: " + ", ".join((events[0]["plan"], *steps))
    return textwrap.fill(text, 80, subsequent_indent="  ")


def short(value) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 28 else f"{text[:27]}…"
