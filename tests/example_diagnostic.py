"""A diagnostic as somebody would add it: one file, and the row that the test adds to the table."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Lengths:
    """Tokens of each prompt."""

    tokens: np.ndarray
    longest: int


def run(lm, cases, options, each):
    parts = each(lambda case: {"tokens": np.array(len(case[0]))}, cases)
    tokens = np.array([part["tokens"] for part in parts])
    return Lengths(tokens, int(tokens.max()))


def run_wrong(lm, cases, options, each):
    return each(lambda case: {"tokens": np.array(case[0])}, cases)


def plot(results, colors=None):
    from loopjax.plots import figure

    fig, (axis,) = figure.grid(1, 1, 4, 3)
    colors = figure.colors(results, colors)
    for label, result in results.items():
        (line,) = axis.plot(result.tokens, ".-", color=colors[label], label=label)
        figure.own(line, label)
    return fig
