import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from loopjax import config, lock
from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.files import read_rows, write_json
from loopjax.sweep import local, points, progress, slurm, table
from loopjax.train import train

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Runs that a test can afford; what stands for SWEEP differs.
FILE = """
from loopjax.config import default

def get_config(depth="1"):
    config = default()
    config.steps = STEPS
    config.batch_size = 8
    config.seq_len = 9
    config.depth = depth
    config.cooldown.steps = 1
    config.mixture = {"p_hop_1": 1.0}
    config.data_threads = 0
    config.warmup_steps = 1
    config.checkpoint_every = 100_000
    config.eval_batches = 1
    config.model.update(vocab_size=40, d_model=8, d_ff=8, n_heads=2, n_kv_heads=2, dtype="float32")
    return config

def sweep(add):
"""
THREE = """
    add(seed=0)
    add(seed=1)
    add(arg="1x2", seed=0)
"""
NAMES = ["seed-0", "seed-1", "1x2__seed-0"]
QUICK = {"JAX_PLATFORMS": "cpu"}


def config_file(folder, sweep, steps=3, head=""):
    path = folder / "config_of_a_sweep.py"
    path.write_text(head + FILE.replace("STEPS", str(steps)) + sweep)
    return path


def sweep_command(path, directory, *more):
    return [
        sys.executable, "-m", "loopjax", "sweep", f"--config={path}", f"--workdir={directory}", *more
    ]  # fmt: skip


def begin(path, directory, *more, **env):
    return subprocess.Popen(
        sweep_command(path, directory, *more), cwd=ROOT, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, **QUICK, **env},
    )  # fmt: skip


def end(process, code=0):
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err and "Warning" not in err
    return out, err


def wait_until(true, process):
    deadline = time.monotonic() + 240
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)


def starts(directory, name):
    """How often a run was started."""
    path = directory / name / "train.log"
    lines = path.read_text().splitlines() if path.is_file() else []
    return sum(line.startswith("$ ") for line in lines)


