"""A run may be resumed on other devices and with other processes, and back."""

import pytest

from tests.faults import runs
from tests.faults.test_kills import cluster, pair

__all__ = ["cluster"]


def close(workdir, whole) -> None:
    """The rows of two runs agree to the rounding of another order of summation."""
    ours, theirs = runs.rows(workdir), runs.rows(whole)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), a["step"]
    a, b = runs.result(workdir)["heldout"], runs.result(whole)["heldout"]
    assert a["nll"] == pytest.approx(b["nll"], rel=1e-4)


def test_one_two_and_eight_devices_and_two_processes_take_turns(cluster, tmp_path, outcome):
    whole, workdir = tmp_path / "whole", tmp_path / "turns"
    code, err = cluster.run(whole, devices=1)
    assert code == 0, err
    turns = [("1 device", 1, 3), ("8 devices", 8, 2), ("2 devices", 2, 2)]
    for name, devices, steps in turns:
        code, err = cluster.run(
            workdir, devices=devices, moment="step", nth=steps, signal="SIGTERM"
        )
        assert code == 0 and "saved step" in err and "Traceback" not in err, err
        outcome("resumed on other devices", name, "same losses to 1e-4")
    ends = pair(cluster, workdir, {0: ("step", 2), 1: ("step", 2)}, signal="SIGTERM")
    assert all(code == 0 and "Traceback" not in err for code, err in ends), ends
    outcome("resumed on other devices", "2 processes of 1 device", "same losses to 1e-4")
    code, err = cluster.run(workdir, devices=1)
    assert code == 0 and "resuming from step" in err, err
    outcome("resumed on other devices", "1 device again", "same losses to 1e-4")
    close(workdir, whole)
