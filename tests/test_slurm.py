"""The Slurm launcher against a real Slurm, started for these tests (tests/slurm_cluster.py)."""

import re
import subprocess

import pytest

from loopjax.cli import main as cli
from loopjax.sweep.points import read_if_complete
from tests.faults.runs import ROOT, assert_same
from tests.slurm_cluster import PATIENCE_S, CannotStart, Cluster, wait_until
from tests.test_sweep import QUICK, config_file, steps_of, sweep_command

pytestmark = pytest.mark.slow

# A point is trained slowly, 0.3 s per step, for as long as a file is there, so that a test
# can do something to a run that trains, however fast the machine.
PACED = """
import os, pathlib, sys, time
from loopjax.step_metrics import StepMetrics

push = StepMetrics.push

def paced(self, *args, **kwargs):
    value = push(self, *args, **kwargs)
    time.sleep(0.3 if pathlib.Path("FOLDER/slow").exists() else 0.0)
    return value

if sys.argv[1:2] == ["train"]:  # not in the process that reads the points
    StepMetrics.push = paced
"""
SEEDS = """
    add(seed=0)
    add(seed=1)
"""
STEPS = 1000
NAMES = ["seed-0", "seed-1"]
CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("submitit")
    try:
        with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
            cache = str(cluster.folder / "cache")
            cluster.env |= {**QUICK, **CACHE, "JAX_COMPILATION_CACHE_DIR": cache}
            yield cluster
    except CannotStart as reason:
        pytest.skip(str(reason))


class Sweep:
    """A sweep on the cluster in a folder of a test, and what it leaves."""

    def __init__(self, cluster, folder, points=SEEDS, head=""):
        self.cluster, self.folder, self.runs = cluster, folder, folder / "runs"
        self.path = config_file(
            folder, points, STEPS, (PACED + head).replace("FOLDER", str(folder))
        )
        (folder / "slow").touch()
        self.process = None

    def start(self, *settings, **env):
        flags = ["--config.checkpoint_every=25", "--launcher=slurm", "--slurm", "timeout_min=20"]
        self.process = subprocess.Popen(
            sweep_command(self.path, self.runs, *flags, *settings), cwd=ROOT, text=True,
            env={**self.cluster.env, **env}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def end(self, code=0):
        _, err = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == code, err
        assert "Traceback" not in err and "submitit" not in err and "sacct" not in err
        return err

    def go_on(self):
        """Lets the points train at full speed."""
        (self.folder / "slow").unlink()

    def log(self, name):
        path = self.runs / name / "train.log"
        return path.read_text() if path.exists() else ""

    def starts(self, name):
        return self.log(name).count("$ ")

    def job(self, name):
        """The job of a point; None before there is one."""
        return (read_if_complete(self.runs / "slurm" / "jobs.json") or {}).get(name)

    def state(self, name):
        return self.cluster.job(self.job(name))["JobState"]

    def until_trains(self, name, starts=1):
        """Waits until a point takes steps in its nth start."""
        wait_until(lambda: self.starts(name) == starts, f"start {starts} of {name}", self.say)
        taken = len(steps_of(self.runs, name)) if starts > 1 else 0
        wait_until(lambda: len(self.steps(name)) > taken, f"steps of {name}", self.say)

    def steps(self, name):
        there = (self.runs / name / "metrics.jsonl").exists()
        return steps_of(self.runs, name) if there else []

    def say(self):
        """What a failed wait shows."""
        files = [*self.runs.glob("*/train.log"), *self.runs.glob("slurm/*.err")]
        return "\n".join(f"{path}:\n{path.read_text()}" for path in files)


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory):
    """The directory of a sweep of the seeds 0 and 1, one after another, that nothing disturbed."""
    sweep = Sweep(cluster, tmp_path_factory.mktemp("whole"))
    # As from a job (an interactive one, say), whose memory would contradict that of the points.
    sweep.start("array_parallelism=1", "mem_gb=1", SLURM_JOB_ID="1", SLURM_MEM_PER_CPU="100")
    sweep.until_trains("seed-0")
    second = cluster.job(sweep.job("seed-1"))
    assert (second["JobState"], second["Reason"]) == ("PENDING", "JobArrayTaskLimit")
    sweep.go_on()
    err = sweep.end()
    assert "2 points: 0 finished, 0 queued or running, 2 to submit" in err
    assert "2 of 2 points finished" in err
    assert [sweep.starts(f"seed-{n}") for n in range(2)] == [1, 1]
    return sweep.runs


def test_an_array_outlives_its_sweep_and_preemptions_and_a_cancelled_point_is_run_again(
    cluster, whole, tmp_path
):
    sweep = Sweep(cluster, tmp_path)
    sweep.start()
    for name in NAMES:
        sweep.until_trains(name)
    sweep.process.kill()
    sweep.process.communicate()
    sweep.start()
    # Jobs of a partition of higher priority take both nodes, as on a cluster with PreemptMode=REQUEUE.
    cluster.call("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=true")
    for name in NAMES:
        sweep.until_trains(name, starts=2)
        assert "stopped; saved step" in sweep.log(name) and "resuming from step" in sweep.log(name)
    cancelled = sweep.job("seed-1")
    cluster.call("scancel", cancelled)
    wait_until(lambda: sweep.state("seed-1") == "CANCELLED", "the end of a job", sweep.say)
    sweep.go_on()
    err = sweep.end(code=1)
    assert "2 points: 0 finished, 2 queued or running, 0 to submit" in err
    assert f"failed   seed-1  job {cancelled} was cancelled (log: " in err
    assert "1 of 2 points finished, 1 failed" in err
    sweep.start()
    assert "2 points: 1 finished, 0 queued or running, 1 to submit" in sweep.end()
    assert [sweep.starts(name) for name in NAMES] == [2, 3]
    for name in NAMES:
        assert steps_of(sweep.runs, name) == list(range(1, STEPS + 1))
        assert_same(sweep.runs / name, whole / name)


