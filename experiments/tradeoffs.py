"""Table 1, Figures 1 and 10: standard, looped and grown models against what they cost."""

import common

TITLE = "Standard, looped and grown models against their cost (Table 1, Figures 1 and 10)"
PAPER = (
    "At 24 executed layers of 1.7B, growth reaches the standard model's NLL with 78% of its training "
    "FLOPs and more on the reasoning primitives (LIDAS 48.0%, standard 34.6%). At equal parameters a "
    "loop beats the standard model in NLL (4x6: 2.12, standard 4: 2.29) and on primitives; at equal "
    "inference FLOPs it is behind in NLL."
)


def runs(study) -> dict:
    """Directories by role, one for each seed."""
    return {role: study.models(role) for role in study.scale.rows}


def outcome(study) -> common.Outcome:
    models = runs(study)
    rows, points = [], {}
    for role, directories in models.items():
        results = [common.result(run) for run in directories]
        nll = [_nll(study, found) for found in results]
        primitives = [common.mean_of(study.evaluate(run)) for run in directories]
        first = results[0]
        points[role] = (first, nll, primitives)
        rows.append((
            f"{role} ({first['plan']})", f"{first['unique_layers']}/{first['effective_layers']}",
            f"{first['parameters']:,}", f"{first['training_flops']:.3g}", len(results),
            common.spread(nll), common.spread(primitives, 1, percent=True),
        ))  # fmt: skip
    heads = ("model", "unique/executed layers", "parameters", "training FLOPs", "seeds",
             "NLL (text)", "reasoning")  # fmt: skip
    standard, lidas = points["standard"], points["lidas"]
    share = lidas[0]["training_flops"] / standard[0]["training_flops"]
    gap = _mean(lidas[1]) - _mean(standard[1])
    gain = _mean(lidas[2]) - _mean(standard[2])
    loop, block, deep = (_mean(points[role][1]) for role in ("loop", "one block", "standard"))
    found = (
        f"LIDAS takes {share:.1%} of the standard model's training FLOPs; its NLL is {gap:+.3f} nats "
        f"from it ({common.spread(lidas[1])} against {common.spread(standard[1])}), its "
        f"reasoning accuracy {100 * gain:+.1f} points. One block of layers has an NLL of "
        f"{block:.3f}, the same block looped {loop:.3f}, the standard model {deep:.3f}."
    )
    reasoning = {role: _mean(point[2]) for role, point in points.items()}
    claims = (
        share < 0.85 and gap < 0.03,  # growth: the loss,
        share < 0.85 and gain > 0.02,  # and more reasoning
        deep < loop < block,  # a loop, against its block run once
        reasoning["loop"] > reasoning["one block"] + 0.02,
    )
    verdict = "shows" if all(claims) else "shows in part" if any(claims) else "does not show"
    return common.Outcome(found, verdict, heads, rows, {"tradeoffs": _picture(points)})


def _nll(study, found: dict) -> float:
    return found["heldout"][f"{study.scale.text}/nll" if study.scale.text else "nll"]


def _mean(values) -> float:
    return sum(values) / len(values)


def _picture(points: dict):
    from loopjax.depth import DepthPlan
    from loopjax.plots import figure

    def inference(found):
        return DepthPlan.parse(found["plan"]).n_effective

    costs = (
        ("unique layers", lambda found: found["unique_layers"]),
        ("executed layers", inference),
        ("training FLOPs", lambda found: found["training_flops"]),
    )
    fig, axes = figure.grid(6, 3, 4.2, 3.1, 0.4)
    colors, lines = figure.colors(points), {}
    for k, axis in enumerate(axes):
        (title, cost), metric = costs[k % 3], 1 + k // 3
        for role, point in points.items():
            x, values = cost(point[0]), point[metric]
            axis.plot([x] * len(values), values, ".", alpha=0.5, color=colors[role])
            (lines[role],) = axis.plot([x], [_mean(values)], "o", color=colors[role], alpha=0.8)
        figure.plain(axis)
        axis.margins(0.1)
        if title == "training FLOPs":
            figure.amounts(axis)
        axis.set_xlabel(title, color=figure.INK, fontsize=9)
        name = ("NLL (nats)", "reasoning accuracy")[metric - 1]
        axis.set_ylabel(name if k % 3 == 0 else "", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


if __name__ == "__main__":
    common.start(__file__)
