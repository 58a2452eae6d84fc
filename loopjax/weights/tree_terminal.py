"""The result of `tree_numbers.inspect` as text for a terminal."""

import datetime
import json
import textwrap

from loopjax.weights import terminal
from loopjax.weights.terminal import number, table

WIDTH = 80
MOST = 12  # leaves that are no arrays: optimizers with masks have hundreds of None
PLURAL = {
    "parameter": "parameters", "optimizer": "other optimizer state", "other": "other arrays",
}  # fmt: skip
# Names of the rows on top.
SHORT = {
    "parameter": "parameters", "first moment": "moments 1", "second moment": "moments 2",
    "optimizer": "optimizer", "other": "other",
}  # fmt: skip


def size(count: float | None) -> str:
    """Bytes with three digits: 1.05 MB."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    raise AssertionError


def render(result: dict, *, layers: bool) -> str:
    """The text of a result of `tree_numbers.inspect`."""
    parts = [_head(result["checkpoint"])]
    for section in PLURAL:
        parts += _section(section, result)
    parts += _rest(result)
    for stack in result["stacks"]:
        parts += _stack(stack, layers)
    if "against" in result:
        parts += _comparison(result["against"], layers)
    parts.append(_unreadable(result))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(about: dict) -> str:
    items = {name: item["kind"] for name, item in about["items"].items() if name}
    listed = ", ".join(f"{name} ({kind})" for name, kind in items.items())
    origin = "loopjax" if about["ours"] else "not written by loopjax"
    rows = [
        ("checkpoint", about["path"]),
        ("origin", origin + (f"; items: {listed}" if items else "")),
    ]
    if about["step"] is not None:
        rows.append(("step", f"{about['step']:,}"))
    if about["written"] is not None:
        time = datetime.datetime.fromtimestamp(about["written"]).strftime("%Y-%m-%d %H:%M:%S")
        took = f", in {about['written'] - about['begun']:.1f} s" if about["begun"] else ""
        rows.append(("saved", time + took))
    if about["format"]:
        rows.append(("format", about["format"]))
    if about["mesh"]:
        rows.append(("mesh", ", ".join(f"{axis}={n}" for axis, n in about["mesh"].items())))
    for name, key in (("metrics", "metrics"), ("metadata", "custom"), ("of the run", "root")):
        if about[key]:
            rows.append((name, json.dumps(about[key], ensure_ascii=False)))
    for section, name in SHORT.items():
        if section in about["totals"]:
            rows.append((name, _total(about["totals"][section])))
    return "\n".join(_wrapped(name, text) for name, text in rows)


def _wrapped(name: str, text: str) -> str:
    return textwrap.fill(
        text, max(WIDTH, len(text.split(" ")[0]) + 14), initial_indent=f"{name:<14}",
        subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _total(total: dict) -> str:
    count, arrays = total["elements"], total["arrays"]
    text = f"{count:,} in {arrays} array{'s'[: arrays != 1]}, {size(total['bytes'])}"
    text += f" ({size(total['stored'])} on disk)" if total["stored"] else ""
    return text + (f", below {total['below']}" if total["below"] else "")


def _section(section: str, result: dict) -> list[str]:
    """The arrays of one kind as a tree: what they are, then their numbers."""
    rows = [row for row in result["arrays"] if row["role"] == section]
    if not rows:
        return []
    shapes = []
    for label, k in tree([row["name"] for row in rows]):
        cells = [""] * 5
        if k is not None:
            row = rows[k]
            shape = "x".join(map(str, row["shape"])) or "scalar"
            cells = [shape, row["dtype"], _cut(row), size(row["bytes"]), size(row["stored"])]
        shapes.append((label, *cells))
    heads = ("path", "shape", "dtype", "sharding", "memory", "on disk")
    parts = [PLURAL[section].capitalize(), table(heads, shapes, left=4)]
    summed = [row for row in rows if row["norm"] is not None]
    return [*parts, *_numbers(summed, result)] if summed else parts


def _numbers(rows: list[dict], result: dict) -> list[str]:
    """Norms of arrays, and the root mean squares of their moments, if any has some."""
    moments: dict[str, dict[str, float]] = {"first moment": {}, "second moment": {}}
    for row in result["arrays"]:
        if row["role"] in moments:
            moments[row["role"]][row["of"]] = row["rms"]
    names = {row["name"] for row in rows}
    known = [rms for rms in moments.values() if not names.isdisjoint(rms)]
    heads = ["path", "norm", "rms", "max"]
    heads += [f"moment {n}" for n, rms in enumerate(moments.values(), 1) if rms in known]
    lines = []
    for label, k in tree([row["name"] for row in rows]):
        cells = [""] * (len(heads) - 1)
        if k is not None:
            row = rows[k]
            cells = [number(row["norm"], 4), number(row["rms"]), number(row["largest"])]
            cells += [number(rms.get(row["name"])) for rms in known]
        lines.append((label, *cells))
    note = "moment 1, moment 2: root mean squares of the moments that the optimizer has of them"
    return [table(heads, lines), *([textwrap.fill(note, WIDTH)] if known else [])]


def tree(names: list[str]) -> list[tuple[str, int | None]]:
    """Paths as an indented tree: (text, index of the name), None for a folder.

    Folders with one entry share its line: "params/decoder/layers".
    """
    root: dict = {}
    for k, name in enumerate(names):
        node = root
        *folders, last = name.split("/")
        for folder in folders:
            node = node.setdefault((folder, None), {})
        node[last, k] = {}
    lines = []

    def walk(node: dict, depth: int) -> None:
        for (name, k), below in node.items():
            while k is None and len(below) == 1:
                [((part, k), below)] = below.items()
                name = f"{name}/{part}"
            lines.append(("  " * depth + name, k))
            walk(below, depth + 1)

    walk(root, 0)
    return lines


def _cut(row: dict) -> str:
    """The mesh axes that shard each array axis: "- fsdp tensor"; "?" if that was not recorded."""
    sharding = row["sharding"]
    return "?" if sharding is None else terminal.cut(sharding["spec"], sharding["mesh"])


def _rest(result: dict) -> list[str]:
    """Values of single elements, what is no array, what is not finite."""
    parts = []
    values = [
        (row["name"], _value(row["value"])) for row in result["arrays"] if row["value"] is not None
    ]
    if values:
        parts.append(table(("value", ""), values, left=2))
    if result["others"]:
        rows = sorted(result["others"].items())
        more = [("…", f"and {len(rows) - MOST} more: see --json")] if len(rows) > MOST + 1 else []
        parts.append(table(("no array", ""), rows[:MOST] + more if more else rows, left=2))
    bad = [row for row in result["arrays"] if row["not_finite"]]
    if bad:
        rows = [(row["name"], f"{row['not_finite']:,} of {_elements(row):,}") for row in bad]
        parts.append(table(("NaN or infinite (left out of the norms)", ""), rows, left=2))
    elif any(row["not_finite"] == 0 for row in result["arrays"]):
        parts.append("All values are finite.")
    return parts


def _elements(row: dict) -> int:
    count = 1
    for n in row["shape"]:
        count *= n
    return count


def _value(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _stack(stack: dict, layers: bool) -> list[str]:
    where = "one array per layer" if stack["axis"] is None else f"along axis {stack['axis']}"
    title = f"Stack {stack['name']}: {stack['layers']} layers, {where}"
    if not layers or "norms" not in stack:
        return [title]
    kinds = [*stack["norms"]]
    norms = [
        (i, *(number(stack["norms"][kind][i], 4) for kind in kinds)) for i in range(stack["layers"])
    ]
    parts = [title, *_wide_table("layer", "Norms by layer", [_label(k) for k in kinds], norms)]
    if stack["neighbors"]:
        kinds = [*stack["neighbors"][0]["cosine"]]
        rows = [
            ("{} {}".format(*p["layers"]), *(terminal.cosine(p["cosine"][k]) for k in kinds))
            for p in stack["neighbors"]
        ]
        note = " (matrices: all matrices as one vector)" if "matrices" in kinds else ""
        title = f"Cosine of neighboring layers{note}"
        parts += _wide_table("layers", title, [_label(k) for k in kinds], rows)
    return parts


def _label(kind: str) -> str:
    return kind.removesuffix("/kernel").removesuffix("/w") or "layer"


def _wide_table(first: str, title: str, heads: list[str], rows: list[tuple]) -> list[str]:
    """A table cut into several of at most WIDTH columns, one below the other."""
    parts, start = [title], 0
    while start < len(heads):
        stop, width = start, 8
        while stop < len(heads):
            width += 2 + max(len(heads[stop]), *(len(row[stop + 1]) for row in rows))
            if width > WIDTH and stop > start:
                break
            stop += 1
        cells = [(row[0], *row[start + 1 : stop + 1]) for row in rows]
        parts.append(table((first, *heads[start:stop]), cells))
        start = stop
    return parts


def _comparison(result: dict, layers: bool) -> list[str]:
    step = "" if result["step"] is None else f", step {result['step']:,}"
    parts = [f"Compared with {result['path']}{step}"]
    if result["custom"]:
        rows = [(name, *map(terminal.short, pair)) for name, pair in result["custom"].items()]
        parts.append(table(("metadata", "first", "second"), rows, left=3))
    for stack, (ours, theirs) in result["depths"].items():
        if ours != theirs:
            parts.append(
                f"{stack}: {ours} layers in the first, {theirs} in the second; layer i with layer i"
            )
    rows = ((row["name"], row) for row in result["arrays"])
    parts += terminal.distances("array", rows)
    renamed = dict.fromkeys(_renamed(r["name"], r["other"]) for r in result["arrays"])
    if names := [pair for pair in renamed if pair]:
        parts.append(table(("path in the first", "in the second"), names, left=2))
    if result["values"]:
        rows = [(v["name"], *map(terminal.short, v["values"])) for v in result["values"]]
        parts.append(table(("value", "first", "second"), rows, left=3))
    for stack in dict.fromkeys(row["stack"] for row in result["layers"] if layers):
        part = (("{} {}".format(*r["layers"]), r) for r in result["layers"] if r["stack"] == stack)
        parts += [f"Matrices of {stack}", *terminal.distances("layers", part)]
    if result["not_compared"]:
        parts.append(textwrap.fill(terminal.left_out(result["not_compared"]), WIDTH))
    return parts


def _renamed(ours: str, theirs: str) -> tuple[str, str] | None:
    """The parts in front in which two paths differ; None if they do not."""
    if ours == theirs:
        return None
    a, b = ours.split("/"), theirs.split("/")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "/".join(a) or "(nothing)", "/".join(b) or "(nothing)"


def _unreadable(result: dict) -> str:
    if not result["unreadable"]:
        return ""
    return table(("cannot be read", "why"), result["unreadable"].items(), left=2)