def test_time_limits_and_lost_nodes_change_no_result(cluster, whole, tmp_path):
    sweep = Sweep(cluster, tmp_path)
    sweep.start("signal_delay_s=180")
    for name in NAMES:
        sweep.until_trains(name)
    # Slurm warns a job 180 s before its limit: at once, when the limit comes nearer than that.
    first, second = (cluster.job(sweep.job(name)) for name in NAMES)
    minutes = 2 + sum(
        n * m for n, m in zip(map(int, first["RunTime"].split(":")), (60, 1, 0), strict=True)
    )
    cluster.call("scontrol", "update", f"jobid={sweep.job('seed-0')}", f"timelimit={minutes}")
    wait_until(lambda: len(sweep.steps("seed-1")) > 30, "a checkpoint", sweep.say)
    cluster.kill_node(second["NodeList"])
    cluster.call(
        "scontrol", "update", f"nodename={second['NodeList']}", "state=down", "reason=test"
    )
    cluster.recover_node(second["NodeList"])
    wait_until(lambda: cluster.job(sweep.job("seed-0"))["Restarts"] == "1", "a limit", sweep.say)
    cluster.call("scontrol", "update", f"jobid={sweep.job('seed-0')}", "timelimit=20")
    for name in NAMES:
        sweep.until_trains(name, starts=2)
        assert "resuming from step" in sweep.log(name)
    assert "stopped; saved step" in sweep.log("seed-0")
    assert "stopped; saved step" not in sweep.log("seed-1")
    sweep.go_on()
    sweep.end()
    for name in NAMES:
        assert steps_of(sweep.runs, name) == list(range(1, STEPS + 1))
        assert_same(sweep.runs / name, whole / name)


# At step 5 a point ends as if another process of its run were lost: seed 0 once, seed 1 always.
LOST = """
def lost(self, step, *args, **kwargs):
    mark = pathlib.Path("FOLDER/lost")
    always = sys.argv[-1].endswith("seed=1")
    if step == 5 and (always or not mark.exists()):
        if not always:
            mark.touch()
        print("process 1 was lost", file=sys.stderr, flush=True)
        os._exit(75)
    return paced(self, step, *args, **kwargs)

if sys.argv[1:2] == ["train"]:
    StepMetrics.push = lost
"""


def test_a_run_that_asks_to_be_started_again_is_until_it_makes_no_progress(
    cluster, whole, tmp_path
):
    sweep = Sweep(cluster, tmp_path, head=LOST)
    sweep.go_on()
    sweep.start()
    err = sweep.end(code=1)
    says = "ended 3 times in a row without saving a step; process 1 was lost"
    assert f"failed   seed-1  exit code 75: {says} (log: " in err
    assert "1 of 2 points finished, 1 failed" in err
    assert [sweep.starts(name) for name in NAMES] == [2, 3]
    assert_same(sweep.runs / "seed-0", whole / "seed-0")


@pytest.mark.parametrize(
    ("points", "settings", "says"),
    [
        (1, ["partition=nowhere"], "invalid partition specified: nowhere"),
        (1, ["partition=closed"], "Batch job submission failed: Invalid account"),
        (1, ["timeout_min=90"], "Batch job submission failed: Requested time limit is invalid"),
        (6, [], "Batch job submission failed: Invalid job array specification"),
    ],
)
def test_what_slurm_refuses_is_one_sentence(
    points, settings, says, cluster, tmp_path, capsys, monkeypatch
):
    for key in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(key, cluster.env[key])
    sweep = Sweep(cluster, tmp_path, f"    [add(seed=n) for n in range({points})]")
    arguments = [f"--config={sweep.path}", f"--workdir={sweep.runs}", "--launcher=slurm"]
    assert cli.main(["sweep", *arguments, "--slurm", "timeout_min=5", *settings]) == 2
    err = capsys.readouterr().err.splitlines()
    assert f"--launcher=slurm: sbatch refused {points} job(s): {says}" in err[-1]
    assert [*err[:-1]] == [f"{points} points: 0 finished, 0 queued or running, {points} to submit"]


BRANCHES = """
    base = add(name="base")
    add(name="branch", init_from=base, init="weights", steps=3)
    lost = add(name="lost", mixture={"nowhere": 1.0})
    add(name="child", init_from=lost, init="weights", steps=3)
"""


def test_points_that_branch_wait_in_the_queue_without_the_sweep(cluster, tmp_path):
    sweep = Sweep(cluster, tmp_path, BRANCHES)
    sweep.start()
    sweep.until_trains("base")
    wait_until(lambda: sweep.state("child") == "CANCELLED", "a point without its base", sweep.say)
    sweep.process.kill()
    sweep.process.communicate()
    branch = cluster.job(sweep.job("branch"))
    assert (branch["JobState"], branch["Reason"]) == ("PENDING", "Dependency")
    sweep.go_on()
    wait_until(lambda: sweep.state("branch") == "COMPLETED", "the branch", sweep.say)
    sweep.start()
    err = sweep.end(code=1)
    assert "4 points: 2 finished, 0 queued or running, 2 to submit" in err
    assert "2 of 4 points finished, 1 failed, 1 waiting for others" in err
    assert "  child  waits for lost, which failed" in err
    assert re.search(r"failed   lost  exit code 2: .*nowhere.*\(log: .*train.log\)", err)
    assert sweep.starts("child") == 0 and sweep.starts("branch") == 1
