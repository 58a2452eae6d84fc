"""The command line of an experiment, and its results as JSON and Markdown.

An experiment is a file with `TITLE`, `PAPER` (what the papers found), `runs(study)`, which declares
and trains its models, `outcome(study)`, which measures them and computes a verdict, and
`figures(data)`, which draws the outcome's data, also those that were stored earlier:

    python experiments/NAME.py [--output=study]             # mini: minutes on two CPU cores
    python experiments/NAME.py --scale=paper                # traces the published protocol, trains nothing
    python experiments/NAME.py --scale=paper --go           # traces it and runs it (gpu: the same)

Finished models and measurements are cached in the study's directory and shared by all experiments.
"""

import argparse
import dataclasses
import datetime
import importlib
import os
import pathlib
import platform

import claims
import jax
import protocol
import stored
from scales import SCALES, repeated
from study import ROOT, Study, compilation_cache

from loopjax.checkpoint import versions
from loopjax.cli.arguments import positive
from loopjax.files import write_json, write_text
from loopjax.plots import figure
from loopjax.text_table import markdown as table

CLAIMS = ("claim", "paper", "here", "looked for", "seeds", "verdict")  # columns


@dataclasses.dataclass
class Outcome:
    """The result of an experiment.

    Attributes:
      finding: sentences with the measured numbers.
      claims: sentences of the papers, each with the effect that decides it.
      heads: column heads of the table.
      rows: cells of the table.
      data: numbers of the figures, as JSON.
    """

    finding: str
    claims: list[claims.Claim]
    heads: tuple[str, ...]
    rows: list[tuple]
    data: dict

    @property
    def verdict(self) -> str:
        return claims.together(self.claims)


def main(file: str) -> None:
    """Runs the experiment in `file` from the command line."""
    name = pathlib.Path(file).stem
    module = importlib.import_module(name)
    parser = argparse.ArgumentParser(description=module.__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="mini", help="size of the experiment")
    parser.add_argument("--seeds", type=positive, help="number of models of each kind")
    parser.add_argument("--go", action="store_true", help="train and measure at gpu and paper, too")
    parser.add_argument(
        "--output", type=pathlib.Path, default=ROOT / "study", help="directory of the study"
    )
    args = parser.parse_args()
    output = (args.output / args.scale).absolute()
    os.chdir(ROOT)
    scale = repeated(args.scale, args.seeds)
    if why := scale.omitted.get(name):
        parser.error(f"not run at --scale={args.scale}: {why}")
    if scale.machine:
        protocol.check(module, Study(output, scale, checking=True))
        if not args.go:
            return
    perform(module, Study(output, scale))


def perform(module, study: Study) -> Outcome:
    """Trains and measures; writes NAME.md, NAME.json and figures to the study's directory."""
    for option, value in compilation_cache(study.output).items():
        jax.config.update(option, value)
    name = pathlib.Path(module.__file__).stem
    module.runs(study)
    outcome = module.outcome(study)
    data = stored.plain(outcome.data)
    drawn = draw(module, data, study.output)
    record = {
        "title": module.TITLE,
        "paper": module.PAPER,
        "found": outcome.finding,
        "verdict": outcome.verdict,
        "claims": [claim.row() for claim in outcome.claims],
        "figures": drawn,
        "table": [dict(zip(outcome.heads, row, strict=True)) for row in outcome.rows],
        "data": data,
        "measured": _where(),
    }
    write_json(study.output / f"{name}.json", record)
    write_text(study.output / f"{name}.md", markdown(name, record))
    print(f"\n{markdown(name, record)}")
    return outcome


def _where() -> str:
    """ "2026-12-01, cpu (x86_64, 2 cores), jax 0.10.2, ...": when, where and with what it was measured."""
    device = f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)"
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{datetime.date.today()}, {device}, {packages}"


def draw(module, data: dict, folder: pathlib.Path) -> list[str]:
    """Writes the figures of an experiment's data to a folder; returns their names."""
    drawings = module.figures(data)
    for name, drawing in drawings.items():
        figure.save(drawing, folder / f"{name}.png")
    return [*drawings]


def markdown(name: str, record: dict, folder: str = "") -> str:
    """A section of the results: the papers' finding, ours, claims, table and figures."""
    undecided = [claim for claim in record["claims"] if claim["reason"]]
    lines = [
        f"## {record['title']}",
        "",
        f"**Papers.** {record['paper']}",
        "",
        f"**Here: {record['verdict']}.** {record['found']}",
        "",
        table(CLAIMS, [[claim[head] for head in CLAIMS] for claim in record["claims"]]),
        "",
        *[f"{claim['claim']}: undecided. {claim['reason']}\n" for claim in undecided],
    ]
    if rows := record["table"]:
        heads = list(rows[0])
        lines += [table(heads, [[row[head] for head in heads] for row in rows]), ""]
    lines += [f"![{record['title']}]({folder}{figure}.png)" for figure in record["figures"]]
    lines += ["", f"`python experiments/{name}.py`", ""]
    return "\n".join(lines)
