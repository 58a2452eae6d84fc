"""A run that is killed, however often and wherever, ends as if nothing had happened: to the bit."""

import random

import pytest

from tests.faults import EVERYTHING, damage, runs, victim

# Exit codes of a process that was interrupted: SIGKILL; SIGTERM before training; saved and stopped.
INTERRUPTED = {"SIGKILL": {-9}, "SIGTERM": {-15, 143, 0}}
# Moments of one run in the order of its steps, each the NTH call in its process: most of these
# processes resume a run that was killed while it resumed.
CHAINS = {
    "SIGKILL": [
        ("compile", 1), ("write", 1), ("grow", 1), ("restored", 1), ("evaluate", 1), ("step", 3),
        ("grown", 1), ("restore", 1), ("write", 2), ("new phase", 2), ("finish", 1), ("result", 1),
    ],
    "SIGTERM": [
        ("restore", 1), ("compile", 1), ("restored", 1), ("grow", 1), ("write", 1), ("grown", 1),
        ("evaluated", 1), ("new phase", 1), ("step", 1), ("finish", 1), ("result", 1),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return runs.Cluster(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory):
    """The run that nobody interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    code, err = cluster.run(workdir)
    assert code == 0, err
    return workdir


def interrupt(cluster, workdir, moment, nth, signal) -> bool:
    """Starts a run and interrupts it; returns whether it got to the moment."""
    code, err = cluster.run(workdir, moment=moment, nth=nth, signal=signal)
    assert "Traceback" not in err, err
    reached = victim.MARK in err
    assert code in INTERRUPTED[signal] if reached else code == 0, err
    return reached


@pytest.mark.parametrize("signal", CHAINS)
def test_a_run_killed_at_every_kind_of_moment_is_the_uninterrupted_one(
    cluster, whole, tmp_path, outcome, signal
):
    for moment, nth in CHAINS[signal]:
        assert interrupt(cluster, tmp_path, moment, nth, signal), moment
    code, err = cluster.run(tmp_path)
    assert code == 0, err
    runs.assert_same(tmp_path, whole)
    for moment, _ in CHAINS[signal]:
        outcome("kill, one process", f"{signal}: {moment}", "same bits")


@pytest.mark.parametrize("seed", range(20 if EVERYTHING else 1))
def test_a_run_killed_at_random_is_the_uninterrupted_one(cluster, whole, tmp_path, outcome, seed):
    draw = random.Random(seed)
    signals = [draw.choice(["SIGKILL", "SIGTERM"]) for _ in range(5)]
    reached = [
        interrupt(cluster, tmp_path, "random", draw.randrange(200, 5000), signal)
        for signal in signals
    ]
    code, err = cluster.run(tmp_path)
    assert code == 0, err
    runs.assert_same(tmp_path, whole)
    for signal, hit in zip(signals, reached, strict=True):
        outcome(
            "kill, one process", f"{signal}: at random", "same bits" if hit else "already finished"
        )


PAIR_MOMENTS = [("write", 1), ("grow", 1), ("evaluate", 1), ("restored", 1), ("step", 2)]


@pytest.mark.parametrize("seed", range(8 if EVERYTHING else 1))
def test_two_processes_killed_together_or_alone_end_as_the_uninterrupted_pair(
    cluster, tmp_path, outcome, seed
):
    draw = random.Random(seed)
    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    assert [code for code, _ in pair(cluster, whole)] == [0, 0]
    faults = []
    for moment, nth in PAIR_MOMENTS if EVERYTHING else PAIR_MOMENTS[:3]:
        killed = draw.choice([{0}, {1}, {0, 1}])
        ends = pair(cluster, workdir, {i: (moment, nth) for i in killed})
        for i, (code, err) in enumerate(ends):
            # A survivor exits with 75; one that had nothing left to do with the other exits with 0.
            assert code in ({-9, 0} if i in killed else {0, 75}), err
            assert "Traceback" not in err, err
        codes = " and ".join(str(code) for code, _ in ends)
        who = " and ".join(str(i) for i in sorted(killed))
        faults.append((f"SIGKILL of process {who}: {moment}", f"same bits (exit codes {codes})"))
    ends = pair(cluster, workdir)
    assert [code for code, _ in ends] == [0, 0], ends
    runs.assert_same(workdir, whole)
    for fault, came_of_it in faults:
        outcome("kill, two processes", fault, came_of_it)
    if seed == 0:
        damaged_for_two_processes(cluster, workdir, whole, outcome)


def damaged_for_two_processes(cluster, workdir, whole, outcome):
    """The newest checkpoint of a run that had not ended is damaged: both take the one before."""
    newest = runs.newest(workdir)
    damage.flip(max((newest / "params").rglob("d/*"), key=lambda path: path.stat().st_size))
    (workdir / "result.json").unlink()
    ends = pair(cluster, workdir)
    assert [code for code, _ in ends] == [0, 0], ends
    assert f"checkpoint {newest} is damaged" in ends[0][1]
    assert f"resuming from step {int(newest.name) - 2}" in ends[0][1]
    runs.assert_same(workdir, whole)
    outcome("checkpoint, a damaged file", "resumed by two processes", "same bits")


def pair(cluster, workdir, moments=None, signal="SIGKILL"):
    """Two processes of one device each, as on two hosts: (exit code, standard error) of each."""
    flags = [f"--coordinator=localhost:{runs.free_port()}", "--num_processes=2"]
    processes = []
    for i in range(2):
        moment, nth = (moments or {}).get(i, ("never", 1))
        own = {"moment": moment, "nth": nth, "signal": signal, "devices": 1}
        processes.append(cluster.start(workdir, *flags, f"--process_id={i}", **own))
    return [runs.end(process, timeout=240) for process in processes]
