"""`loopjax scaling`: laws that made the losses are found again, and poor ladders are refused."""

import json
import math

import numpy as np
import pytest

from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.plots import scaling as plots
from loopjax.scaling import fits, multipliers, recurrence
from loopjax.scaling.recurrence import Point
from tests.finished_run import finished_run

PHI = 0.46


def loss(segments, tokens, phi=PHI):
    """E = 1.7, A = 400, a = 0.34, B = 410, b = 0.28 (the size of Chinchilla's)."""
    size = sum(r**phi * n for r, n in segments)
    return 1.7 + 400 * size**-0.34 + 410 * tokens**-0.28


def ladder(noise=0.0, repeats=(1, 2, 4, 8), tokens=(3e8, 1e9, 4e9), phi=PHI):
    """Models of ten layers, eight of them executed by a loop of 8 / r layers, in four sizes."""
    random = np.random.default_rng(1)
    points = []
    for layer in (1_000_000, 4_000_000, 16_000_000, 64_000_000):
        for r in repeats:
            for D in tokens:
                segments = ((1, 2 * layer), (r, 8 * layer // r))
                value = loss(segments, D, phi) * math.exp(noise * random.standard_normal())
                points.append(Point("", segments, int(D), value))
    return points


@pytest.mark.parametrize("phi", [0.0, PHI, 1.0])
def test_phi_of_losses_without_noise_is_found_again(phi):
    law = recurrence.estimate(ladder(phi=phi), draws=3)
    assert law.phi[0] == pytest.approx(phi, abs=1e-4)
    assert law.floor[0] == pytest.approx(1.7, rel=1e-3)
    assert law.size_exponent[0] == pytest.approx(0.34, rel=1e-3)
    assert law.data_exponent[0] == pytest.approx(0.28, rel=1e-3)
    assert law.size[0] == pytest.approx(400, rel=1e-2)
    assert law.data[0] == pytest.approx(410, rel=1e-2)


def test_phi_of_losses_with_noise_is_found_within_its_interval():
    law = recurrence.estimate(ladder(noise=2e-3), draws=60)
    assert law.phi[0] == pytest.approx(PHI, abs=0.02)
    assert law.phi[1] < PHI < law.phi[2] and law.phi[2] - law.phi[1] < 0.1


def test_runs_of_one_number_of_tokens_have_the_data_term_in_the_floor():
    law = recurrence.estimate(ladder(tokens=(1e9,)), draws=3)
    assert law.phi[0] == pytest.approx(PHI, abs=1e-4)
    assert law.data is law.data_exponent is None
    assert law.floor[0] == pytest.approx(1.7 + 410 * 1e9**-0.28, rel=1e-4)


def test_intervals_cover_the_true_phi():
    """Of 20 ladders with noise of their own, at least 16 intervals of 95% hold phi."""
    random = np.random.default_rng(0)
    points = ladder(tokens=(1e9,))
    held = 0
    for _ in range(20):
        noisy = [
            Point("", p.segments, p.tokens, p.loss * math.exp(1e-3 * random.standard_normal()))
            for p in points
        ]
        law = recurrence.estimate(noisy, draws=60)
        held += law.phi[1] < PHI < law.phi[2]
    assert held >= 16


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        (ladder(repeats=(1,)), "at least two numbers of repetitions; all 12 have 1"),
        (ladder(tokens=(1e9, 4e9)), "one or of at least 3 numbers of tokens; there are 2: 1,000,000,000"),
        (ladder(tokens=(1e9,))[:8], "at least 3 numbers of executed parameters; there are 2"),
        (ladder(tokens=(1e9,), noise=0.3), "do not identify phi: its 95% interval is"),
        ([], "at least two numbers of repetitions; all 0 have 0"),
    ],
)  # fmt: skip
def test_ladders_that_cannot_identify_phi_are_refused(points, sentence):
    with pytest.raises(UserError, match=sentence):
        recurrence.estimate(points, draws=60)


FLOPS = np.logspace(17, 20, 7)


def curve(flops):
    return 1.67 + 40 * flops**-0.09


def test_a_multiplier_is_the_compute_that_the_baseline_needs():
    base = multipliers.baseline(FLOPS, curve(FLOPS), draws=20)
    assert base.floor(base.fit) == pytest.approx(1.67, rel=1e-3)
    got = multipliers.multiplier(base, 1e19 / 1.3, curve(1e19))
    assert got.value == pytest.approx(1.3, rel=1e-4)
    assert got.low == pytest.approx(1.3, rel=1e-3) and got.high == pytest.approx(1.3, rel=1e-3)


def test_noise_of_the_baseline_is_in_the_interval_of_a_multiplier():
    noise = np.random.default_rng(0).standard_normal(len(FLOPS))
    base = multipliers.baseline(FLOPS, curve(FLOPS) * np.exp(2e-3 * noise), floor=1.67, draws=200)
    got = multipliers.multiplier(base, 1e19 / 1.3, curve(1e19))
    assert got.low < 1.3 < got.high and 0.02 < got.high - got.low < 0.6


@pytest.mark.parametrize(
    ("value", "reason"),
    [(1.66, "below the floor"), (curve(1e15), "less compute"), (curve(1e22), "more compute")],
)
def test_no_multiplier_where_the_baseline_says_nothing(value, reason):
    base = multipliers.baseline(FLOPS, curve(FLOPS), draws=5)
    got = multipliers.multiplier(base, 1e19, value)
    assert got.value is None and reason in got.reason


