"""Command line of `loopjax scaling`."""

import dataclasses
import json
import math
import pathlib

from loopjax import outputs
from loopjax.cli import arguments
from loopjax.errors import UserError, require
from loopjax.text_table import aligned, quantity


def scaling(argv: list[str]) -> int:
    """Fit scaling laws to the runs of a sweep: the worth of repetitions, and of compute.

    Without --baseline: phi of L = E + A (sum of r^phi N)^-a + B D^-b, where N are the matrix parameters
    of the layers of a segment, r its repetitions and D the training tokens. A layer that runs r times
    is worth r^phi layers.

    With --baseline: the curve L = E + k C^-s of the runs whose --by fields have that value, and for
    every other run the compute C that the baseline would need for its loss, divided by its own.

    Intervals are 95%, by a bootstrap of the residuals. Runs that cannot identify a law are refused.

    Examples:
      loopjax scaling runs/ladder
      loopjax scaling runs/ladder --by growth.operator --baseline "" --plot multipliers.png
    """
    args = _parser().parse_args(argv)
    if (args.baseline is None) != (args.by is None):
        raise UserError(
            "--baseline and --by go together: the value of the field that is compared with"
        )
    if args.floor is not None and args.baseline is None:
        raise UserError("--floor is that of the curve of compute; it requires --baseline")
    if args.plot:
        require("matplotlib.figure", "report", "a figure")
        outputs.check_file(args.plot, "--plot")
    from loopjax.sweep import metric, rows

    directory = pathlib.Path(args.directory)
    found = [row for row in rows.rows(rows.runs_below(directory)) if row["finished"]]
    name = metric.chosen(found, [args.metric])[0]
    found = [row for row in found if math.isfinite(row["metrics"].get(name, math.nan))]
    fit = _recurrence if args.by is None else _multipliers
    result, text = fit(found, name, args)
    print(json.dumps(result, default=float) if args.json else text)
    return 0


def _recurrence(found: list[dict], name: str, args) -> tuple[dict, str]:
    from loopjax.scaling import ladder, recurrence

    points = ladder.points(found, name)
    law = recurrence.estimate(points, args.seed, args.draws)
    if args.plot:
        from loopjax.plots import figure, scaling

        figure.save(scaling.plot_recurrence(points, law, name), args.plot)
    fitted = dataclasses.asdict(law)
    titles = {
        "phi": "phi, worth of repetitions",
        "floor": "E, floor" if law.data else "E, floor with the data term (one number of tokens)",
        "size": "A", "size_exponent": "a, exponent of parameters",
        "data": "B", "data_exponent": "b, exponent of tokens",
    }  # fmt: skip
    rows = [["", "value", "95% interval"]]
    for key, title in titles.items():
        if fitted[key]:
            value, low, high = fitted[key]
            rows.append([title, f"{value:.4g}", f"{low:.4g} to {high:.4g}"])
    worth = ", ".join(f"{r} repetitions {r ** law.phi[0]:.2f}" for r in (2, 4, 8))
    lines = [
        f"{name} of {law.runs} runs; root mean square error {law.error:.2%}",
        "", *aligned(rows), "", f"worth in layers of their own: {worth}",
    ]  # fmt: skip
    return {"metric": name, **fitted}, "\n".join(lines)


def _multipliers(found: list[dict], name: str, args) -> tuple[dict, str]:
    from loopjax.scaling import ladder, multipliers

    by = [field for field in args.by.split(",") if field]
    arms = ladder.arms(found, by)
    label = ladder.baseline_of(arms, args.baseline)
    base = multipliers.baseline(
        *_costs(arms[label], name), floor=args.floor, seed=args.seed, draws=args.draws
    )
    if args.plot:
        from loopjax.plots import figure, scaling

        drawn = {arm: list(zip(*_costs(runs, name), strict=True)) for arm, runs in arms.items()}
        figure.save(scaling.plot_multipliers(drawn, label, base, name), args.plot)
    floors = sorted(base.floor(fit) for fit in base.drawn)
    rows = [["run", "FLOPs", name, "multiplier", "95% interval"]]
    listed = []
    for arm, members in arms.items():
        for row in members if arm != label else ():
            flops, loss = row["training_flops"], row["metrics"][name]
            times = multipliers.multiplier(base, flops, loss, args.seed)
            listed.append({"run": row["name"], "arm": arm, **dataclasses.asdict(times)})
            cells = ["-", times.reason]
            if times.value is not None:
                cells = [f"{times.value:.3f}", f"{times.low:.3f} to {times.high:.3f}"]
            rows.append([row["name"], quantity(flops), f"{loss:.4f}", *cells])
    fit = base.fit
    given = args.floor is not None
    lines = [
        f"baseline {label}: {name} = {base.floor(fit):.4f} + {fit.coefficients[0]:.4f} (C / "
        f"{quantity(base.unit)})^-{fit.exponents[0]:.4f}, {len(fit.residuals)} runs, root mean square "
        f"error {fit.error:.2%}; floor "
        + ("given" if given else f"{floors[0]:.4f} to {floors[-1]:.4f} over the bootstrap"),
        "", *aligned(rows),
    ]  # fmt: skip
    result = {
        "metric": name, "baseline": label, "floor": base.floor(fit), "exponent": fit.exponents[0],
        "runs": listed,
    }  # fmt: skip
    return result, "\n".join(lines)


def _costs(rows: list[dict], name: str):
    return [row["training_flops"] for row in rows], [row["metrics"][name] for row in rows]


def _parser():
    parser = arguments.parser("scaling", scaling.__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", help="directory with finished runs in it")
    add("--metric", metavar="NAME", default="nll", help="loss to fit (default nll)")
    add("--by", metavar="FIELD,...", help="fields whose values are compared with --baseline")
    add("--baseline", metavar="VALUE", help="value of --by of the runs to compare with")
    add(
        "--floor",
        metavar="E",
        type=arguments.number,
        help="floor of the baseline's curve (default: fitted)",
    )
    add(
        "--draws",
        metavar="N",
        type=arguments.positive,
        default=500,
        help="number of draws of the bootstrap (default 500)",
    )
    add(
        "--seed",
        metavar="N",
        type=arguments.seed,
        default=0,
        help="seed of the bootstrap (default 0)",
    )
    add("--plot", metavar="FILE.png", help="figure of the losses and the fitted curve")
    add("--json", action="store_true", help="output as one JSON object")
    return parser
