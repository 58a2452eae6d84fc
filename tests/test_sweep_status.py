"""loopjax sweep --status and --retry."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest

from loopjax import config as config_lib
from loopjax import lock
from loopjax.cli import main as cli
from loopjax.files import write_json
from loopjax.sweep import directory as files
from loopjax.sweep import local, points, progress, status
from tests.test_sweep import config_file

STEPS = 40


def rows(n):
    """Rows of metrics.jsonl at 100 tokens a step and 50 tokens per second."""
    some = (
        {"step": s, "loss": 3.0, "tokens": 100 * s, "tokens_per_s": 50.0} for s in range(1, n + 1)
    )
    return "".join(json.dumps(row) + "\n" for row in some)


@pytest.fixture
def sweep(tmp_path):
    """A directory in which every state occurs."""
    names = [
        "done",
        "running",
        "crashed",
        "mistaken",
        "halved",
        "stopped",
        "fresh",
        "branch",
        "lost",
    ]
    waits = {"branch": "fresh@20", "lost": "mistaken"}
    entries = [{"name": n, "steps": STEPS, "waits_for": waits.get(n, "")} for n in names]
    write_json(tmp_path / "sweep.json", {"points": entries})
    for name in names[:6]:
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", {"steps": STEPS})
        (tmp_path / name / "metrics.jsonl").write_text(rows(10) + '{"step": 11, "lo')
    write_json(tmp_path / "done" / "result.json",
               {"steps": STEPS, "heldout": {"nll": 2.5}, "wall_clock_s": 65.0})  # fmt: skip
    files.record(tmp_path / "crashed", "failed", exit_code=-9, reason="step 10/40")
    mistake = "$ train\nTraceback (most recent call last):\n  x\n$ train\nloopjax train: no data\n"
    (tmp_path / "mistaken" / "train.log").write_text(mistake)
    files.record(
        tmp_path / "halved", "halved", step=10, metric="eval/nll", value=4.25, rank=3, of=4
    )
    ended = "Traceback (most recent call last):\nKeyError\n$ train\nstopped; saved step 10. Rerun\n"
    (tmp_path / "stopped" / "train.log").write_text(ended)
    with lock.Lock(tmp_path / "running") as held:
        held.take()
        yield tmp_path


def states(directory):
    return {p["name"]: p for p in status.of_sweep(directory)["points"]}


def test_every_state_is_known_from_the_files(sweep):
    found = states(sweep)
    assert {name: p["state"] for name, p in found.items()} == {
        "done": "done", "running": "running", "crashed": "failed", "mistaken": "failed",
        "halved": "halved", "stopped": "stopped", "fresh": "waiting", "branch": "waiting",
        "lost": "waiting",
    }  # fmt: skip
    assert found["done"]["nll"] == 2.5 and found["done"]["wall_clock_s"] == 65.0
    running = found["running"]
    assert (running["step"], running["loss"], running["eta_s"]) == (10, 3.0, 30 * 100 / 50)
    assert (running["pid"], running["host"]) == (os.getpid(), os.uname().nodename)
    assert (found["crashed"]["exit_code"], found["crashed"]["reason"]) == (-9, "step 10/40")
    assert (found["mistaken"]["exit_code"], found["mistaken"]["reason"]) == (
        None, "loopjax train: no data",
    )  # fmt: skip
    assert found["lost"]["reason"] == "waits for mistaken, which failed"
    assert status.of_sweep(sweep)["counts"] == {
        "done": 1, "running": 1, "failed": 2, "halved": 1, "stopped": 1, "waiting": 3,
    }  # fmt: skip


def test_the_table_shows_them_and_nothing_is_written(sweep, capsys):
    before = {p: p.stat().st_mtime_ns for p in sweep.rglob("*")}
    assert cli.main(["sweep", "--status", str(sweep)]) == 0
    out = capsys.readouterr().out
    head = "9 points: 1 done, 1 running, 2 failed, 1 halved, 1 stopped, 3 waiting\n"
    assert out.startswith(f"{sweep}: {head}")
    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()[3:]}
    here = os.uname().nodename
    assert lines == {
        "done": "done done 40/40 3.0000 2.5000 1:05",
        "running": f"running running 10/40 3.0000 ETA 1:00 pid {os.getpid()} on {here}",
        "crashed": "crashed failed 10/40 3.0000 signal 9: step 10/40",
        "mistaken": "mistaken failed 10/40 3.0000 loopjax train: no data",
        "halved": "halved halved 10/40 3.0000 eval/nll 4.2500 at step 10: 3 of 4",
        "stopped": "stopped stopped 10/40 3.0000",
        "fresh": "fresh waiting",
        "branch": "branch waiting waits for fresh@20",
        "lost": "lost waiting waits for mistaken, which failed",
    }
    assert {p: p.stat().st_mtime_ns for p in sweep.rglob("*")} == before
    assert cli.main(["sweep", "--status", str(sweep), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == status.of_sweep(sweep)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'"a"', b"null", b"\xff\x00", b'{"steps": "x"}']
)
@pytest.mark.parametrize(
    "name", ["sweep.json", "result.json", "config.json", "ended.json", "metrics.jsonl", "train.log",
             "lock", "jobs.json"],
)  # fmt: skip
def test_no_damaged_file_stops_it(name, content, sweep):
    places = {"sweep.json": sweep, "jobs.json": sweep / "slurm", "lock": sweep / "running"}
    for place in (
        [places[name]] if name in places else [sweep / n for n in ("done", "stopped", "halved")]
    ):
        place.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    found = status.of_sweep(sweep)
    assert status.as_text(found) and json.loads(status.as_json(found))
    if name == "sweep.json":
        assert {p["name"] for p in found["points"]} == {
            "done", "running", "crashed", "mistaken", "halved", "stopped",
        }  # fmt: skip
        assert "sweep.json is damaged: these are the runs that are there" in status.as_text(found)


def test_a_job_of_slurm_is_running_or_queued(sweep, monkeypatch, tmp_path):
    tool = tmp_path / "squeue"
    tool.write_text(
        "#!/bin/sh\necho '7_0|RUNNING|None'\necho '7_1|PENDING|Priority'\necho '5_0|FAILED|None'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (sweep / "slurm").mkdir()
    write_json(sweep / "slurm" / "jobs.json", {"stopped": "7_0", "fresh": "7_1", "branch": "5_0"})
    found = status.of_sweep(sweep)
    by_name = {p["name"]: p for p in found["points"]}
    assert (by_name["stopped"]["state"], by_name["stopped"]["job"]) == ("running", "7_0")
    assert by_name["fresh"]["state"] == by_name["branch"]["state"] == "waiting"
    assert "queued as job 7_1" in status.as_text(found) and "job" not in by_name["branch"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--status", "nowhere"], "--status nowhere is not the directory of a sweep: nowhere/sweep.json"),
        (["--status", "{}", "--jobs=2"], "--status goes with --json only, not with --jobs"),
        (["--status", "{}", "--config.seed=1"], "--status goes with --json only, not with --config.se"),
        (["--status", "{}", "--launcher=slurm"], "--status goes with --json only, not with --launcher"),
        (["--json", "--config=a", "--workdir=b"], "--json goes with --status=DIR"),
        (["--workdir=b"], "the following arguments are required: --config"),
        (["--status", ""], "--status is empty; write the path of a file or directory"),
    ],
)  # fmt: skip
def test_mistakes_about_the_status_are_one_sentence(flags, says, sweep, capsys):
    assert cli.main(["sweep", *(flag.format(sweep) for flag in flags)]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_the_status_imports_no_jax():
    code = (
        "import sys; from loopjax.sweep import status; from loopjax.cli import sweep;"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --retry


def failing(name, directory, code):
    """A point whose command ends with an exit code, or with a result if that is 0."""
    workdir = directory / name
    text = f'print("loopjax train: bad data"); sys.exit({code})'
    if not code:
        result = {"steps": 1, "heldout": {}, "wall_clock_s": 1.0}
        text = f"import json; json.dump({result}, open({str(workdir / 'result.json')!r}, 'w'))"
    command = [sys.executable, "-S", "-c", f"import sys; {text}"]
    return points.Point(name, {}, workdir, command, config_lib.default())


def test_a_failed_point_is_tried_once_per_call_and_its_failures_are_counted(tmp_path, capsys):
    sound, bad = failing("sound", tmp_path, 0), failing("bad", tmp_path, 3)
    points.write(tmp_path, "config.py", [sound, bad])
    for times in ("", "  again: failed once, the last with exit code 3",
                  "  again: failed 2 times, the last with exit code 3"):  # fmt: skip
        assert not local.run([sound, bad], [local.ANY], progress.Screen())
        err = capsys.readouterr().err
        assert err.count("training bad") == 1 and f"training bad{times}\n" in err
        found = states(tmp_path)
        assert found["sound"]["state"] == "done" and found["bad"]["state"] == "failed"
        assert (found["bad"]["exit_code"], found["bad"]["reason"]) == (3, "loopjax train: bad data")
    good = failing("bad", tmp_path, 0)
    assert local.run([sound, good], [local.ANY], progress.Screen())
    assert states(tmp_path)["bad"]["state"] == "done"


def test_a_point_that_is_started_again_is_no_longer_failed(tmp_path):
    bad = failing("bad", tmp_path, 3)
    local.run([bad], [local.ANY], progress.Screen())
    sleeping = points.Point("bad", {}, bad.workdir, ["sleep", "60"], bad.config)
    process = local.start(sleeping)
    try:
        points.write(tmp_path, "config.py", [bad])
        assert states(tmp_path)["bad"]["state"] == "running"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert states(tmp_path)["bad"]["state"] == "stopped"  # nobody has seen how it ended
    assert files.ended(bad.workdir) == {"failures": 1}


THREE = """
    a = add(name="alpha")
    add(name="beta", init_from=a)
    add(name="gamma", seed=1)
