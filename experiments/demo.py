"""The demo: what looping and growing do, in minutes on a laptop. Writes demo/report.html.

    python experiments/demo.py [--output DIR]

(a) p-hop induction with plans 1, 1x4 and 4: what a quarter of the layers reaches with and without
the loop.
(b) Text (the source of Python's standard library, in bytes): a standard, a looped and a
LIDAS-grown model of 12 executed layers, and what their layers do.

Both are scaled far down from the papers. Finished runs are skipped.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

from loopjax.data import floors
from loopjax.plots import figure, roles, runs
from loopjax.report import collect, page

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOPS = {f"plan {plan}": f"configs/hops.py:{plan}" for plan in ("1", "1x4", "4")}
TEXT = {name: f"configs/tiny.py:{name}" for name in ("standard", "loop", "lidas")}
TEXT_LENGTH = ("steps=400", "warmup_steps=40", "eval_every=40")


def train(name: str, config: str, output: pathlib.Path, overrides=()) -> pathlib.Path:
    """Trains a run by its command line, unless it is finished."""
    workdir = output / name
    if not (workdir / "result.json").is_file():
        changed = (f"--config.{override}" for override in overrides)
        run("train", f"--config={config}", f"--workdir={workdir}", *changed)
    return workdir


def analyze(workdir: pathlib.Path) -> None:
    """Computes the diagnostics of a run that do not exist yet."""
    what = "--what=norms,future_local,similarity"
    run("analyze", f"--checkpoint={workdir}", f"--output={workdir / 'signature'}", what)


def run(*words: str) -> None:
    """Runs a command of loopjax."""
    print(f"\nloopjax {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "loopjax", *words], check=True, cwd=ROOT)


def hops_finding(runs: list[pathlib.Path]) -> str:
    """The results on p-hop, in sentences."""
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    shallow, loop, deep = (r["heldout"]["sanford_4/accuracy"] for r in results)
    rule, floor = floors.floors("sanford_4", 33).best
    share = results[1]["parameters"] / results[2]["parameters"]
    return (
        "Follow p hops back through a string of 32 letters (p is 1 to 4). At four hops one "
        f"layer run four times (<b>1x4</b>) reaches {loop:.1%} with {share:.0%} of the parameters of "
        f"four layers (<b>4</b>), which reach {deep:.1%}; one layer run once (<b>1</b>) reaches "
        f"{shallow:.1%}. A rule without any hops ({rule}) gets {floor:.1%}. "
        f"{_gain(shallow, loop, deep)}"
    )


def _gain(shallow: float, loop: float, deep: float) -> str:
    """What the loop gains of what depth gains, in a sentence."""
    if deep - shallow < 0.05:
        return "Here depth gains less than five points, so that a loop has nothing to gain."
    gained = (loop - shallow) / (deep - shallow)
    return (
        f"Depth gains {100 * (deep - shallow):.0f} points here, and the loop {gained:.0%} of them; "
        "each model is one run."
    )


def text_finding(runs: list[pathlib.Path]) -> str:
    """The results on text, in sentences."""
    standard, loop, lidas = (json.loads((run / "result.json").read_text()) for run in runs)
    saved = 1 - lidas["training_flops"] / standard["training_flops"]
    share = loop["parameters"] / standard["parameters"]
    return (
        "Twelve executed layers on the bytes of Python's standard library. The loop (<b>4x3</b>) "
        f"has {share:.0%} of the standard model's parameters and ends at "
        f"{loop['heldout']['nll']:.3f} nats per byte, the standard model at "
        f"{standard['heldout']['nll']:.3f}; the LIDAS-grown model (4, then 8, then 12 layers) ends "
        f"at {lidas['heldout']['nll']:.3f} after {saved:.0%} fewer training FLOPs."
    )


def draw(path: pathlib.Path, groups: list[page.Group]) -> None:
    """Draws the figure of the README: a row per group, its metric against steps and FLOPs."""
    rows, kinds = [], {}
    for group in groups:
        curves = {}
        entries = collect.collect(group.paths)[0]
        deepest = max(entry.plan.n_effective for entry in entries)
        for entry in entries:
            label = f"{entry.label}: {entry.model.way}, {entry.parameters / 1000:.0f}k parameters"
            curves[label] = entry.model.curve(group.metric)
            events, config = entry.model.events, entry.model.config
            kinds[label] = roles.kind_of(entry.plan, events, config, depth=deepest)
        accuracy = re.fullmatch("eval/(.*)/accuracy", group.metric)
        task = accuracy[1] if accuracy else ""
        rows.append(runs.Row(group.title, group.metric_label, curves, task=task))
    # The rows are read one by one: a role in both of them looks the same in both.
    looks = {label: roles.look(*kind) for label, kind in kinds.items()}
    figure.save(runs.plot_training(rows, looks), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=ROOT / "demo", help="directory of the demo"
    )
    output = parser.parse_args().output.absolute()
    hops = [train(name.replace("plan ", "hops-"), c, output) for name, c in HOPS.items()]
    text = [train(name, config, output, TEXT_LENGTH) for name, config in TEXT.items()]
    for workdir in text:
        analyze(workdir)
    groups = [
        page.Group(
            "Four hops: one layer, one layer run four times, four layers",
            hops_finding(hops),
            hops,
            metric="eval/sanford_4/accuracy",
            label="held-out accuracy at 4 hops",
            accuracies=tuple(
                (f"sanford_{p}", f"accuracy, {p} hop{'s' * (p > 1)}") for p in (1, 2, 3, 4)
            ),
            wanted=False,
        ),
        page.Group(
            "Text: looped and grown at equal executed depth",
            text_finding(text),
            text,
            unit="byte",
            wanted=False,
        ),
    ]
    page.write_report(
        output / "report.html",
        groups,
        title="Iterative computation in depth, in miniature",
        lead="A scaled-down demonstration: widths of 64, minutes of training, one seed. It shows "
        "the tool at work, not the papers' numbers.",
    )
    draw(output / "report.png", groups)
    print(f"\nopen {output / 'report.html'}")


if __name__ == "__main__":
    main()