def steps_of(directory, name):
    return [row["step"] for row in read_rows(directory / name / "metrics.jsonl")]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of three points that was killed while it trained the first, and started again."""
    folder = tmp_path_factory.mktemp("swept")
    path, directory = config_file(folder, THREE), folder / "runs"
    process = begin(path, directory)
    next(line for line in process.stderr if "training seed-0" in line)  # its process is there
    process.kill()
    process.communicate()
    assert lock.held(directory / "seed-0" / "train.log")  # the run itself goes on
    _, err = end(begin(path, directory))
    return path, directory, err


@pytest.mark.slow
def test_a_sweep_that_was_killed_runs_nothing_twice(swept):
    _, directory, err = swept
    assert "3 points: 0 finished, 3 to run" in err and "3 of 3 points finished" in err
    assert "training seed-0" not in err  # it was waited for
    assert [starts(directory, name) for name in NAMES] == [1, 1, 1]
    assert all(steps_of(directory, name) == [1, 2, 3] for name in NAMES)
    shown = json.loads((directory / "sweep.json").read_text())["points"]
    assert [point["name"] for point in shown] == NAMES
    log = (directory / "seed-1" / "train.log").read_text()
    assert log.startswith(f"$ {shown[1]['command']}\n") and "done: held-out NLL" in log


def test_a_finished_sweep_does_nothing(swept, capsys):
    path, directory, _ = swept
    before = [(directory / name / "result.json").stat().st_mtime_ns for name in NAMES]
    arguments = [f"--config={path}", f"--workdir={directory}"]
    assert cli.main(["sweep", *arguments]) == 0
    assert "3 points: 3 finished, 0 to run" in capsys.readouterr().err
    assert cli.main(["sweep", *arguments, "--launcher=commands"]) == 0
    assert capsys.readouterr().out == ""
    assert [(directory / name / "result.json").stat().st_mtime_ns for name in NAMES] == before
    assert [starts(directory, name) for name in NAMES] == [1, 1, 1]


@pytest.mark.slow
def test_twelve_points_killed_twice_end_with_twelve_results_and_nothing_run_twice(tmp_path):
    twelve = """
    for arg in ("1", "1x2", "2"):
        for seed in range(4):
            add(arg=arg, seed=seed)
    """
    path, directory = config_file(tmp_path, twelve, 300, "import tests.paced\n"), tmp_path / "runs"
    names = [f"{arg}__seed-{seed}" for arg in ("1", "1x2", "2") for seed in range(4)]

    def finished():
        return {n for n in names if (directory / n / "result.json").is_file()}

    def training():
        return {n for n in names if len(steps_of(directory, n)) > 3} - finished()

    first = begin(path, directory, "--jobs=2")
    wait_until(lambda: len(finished()) >= 2 and training(), first)
    first.kill()
    first.communicate()
    alone = {n for n in names if starts(directory, n)}

    second = begin(path, directory, "--jobs=2")
    wait_until(lambda: len(finished()) >= 6 and training() - alone, second)
    second.send_signal(signal.SIGTERM)
    _, err = end(second, code=1)
    assert "to save and exit" in err and "stopped; rerun the same command to resume" in err
    stopped = {n for n in names if starts(directory, n)} - finished()
    before = {n: (directory / n / "result.json").read_bytes() for n in finished()}
    assert len(before) < 12

    _, err = end(begin(path, directory, "--jobs=2"))
    assert "12 of 12 points finished" in err and finished() == set(names)
    assert all((directory / n / "result.json").read_bytes() == text for n, text in before.items())
    assert {n: starts(directory, n) for n in names} == {n: 1 + (n in stopped) for n in names}
    assert all(steps_of(directory, n) == list(range(1, 301)) for n in names)
    resumed = [
        n for n in names if "resuming from step" in (directory / n / "train.log").read_text()
    ]
    assert resumed and set(resumed) <= stopped  # a run that had not begun yet began anew


@pytest.mark.slow
def test_a_point_that_fails_is_told_and_the_others_run(tmp_path):
    two = """
    add(mixture={"nowhere": 1.0}, name="lost")
    add(name="sound")
    """
    path, directory = config_file(tmp_path, two), tmp_path / "runs"
    _, err = end(begin(path, directory), code=1)
    assert "1 of 2 points finished, 1 failed" in err
    line = next(line for line in err.splitlines() if line.startswith("failed   lost"))
    assert "exit code 2" in line and "nowhere" in line and "train.log" in line
    assert (directory / "sound" / "result.json").is_file()


def names_and_flags(path, directory, overrides=(), config=None):
    found = points.points(str(config or path), list(overrides), directory)
    return {point.name: point.command[4:] for point in found}


def test_points_are_named_by_what_they_change_and_commands_are_those_of_train(tmp_path):
    path = config_file(
        tmp_path,
        """
    add(arg="1x2", seed=1, learning_rate=1e-3)
    add({"model.d_model": 16, "model.tie_embeddings": False})
    add(mixture={"p_hop_1": 0.5, "p_hop_2": 1.0}, data_dir="a/b c")
    add()
    add(name="best", seed=3)
    """,
    )
    made = names_and_flags(path, "w", ["--config.batch_size=16"])
    assert made == {
        "1x2__seed-1__learning_rate-0.001": [
            f"--config={path}:1x2", "--workdir=w/1x2__seed-1__learning_rate-0.001",
            "--config.batch_size=16", "--config.seed=1", "--config.learning_rate=0.001",
        ],
        "model.d_model-16__model.tie_embeddings-false": [
            f"--config={path}", "--workdir=w/model.d_model-16__model.tie_embeddings-false",
            "--config.batch_size=16", "--config.model.d_model=16",
            "--config.model.tie_embeddings=false",
        ],
        "mixture-p_hop_1-0.5_p_hop_2-1.0__data_dir-a_b_c": [
            f"--config={path}", "--workdir=w/mixture-p_hop_1-0.5_p_hop_2-1.0__data_dir-a_b_c",
            "--config.batch_size=16", '--config.mixture={"p_hop_1": 0.5, "p_hop_2": 1.0}',
            "--config.data_dir=a/b c",
        ],
        "default": [f"--config={path}", "--workdir=w/default", "--config.batch_size=16"],
        "best": [f"--config={path}", "--workdir=w/best", "--config.batch_size=16", "--config.seed=3"],
    }  # fmt: skip
    found = points.points(str(path), ["--config.batch_size=16"], "w")
    assert found[0].config.depth == "1x2" and found[0].config.batch_size == 16
    assert found[2].config.mixture.to_dict() == {"p_hop_1": 0.5, "p_hop_2": 1.0}


def test_runs_that_have_the_name_of_an_earlier_version_are_found_again(tmp_path):
    path = config_file(tmp_path, """
    for seed in (0, 1):
        add(arg="1x2", seed=seed, mixture={"p_hop_1": 0.5, "p_hop_2": 1.0})
