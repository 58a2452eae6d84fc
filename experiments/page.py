"""docs/results.md: a table of all claims, what to conclude, and a section for each experiment."""

import collections
import pathlib
import re
import shutil

import experiment
from claims import VERDICTS
from scales import MINI

from loopjax.files import read_json, write_text
from loopjax.text_table import markdown as table

CONCLUSIONS = "## What to conclude"  # written by hand, below the table of claims
LEAD = """# Results in miniature

The experiments of the papers, scaled down to two CPU cores: models of 8 executed layers and width 64,
5 million bytes (`configs/study.py` lists the counterpart of each setting). [study.md](study.md) was written
before the runs: what each claim needs, the tasks, the number of seeds and the rule of the verdicts. At this
size an experiment can show the direction of an effect, not its size; what is not reproduced here may be
reproduced at the papers' scale, and vice versa.

Effects have a 95% interval over seeds and items; points are percentage points of accuracy.
**Reproduced**: above 0, and the smallest effect that counts is not excluded. **Partly**: above 0, but
smaller. **Not reproduced**: that effect is excluded. **Undecided**: the interval holds both, or the models
lack what the claim needs. In tables and figures `±` is the standard deviation over seeds. Gray areas in
figures are what the best trivial rule gets (`loopjax/data/floors.py`), the dotted line is chance.

`python experiments/everything.py --docs` reproduces this page, with `--seeds=6 --only NAMES` for the experiments
that have six seeds; `--scale=gpu` and `--scale=paper` trace the
larger studies, and run them with `--go`.
"""


def write(output: pathlib.Path, docs: pathlib.Path, names) -> None:
    """Writes docs/results.md, with the experiments finished in `output` in place of their earlier results.

    The numbers of the others, from other studies, are those in docs/results/. The section "What to
    conclude" is kept as it is.
    """
    for name in names:
        _copy(output, name, docs / "results")
    files = {name: docs / "results" / f"{name}.json" for name in names}
    records = {name: read_json(file) for name, file in files.items() if file.exists()}
    missing = [
        f"`{name}.py`" + (f" ({MINI.omitted[name]})" if name in MINI.omitted else "")
        for name in names
        if name not in records
    ]
    page = docs / "results.md"
    parts = [
        LEAD,
        overview(records.values()),
        f"Not run here: {', '.join(missing)}.\n" if missing else "",
        _conclusions(page.read_text() if page.exists() else ""),
        *(experiment.markdown(name, record, "results/") for name, record in records.items()),
        "\n".join(_machines(records)) + "\n",
    ]
    write_text(page, "\n".join(part for part in parts if part))


def _copy(output: pathlib.Path, name: str, folder: pathlib.Path) -> None:
    """Copies the numbers and figures of an experiment, if it is finished."""
    file = output / f"{name}.json"
    if not file.exists():
        return
    folder.mkdir(exist_ok=True)
    for figure in read_json(file)["figures"]:
        shutil.copy(output / f"{figure}.png", folder / f"{figure}.png")
    shutil.copy(file, folder / file.name)


def overview(records) -> str:
    """The number of claims by verdict, and all claims as a table with links to their sections."""
    rows = [
        (f"[{one['claim']}](#{_anchor(record['title'])})",
         *(one[key] for key in ("paper", "here", "seeds", "verdict")))
        for record in records
        for one in record["claims"]
    ]  # fmt: skip
    counts = collections.Counter(verdict for *_, verdict in rows)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    heads = ["claim", "papers", "here, with its 95% interval", "seeds", "verdict"]
    return f"{len(rows)} claims: {tally}.\n\n{table(heads, rows)}\n"


def _conclusions(page: str) -> str:
    """The section that is written by hand, from an earlier page; "" if it has none."""
    found = re.search(rf"^{CONCLUSIONS}\n.*?(?=^## |\Z)", page, re.M | re.S)
    return found[0].rstrip() + "\n" if found else ""


def _machines(records: dict) -> list[str]:
    """Lines that say when, where and with which versions experiments were measured."""
    by_machine: dict = {}
    for name, record in records.items():
        by_machine.setdefault(record["measured"], []).append(f"`{name}`")
    return [f"{', '.join(names)}: {measured}." for measured, names in by_machine.items()]


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