@pytest.mark.parametrize(
    ("flops", "losses", "floor", "sentence"),
    [
        (FLOPS[:3], curve(FLOPS[:3]), None, "3 amounts of compute; the curve needs at least 4"),
        (FLOPS[:2], curve(FLOPS[:2]), 1.6, "2 amounts of compute; the curve needs at least 3"),
        (FLOPS, curve(FLOPS), 3.0, "--floor=3.0 is not below the lowest loss"),
        (FLOPS, np.full(7, 2.0), None, "do not identify its curve"),
    ],
)
def test_baselines_without_a_curve_are_refused(flops, losses, floor, sentence):
    with pytest.raises(UserError, match=sentence):
        multipliers.baseline(flops, losses, floor=floor, draws=5)


def test_the_bootstrap_keeps_the_design():
    law = fits.Law(
        lambda theta: np.stack([FLOPS**0, (FLOPS / 1e18) ** -theta[0]], 1), ((0.01, 0.1, 1),)
    )
    fit = law.fit(curve(FLOPS))
    assert fit.error < 1e-9
    assert all(np.allclose(f.fitted, fit.fitted) for f in fits.bootstrap(law, fit, 0, 3))


def runs(directory):
    """A ladder of runs as files, and runs grown by LIDAS that need 1 / 1.2 of the compute."""
    for width in (16, 32, 64, 128):
        for depth in ("1-8-1", "1-4x2-1", "1-2x4-1"):
            parts = [p.partition("x") for p in depth.split("-")]
            one = width * (2 * (4 + 2) * (width // 4) + 3 * 24)
            segments = [(int(r or 1), int(n) * one) for n, _, r in parts]
            value = 1.7 + 40 * sum(r**PHI * n for r, n in segments) ** -0.34
            finished_run(
                directory / f"{depth}-{width}", {"nll": value}, depth=depth, model__d_model=width
            )
    return directory


def test_the_figure_of_phi_has_the_runs_and_the_law():
    points = ladder(repeats=(1, 4))
    law = recurrence.estimate(points, draws=3)
    (axis,) = plots.plot_recurrence(points, law, "nll").axes
    marks = {line.get_gid(): line for line in axis.lines if line.get_marker() != "None"}
    assert marks.keys() == {"no loop", "4 repetitions"}
    for line in axis.lines:  # all are on one of the curves of the three numbers of tokens
        x, y = line.get_data()
        curves = [1.7 + 400 * np.asarray(x) ** -0.34 + 410 * n**-0.28 for n in (3e8, 1e9, 4e9)]
        assert np.abs(np.array(curves) / y - 1).min(axis=0).max() < 1e-3
    assert len(axis.lines) == 2 + 3


def test_the_figure_of_multipliers_has_the_arms_and_the_curve_of_the_baseline():
    base = multipliers.baseline(FLOPS, curve(FLOPS), draws=3)
    arms = {"grown": [(1e19, 2.3)], "plain": list(zip(FLOPS, curve(FLOPS), strict=True))}
    (axis,) = plots.plot_multipliers(arms, "plain", base, "nll").axes
    first, second, line = axis.lines
    assert (first.get_gid(), second.get_gid()) == ("plain", "grown")
    assert list(second.get_xdata()) == [1e19] and list(second.get_ydata()) == [2.3]
    np.testing.assert_allclose(line.get_ydata(), curve(line.get_xdata()), rtol=1e-4)


def test_the_command_reads_plans_and_sizes_of_runs(tmp_path, capsys):
    assert cli.main(["scaling", str(runs(tmp_path)), "--json", "--draws=3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["phi"][0] == pytest.approx(PHI, abs=1e-3)
    assert result["size_exponent"][0] == pytest.approx(0.34, rel=1e-3) and result["runs"] == 12
    png = tmp_path / "figures" / "phi.png"
    assert cli.main(["scaling", str(tmp_path), "--draws=3", "--plot", str(png)]) == 0
    assert png.read_bytes()[:4] == b"\x89PNG"
    text = capsys.readouterr().out
    assert "phi, worth of repetitions" in text and "4 repetitions 1.89" in text


def test_the_command_compares_with_a_baseline(tmp_path, capsys):
    for width in (16, 32, 64, 128):
        plain = finished_run(tmp_path / f"plain-{width}", {"nll": 0.0}, model__d_model=width)
        file = plain / "result.json"
        result = json.loads(file.read_text())
        result["heldout"]["nll"] = 1.7 + 40 * result["training_flops"] ** -0.2
        file.write_text(json.dumps(result))
    grown = finished_run(
        tmp_path / "grown",
        {"nll": 0.0},
        growth__operator="lidas",
        growth__block=2,
        model__d_model=64,
    )
    result = json.loads((grown / "result.json").read_text())
    result["heldout"]["nll"] = 1.7 + 40 * (1.2 * result["training_flops"]) ** -0.2
    (grown / "result.json").write_text(json.dumps(result))
    flags = ["scaling", str(tmp_path), "--by=growth.operator", "--baseline=", "--draws=5"]
    assert cli.main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["run"] for r in found["runs"]] == ["grown"]
    assert found["runs"][0]["value"] == pytest.approx(1.2, rel=1e-3)
    assert cli.main([*flags, "--plot", str(tmp_path / "c.pdf")]) == 0
    assert (tmp_path / "c.pdf").read_bytes()[:4] == b"%PDF"
    assert "1.200" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--by=growth.operator"], "--baseline and --by go together"),
        (["--floor=1.5"], "it requires --baseline"),
        (["--plot=/dev/null/a.png"], "--plot"),
        (["--by=depth", "--baseline=77"], "--baseline='77' must be one of 'depth=4'"),
        (["--metric=acc"], "--metric=acc must be a metric of the runs: nll"),
        ([], "at least two numbers of repetitions"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, capsys, flags, sentence):
    finished_run(tmp_path / "run", {"nll": 2.0})
    assert cli.main(["scaling", str(tmp_path), *flags]) == 2
    assert sentence in capsys.readouterr().err
