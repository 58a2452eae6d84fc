"""The published rows, compiled for TPUs and GPUs that are not here: the table of docs/performance.md.

    pip install 'loopjax[aot,gpu]'
    python benchmarks/compile_rows.py DIR [--topologies=v5p:4x4x4,h100:1x8] [--rows=1.7b,...]
        [--config.KEY=VALUE ...]

One program after another, each by a `loopjax compile` of its own, whose JSON is kept in DIR: the
command may be stopped and repeated. The table is printed from what there is, also while it runs.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

from loopjax.text_table import markdown, quantity, span

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The last phase of each row of configs/smollm.py has another plan. LIDAS ends in the plan of the
# baseline; its first stage is the row with 4 unique layers.
ROWS = {
    "360m,baseline": "last",
    "360m,lidas": "0",
    "360m,loop-4x8": "last",
    "1.7b,baseline": "last",
    "1.7b,lidas": "0",
    "1.7b,loop-4x6": "last",
    "1.7b,loop-4-4x4-4": "last",
    "1.7b,lidas,nemotron,8-4x2-12": "last",
    "1.7b,lidas,nemotron,12-4x2-8": "last",
    "1.7b,loop-4-4x4-4,nemotron,4-4x5-4": "last",
}
# Settings by size. GPUs get 8 sequences of 2,048 tokens at a time, and gather weights within a host;
# a width of 960 does not divide by 256 devices.
TOPOLOGIES = {
    "v5e:16x16": {
        "360m": {"mesh.data": 32, "mesh.fsdp": 8},
        "1.7b": {"model.remat": "full"},
    },
    "v5p:4x4x4": {"360m": {}, "1.7b": {}},
    "h100:1x8": {"360m": {"microbatches": 8}, "1.7b": {"microbatches": 16}},
    "h100:8x8": {
        "360m": {"mesh.data": 8, "mesh.fsdp": 8},
        "1.7b": {"mesh.data": 8, "mesh.fsdp": 8, "microbatches": 2},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES), help="some of the topologies")
    parser.add_argument("--rows", help="only rows that begin with this, such as 1.7b,loop")
    args, overrides = parser.parse_known_args()
    if wrong := [flag for flag in overrides if not flag.startswith("--config.")]:
        parser.error(f"unknown flag {wrong[0]}")
    chosen = args.topologies.split(",")
    if not set(chosen) <= set(TOPOLOGIES):
        parser.error(f"--topologies must be some of {', '.join(TOPOLOGIES)}")
    args.directory.mkdir(parents=True, exist_ok=True)
    for topology in chosen:
        for row, phase in ROWS.items():
            if row.startswith(args.rows or ""):
                compiled(args.directory, topology, row, phase, overrides)
    print(table(args.directory))


def compiled(directory, topology: str, row: str, phase: str, overrides: list[str]) -> None:
    """Compiles the update of a row for a topology, unless its result is in the directory."""
    out = directory.resolve() / (re.sub(r"[^\w.-]", "_", f"{topology}-{row}") + ".json")
    if out.exists():
        return
    settings = TOPOLOGIES[topology][row.partition(",")[0]]
    temporary = out.with_suffix(".partial")
    command = [
        sys.executable, "-m", "loopjax.cli.main", "compile",
        f"--config=configs/smollm.py:{row}", f"--topology={topology}",
        f"--phase={phase}", "--programs=update", *(f"--config.{key}={value}" for key, value in settings.items()),
        *overrides, f"--json={temporary}",
    ]  # fmt: skip
    if subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT).returncode:
        sys.exit(f"failed: {' '.join(command)}")
    result = {"row": row, "command": command[2:-1], **json.loads(temporary.read_text())}
    temporary.unlink()
    out.write_text(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def table(directory: pathlib.Path) -> str:
    """The results of a directory as a Markdown table."""
    head = [
        "topology", "row", "plan", "microbatches", "estimate", "peak", "HBM", "sent", "compute", "memory",
        "interconnect", "network", "binds", "MFU at most", "compiled in",
    ]  # fmt: skip
    results = [json.loads(path.read_text()) for path in directory.glob("*.json")]
    order = list(ROWS)
    results.sort(key=lambda r: (list(TOPOLOGIES).index(r["topology"]), order.index(r["row"])))
    rows = []
    for result in results:
        (program,) = result["programs"]
        cells = [result["topology"], result["row"], program["plan"], result["microbatches"]]
        if "error" in program:
            rows.append([*cells, "", program["error"], *[""] * (len(head) - 6)])
            continue
        line = program["roofline"]
        seconds = (line[key] for key in ("compute", "hbm", "interconnect", "network"))
        sent = sum(found["sent"] for found in program["collectives"])
        rows.append(
            [
                *cells,
                quantity(program["estimate"], "B"),
                quantity(program["peak"], "B") + ("" if program["fits"] else " (too large)"),
                quantity(program["hbm_bytes"], "B"),
                quantity(sent, "B"),
                *(span(value) if value else "" for value in seconds),
                line["binds"],
                f"{line['mfu_bound']:.0%}",
                span(program["compile_s"]),
            ]
        )
    return markdown(head, rows)


if __name__ == "__main__":
    main()
