"""The tables of `loopjax compile`."""

from loopjax.aot.roofline import RESOURCES
from loopjax.text_table import aligned, quantity, span


def text(result: dict) -> str:
    """The result of `compile.compile_run` as tables: memory, roofline, collectives, kernels."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    sequences = f"{result['sequences_per_device']:g}"
    lines = [
        f"{result['topology']}, {result['devices']} devices ({mesh}); {sequences} sequence"
        f"{'s' * (sequences != '1')} of {result['seq_len']:,} tokens per step and device, "
        f"microbatches={result['microbatches']}, remat={result['remat']}",
        "",
        "memory per device, by the compiler (the estimate is that of `loopjax plan`):",
    ]
    compiled = [row for row in result["programs"] if "error" not in row]
    sizes = ("arguments", "temporary", "peak", "estimate")
    rows = [["from step", "plan", "program", *sizes, "compiled in"]]
    for row in result["programs"]:
        cells = [f"{row['start']:,}", row["plan"], row["program"]]
        cells += [quantity(row[key], "B") if key in row else "-" for key in sizes]
        rows.append([*cells, span(row["compile_s"]) if "compile_s" in row else "-"])
    lines += [*aligned(rows, left=3), ""]
    if compiled:
        lines += [*_roofline(compiled), ""]
        for row in compiled:
            lines += _content(row)
    return "\n".join(lines + _fit(result))


def _roofline(programs: list[dict]) -> list[str]:
    figures = ("model", "products", "HBM", *RESOURCES, "binds", "MFU <=")
    rows = [["from step", "plan", "program", *figures]]
    for row in programs:
        line = row["roofline"]
        rows.append(
            [
                f"{row['start']:,}",
                row["plan"],
                row["program"],
                quantity(row["flops"], "FLOPs"),
                quantity(row["product_flops"], "FLOPs"),
                quantity(row["hbm_bytes"], "B"),
                *(span(line[resource]) if line[resource] else "-" for resource in RESOURCES),
                line["binds"],
                f"{line['mfu_bound']:.0%}" if row["flops"] else "-",
            ]
        )
    title = (
        "least time of a step by the peaks of the chip (model: all devices; products, HBM: each):"
    )
    return [title, *aligned(rows, left=3)]


def _content(row: dict) -> list[str]:
    """Collectives and kernels of a program."""
    lines = [f"{row['program']} of plan {row['plan']}, per step and device:"]
    rows = [["collective", "dtype", "axes", "devices", "executions", "arrays", "sent", "beyond"]]
    for found in row["collectives"]:
        rows.append(
            [
                found["kind"],
                found["dtype"],
                "+".join(found["axes"]),
                found["devices"],
                found["count"],
                quantity(found["bytes"], "B"),
                quantity(found["sent"], "B"),
                quantity(found["sent_beyond"], "B") if found["sent_beyond"] else "-",
            ]
        )
    lines += aligned(rows, left=3) if len(rows) > 1 else ["no collectives"]
    calls = (f"{target} x {count}" for target, count in row["kernels"].items())
    lines.append("kernels: " + (", ".join(calls) or "none"))
    for key, what in (("attention_buffers", "[T, T]"), ("logit_buffers", "[B, T, V] in float32")):
        if row[key]:
            lines.append(f"buffers {what}: {len(row[key])}, the largest {row[key][0]}")
    if row["unknown_loops"]:
        loops = ", ".join(row["unknown_loops"])
        lines.append(f"counted once, since the program does not say how often they run: {loops}")
    return [*lines, ""]


def _fit(result: dict) -> list[str]:
    memory = quantity(result["chip"]["memory"], "B")
    large = [row for row in result["programs"] if not row["fits"]]
    if not large:
        peak = max(row["peak"] for row in result["programs"])
        return [f"fits: the peak is {quantity(peak, 'B')} of {memory}"]
    return [
        f"does NOT fit in {memory}: {row['program']} of plan {row['plan']}, "
        + (row.get("error") or f"peak {quantity(row['peak'], 'B')}")
        for row in large
    ]