""")  # fmt: skip
    earlier = "1x2,seed=1,mixture=p_hop_1-0.5+p_hop_2-1.0"
    (tmp_path / "w" / earlier).mkdir(parents=True)
    names = [*names_and_flags(path, tmp_path / "w")]
    assert names == ["1x2__seed-0__mixture-p_hop_1-0.5_p_hop_2-1.0", earlier]
    runs = [{"name": f"lidas{seed}", "config": {"seed": n, "depth": "4"}}
            for n, seed in enumerate((",seed=0", ",seed=1"))]  # fmt: skip
    assert [*table.groups(runs, ["seed"])] == ["lidas"]


def test_the_argument_of_the_command_line_is_for_points_that_name_none(tmp_path):
    path = config_file(tmp_path, "\n    add(seed=1)\n")
    assert names_and_flags(path, "w", config=f"{path}:1x4")["seed-1"][0] == f"--config={path}:1x4"


@pytest.mark.parametrize(
    ("sweep", "flags", "says"),
    [
        ("    add(seed=0)\n    add({'model.d_modle': 8})", [],
         "point model.d_modle-8: config.model.d_modle does not exist; did you mean config.model.d_m"),
        ("    add(seed=0)\n    add(steps='many')", [], "config.steps='many' must be a whole number"),
        ("    add(seed=0)\n    add(depth='4-4y')", [], "point depth-4-4y: config.depth"),
        ("    add(seed=0)\n    add(batch_size=0)", [], "config.batch_size=0 must be at least 1"),
        ("    add(seed=0)\n    add(seed=0)", [], "have the name seed-0; set name= for each"),
        ("    add(name='a/b')", [], "invalid name 'a/b' of a point"),
        ("    add(name='slurm')", [], "invalid name 'slurm' of a point"),
        ("    add(name='sweep.json')", [], "invalid name 'sweep.json' of a point"),
        ("    add(name='checkpoints')", [], "invalid name 'checkpoints' of a point"),
        ("    add(seed=0)", ["--gpus=a,,b"], "--gpus=a,,b must list different devices like 0,1, "),
        ("    add(seed=0)", ["--gpus="], "--gpus= must list different devices like 0,1, "),
        ("    pass", [], "adds no point"),
        ("    add(seed=1 / 0)", [], ", line 20: ZeroDivisionError: division by zero"),
        ("    add(seed=0)", ["--config.seed=1"],
         "--config.seed contradicts the sweep, whose point seed-0 sets config.seed"),
        ("    add(arg='2')", ["--config={}:1"], "contradicts the sweep, whose points set arg"),
        ("    add(seed=0)", ["--config.sede=1"], "config.sede does not exist"),
        ("    add(seed=0)", ["--jbos=2"], "unknown flag '--jbos=2'"),
        ("    add(seed=0)", ["--jobs=0"], "--jobs: '0' must be a whole number of at least 1"),
        ("    add(seed=0)", ["--launcher=pbs"], "invalid choice: 'pbs'"),
        ("    add(seed=0)", ["--launcher=slurm"], "--slurm timeout_min=MINUTES (a whole number) is required"),
        ("    add(seed=0)", ["--launcher=slurm", "--slurm", "timeout_min=5"], "srun was not found"),
        ("    add(seed=0)", ["--launcher=slurm", "--slurm", "fast"], "'fast' must be KEY=VALUE"),
        ("    add(seed=0)", ["--slurm", "nodes=2"], "--slurm goes with --launcher=slurm"),
        ("    add(seed=0)", ["--jobs=2", "--gpus=0,1,2"], "the same number for each of 2 jobs"),
    ],
)  # fmt: skip
def test_a_mistake_in_any_point_is_told_before_the_first_starts(
    sweep, flags, says, tmp_path, capsys, monkeypatch
):
    path = config_file(tmp_path, sweep)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no srun
    flags = [flag.format(path) for flag in flags]
    assert cli.main(["sweep", f"--config={path}", "--workdir=runs", *flags]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_launcher_that_is_not_installed_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    path = config_file(tmp_path, THREE)
    arguments = [f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--launcher=slurm"]
    assert cli.main(["sweep", *arguments, "--slurm", "timeout_min=5"]) == 2
    assert "--launcher=slurm needs pip install 'loopjax[sweep]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("learning_rate = 1", "learning_rate = 2", "config.learning_rate=2.0 (the run has 1.0)"),
        ("steps = 3", "steps = 4", "config.steps=4 (the run has 3)"),
    ],
)
def test_a_directory_of_another_run_is_refused_before_anything_starts(
    swept, tmp_path, old, new, says
):
    path, directory, _ = swept
    (tmp_path / "runs").mkdir()
    saved = json.loads((directory / "seed-1" / "config.json").read_text())
    saved["learning_rate"] = 1.0
    (tmp_path / "runs" / "seed-1").mkdir()
    write_json(tmp_path / "runs" / "seed-1" / "config.json", saved)
    result = (directory / "seed-1" / "result.json").read_bytes()
    (tmp_path / "runs" / "seed-1" / "result.json").write_bytes(result)
    text = path.read_text().replace("    return", "    config.learning_rate = 1.0\n    return")
    other = tmp_path / "other.py"
    other.write_text(text)
    assert len(points.points(str(other), [], tmp_path / "runs")) == 3
    other.write_text(text.replace(old, new))
    with pytest.raises(UserError, match="point seed-1: .* belongs to another run: ") as refused:
        points.points(str(other), [], tmp_path / "runs")
    assert says in str(refused.value)


def test_commands_are_printed_for_what_is_left(swept, tmp_path, capsys):
    path, _, _ = swept
    assert cli.main(
        ["sweep", f"--config={path}", f"--workdir={tmp_path / 'my runs'}", "--launcher=commands"]
    ) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[1:4] for line in lines] == [["-m", "loopjax", "train"]] * 3
    assert [shlex.split(line)[5] for line in lines] == [
        f"--workdir={tmp_path / 'my runs' / name}" for name in NAMES
    ]
    assert [p.name for p in (tmp_path / "my runs").iterdir()] == ["sweep.json"]


def test_a_directory_is_trained_in_by_one_process(tiny_config, tmp_path):
    with lock.Lock(tmp_path) as held:
        held.take()
        assert lock.holder(tmp_path)["pid"] == os.getpid()
        with pytest.raises(
            UserError, match=rf"being trained by another process \({os.getpid()} on"
        ):
            train(tiny_config, tmp_path)
    assert lock.holder(tmp_path) is None
    assert not (tmp_path / "checkpoints").exists()


def test_a_lock_ends_with_the_process_that_has_it(tmp_path):
    code = (
        "import sys, time; from loopjax.lock import Lock; lock = Lock(sys.argv[1]); lock.take(); "
        "print('taken', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.readline()
        assert lock.holder(tmp_path)["pid"] == process.pid
        process.kill()
    assert lock.holder(tmp_path) is None


def point(directory, command, name="one"):
    return points.Point(name, {}, pathlib.Path(directory) / name, command, config.default())


def test_a_started_point_has_its_devices_and_cannot_be_started_again(tmp_path):
    cores = local.shares_of_cores(2)[1]
    say = (
        "import os, time; time.sleep(0.5); print(os.environ['CUDA_VISIBLE_DEVICES'], "
        "*sorted(os.sched_getaffinity(0)), flush=True); time.sleep(60)"
    )
    one = point(tmp_path, [sys.executable, "-c", say])
    process = local.start(one, local.Slot("2,3", cores))
    try:
        mine = f"2,3 {' '.join(map(str, cores or sorted(os.sched_getaffinity(0))))}"
        wait_until(lambda: mine in one.log.read_text().splitlines(), process)
        assert local.start(one) is None and local.trainer_of(one) == {}
    finally:
        process.kill()
        process.wait()
    assert local.trainer_of(one) is None


def test_devices_are_handed_out_once_also_when_runs_of_a_killed_sweep_have_some(tmp_path):
    here = os.uname().nodename
    slots = a, b, c = [local.Slot(gpus, (k,)) for k, gpus in enumerate(("0,1", "2,3", "4,5"))]
    sweep = local._Sweep([], slots, progress.Screen(), [])
    assert sweep._free([]) == [a, b, c]
    assert sweep._free([{"host": here, "devices": "2,3"}]) == [a, c]
    assert sweep._free([{"host": here, "devices": "1,2"}]) == [c]
    assert sweep._free([{"host": here, "devices": ""}, {}]) == [c]
    assert sweep._free([{"host": "another", "devices": "0,1"}]) == [a, b, c]
    sweep.running = [local._Training(point(tmp_path, []), None, c)]
    assert sweep._free([{"host": here, "devices": "0"}]) == [b]


def test_concurrent_runs_share_the_cores_without_overlap(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    assert local.shares_of_cores(2) == [(0, 1), (2, 5, 7)]
    assert local.shares_of_cores(5) == [(0,), (1,), (2,), (5,), (7,)]
    assert local.shares_of_cores(1) == [()] and local.shares_of_cores(6) == [()] * 6
    monkeypatch.delattr(os, "sched_getaffinity")
    assert local.shares_of_cores(2) == [(), ()]


def test_progress_is_read_from_the_end_of_a_log(tmp_path):
    one = point(tmp_path, [])
    one.config.steps = 5000
    assert progress.status(one) == "one  step 0/5000"
    one.workdir.mkdir()
    rows = [
        {"step": s, "loss": 3.0, "tokens": 100 * s, "tokens_per_s": 50.0} for s in range(1, 4001)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (one.workdir / "metrics.jsonl").write_text(text + '{"step": 4001, "lo')
    assert len(progress.last_rows(one.workdir)) < 400
    assert progress.status(one) == "one  step 4000/5000  loss 3.0000  ETA 33:20"


# Slurm.


@pytest.mark.slow
def test_a_job_that_is_preempted_saves_and_goes_on_when_it_is_queued_again(tmp_path, monkeypatch):
    submitit = slurm._submitit()
    for key, value in QUICK.items():
        monkeypatch.setenv(key, value)
    path = config_file(tmp_path, "\n    add(seed=0)\n", 300, "import tests.paced\n")
    one = points.points(str(path), [], tmp_path / "runs")[0]
    cluster = submitit.LocalExecutor(tmp_path / "slurm")
    cluster.update_parameters(timeout_min=5)
    job = cluster.submit(slurm.Job(one))
    while not steps_of(tmp_path / "runs", "seed-0"):
        assert not job.done(), job.stderr()
        time.sleep(0.05)
    controller = job._process.pid
    task = pathlib.Path(f"/proc/{controller}/task/{controller}/children").read_text().split()[0]
    os.kill(int(task), signal.SIGUSR2)  # as Slurm before the end
    job.wait()
    assert one.result()["steps"] == 300, job.stderr()
    log = one.log.read_text()
    assert "stopped; saved step" in log and "resuming from step" in log
    assert starts(tmp_path / "runs", "seed-0") == 2
    assert steps_of(tmp_path / "runs", "seed-0") == list(range(1, 301))


# The commands of Slurm, as far as they are used, on this machine: an array runs one job after
# another. tests/test_slurm.py has a real Slurm.
SLURM = {
    "sbatch": """