"""


def retried(folder, capsys, *names):
    path = config_file(folder, THREE)
    command = ["sweep", f"--config={path}", f"--workdir={folder / 'runs'}", "--launcher=commands"]
    code = cli.main([*command, "--retry", *names])
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.err.count("\n") == (code == 2)
    if code:
        return said.err
    return [pathlib.Path(shlex.split(line)[5]).name for line in said.out.splitlines()]


def test_retry_takes_the_failed_points_or_those_that_are_named(tmp_path, capsys):
    runs = tmp_path / "runs"
    assert retried(tmp_path, capsys, "failed") == []
    (runs / "gamma").mkdir()
    files.record(runs / "gamma", "failed", exit_code=2, reason="")
    assert retried(tmp_path, capsys, "failed") == ["gamma"]
    assert retried(tmp_path, capsys, "beta", "alpha") == ["alpha", "beta"]


def test_what_cannot_be_retried_is_refused_in_a_sentence(tmp_path, capsys):
    runs = tmp_path / "runs"
    assert "the sweep has no such point; did you mean gamma?" in retried(tmp_path, capsys, "gama")
    assert "no such point; did you mean failed?" in retried(tmp_path, capsys, "faild")
    assert "loopjax sweep --status DIR lists them" in retried(tmp_path, capsys, "x")
    said = retried(tmp_path, capsys, "beta")
    assert "--retry beta: it waits for alpha, which is not finished; add alpha" in said
    (runs / "gamma").mkdir(parents=True)
    with lock.Lock(runs / "gamma") as held:
        held.take()
        said = retried(tmp_path, capsys, "gamma")
        assert f"--retry gamma: a process is training it (pid {os.getpid()} on" in said
    write_json(runs / "gamma" / "result.json", {"steps": 3})
    said = retried(tmp_path, capsys, "gamma")
    assert f"it is finished; to train it again, remove {runs / 'gamma'} first" in said
    assert (runs / "gamma" / "result.json").is_file()