import os, pathlib, re, subprocess, sys
here, lines = pathlib.Path(__file__).parent, []
for i in range(int(re.search(r"--array=0-(\\d+)%", open(sys.argv[1]).read())[1]) + 1):
    (here / f"7_{i}.job").write_text("PENDING")
    ended = f"([ $? = 0 ] && echo COMPLETED || echo FAILED) > {here}/7_{i}.job"
    lines.append(f"SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID={i} bash {sys.argv[1]}; {ended}")
env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
subprocess.Popen(["bash", "-c", "; ".join(lines)], env=env, start_new_session=True, **quiet)
print("Submitted batch job 7")
""",
    "srun": """
import os, re, sys
command = sys.argv[sys.argv.index(next(a for a in sys.argv if "python" in a and a[0] == "/")):]
os.execv(command[0], command)
""",
    "squeue": """
import pathlib
for path in pathlib.Path(__file__).parent.glob("*.job"):
    print(f"{path.stem}|{path.read_text().strip()}|None")
""",
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in SLURM.items():
        (folder / name).write_text(f"#!{sys.executable}\n{code}")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.slow
def test_a_sweep_on_slurm_is_an_array_that_outlives_it_and_is_found_again(cluster, tmp_path):
    two = """
    add(seed=0)
    add(mixture={"nowhere": 1.0}, name="lost")
    """
    path, directory = config_file(tmp_path, two, 100, "import tests.paced\n"), tmp_path / "runs"
    flags = ["--launcher=slurm", "--slurm", "timeout_min=5", "partition=small"]
    process = begin(path, directory, *flags, PATH=cluster)
    wait_until((directory / "slurm" / "jobs.json").is_file, process)
    process.send_signal(signal.SIGINT)
    _, err = end(process, code=1)
    assert "submitted 7_0, 7_1" in err and "no longer watching; the jobs keep running" in err
    script = (directory / "slurm" / "7_submission.sh").read_text()
    assert "--partition=small" in script and "--signal=USR2@75" in script
    _, err = end(begin(path, directory, *flags, PATH=cluster), code=1)
    assert "2 points: 0 finished, 2 queued or running, 0 to submit" in err
    assert "done     seed-0" in err and "failed   lost  exit code 2: " in err
    assert "1 of 2 points finished, 1 failed" in err
    assert [starts(directory, name) for name in ("seed-0", "lost")] == [1, 1]


def test_a_setting_that_slurm_does_not_know_is_told(cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", cluster)
    path = config_file(tmp_path, THREE)
    arguments = [f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--launcher=slurm"]
    assert cli.main(["sweep", *arguments, "--slurm", "timeout_min=5", "parttion=small"]) == 2
    err = capsys.readouterr().err
    assert "--slurm: Unknown argument 'parttion'" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def watch(points, answers, tmp_path, monkeypatch):
    """Watches the jobs of points while squeue gives one answer after another."""
    submitit = slurm._submitit()

    def listed():
        answer = next(answers)
        if isinstance(answer, UserError):
            raise answer
        return answer

    monkeypatch.setattr(slurm, "listed_jobs", listed)
    for name in ("POLL_S", "QUEUE_S"):
        monkeypatch.setattr(slurm, name, 0.0)
    jobs = {p.name: submitit.SlurmJob(tmp_path, f"7_{i}") for i, p in enumerate(points)}
    return slurm._Watch(points, jobs, progress.Screen(), []).run()


def test_a_controller_that_does_not_answer_ends_no_sweep(tmp_path, monkeypatch, capsys):
    down = UserError("--launcher=slurm: squeue: Unable to contact slurm controller")
    answers = [down, down, {"7_0": ("PENDING", "Resources")}, {"7_0": ("COMPLETING", "None")}]
    answers += [down, {"7_0": ("NODE_FAIL", "None")}]
    failed = watch([point(tmp_path, [])], iter(answers), tmp_path, monkeypatch)
    assert failed == ({"one": f"job 7_0 lost its node (log: {tmp_path}/7_0_0_log.err)"}, {})
    assert capsys.readouterr().err.count("Unable to contact slurm controller; asking again") == 2


def test_the_result_of_a_job_may_be_seen_later_than_its_end(tmp_path, monkeypatch, capsys):
    one = point(tmp_path, [])

    def answers():
        yield {"7_0": ("COMPLETED", "None")}
        one.workdir.mkdir()
        write_json(one.workdir / "result.json", {"heldout": {}, "wall_clock_s": 1.0})
        yield {}

    assert watch([one], answers(), tmp_path, monkeypatch) == ({}, {})
    assert "done     one" in capsys.readouterr().err
    monkeypatch.setattr(slurm, "LATE_S", 0.0)
    two = point(tmp_path, [], "two")
    failed = watch([two], iter([{"7_0": ("COMPLETED", "None")}]), tmp_path, monkeypatch)
    why = f"job 7_0 ended without a result (log: {tmp_path}/7_0_0_log.err)"
    assert failed == ({"two": why}, {})


def test_a_squeue_that_fails_is_one_sentence_before_anything_is_submitted(
    cluster, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", cluster)
    squeue = pathlib.Path(cluster.partition(":")[0]) / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Zero Bytes' >&2\nexit 1\n")
    path = config_file(tmp_path, THREE)
    arguments = [f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--launcher=slurm"]
    assert cli.main(["sweep", *arguments, "--slurm", "timeout_min=5"]) == 2
    err = capsys.readouterr().err
    assert "--launcher=slurm: squeue: slurm_load_jobs error: Zero Bytes" in err
    assert err.count("\n") == 1


def test_points_that_have_not_begun_are_counted_by_slurms_reason(tmp_path):
    submitit = slurm._submitit()
    names = ["begun", "running", "first", "second", "third"]
    some = [point(tmp_path, [], name) for name in names]
    jobs = {p.name: submitit.SlurmJob(tmp_path, f"7_{i}") for i, p in enumerate(some)}
    some[0].workdir.mkdir()
    some[0].log.touch()
    watch = slurm._Watch(some, jobs, progress.Screen(), [])
    states = [("PENDING", "BeginTime"), ("RUNNING", "None"), *[("PENDING", "Resources")] * 2]
    states += [("PENDING", "Dependency")]
    watch.listed = {f"7_{i}": state for i, state in enumerate(states)}
    steps = some[0].config.steps
    assert watch._lines() == [
        f"  begun  step 0/{steps}  pending (BeginTime)", f"  running  step 0/{steps}",
        "  2 pending (Resources)", "  1 pending (Dependency)",
    ]  # fmt: skip
