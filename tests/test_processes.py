"""Processes that meet, agree, and notice that one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from loopjax import cluster, same
from loopjax.errors import UserError
from loopjax.lock import Lock
from loopjax.processes import RESTART, Group
from loopjax.signals import Signals
from loopjax.watchdog import Watchdog
from tests.test_cli import finish, free_port, losses, start, train_command, wait_for_step


class Ends(list):
    """The sentences and codes with which processes would have ended."""

    def __call__(self, text, code):
        self.append((text, code))

    def wait(self):
        deadline = time.monotonic() + 5
        while not self and time.monotonic() < deadline:
            time.sleep(0.01)
        return self


def together(count, work, ends=None):
    """[what work(group) returns or raises] of processes that are threads of this one."""
    address, results = f"localhost:{free_port()}", [None] * count

    def run(index):
        try:
            with Group(
                Signals(), address, count, index, end=Ends() if ends is None else ends
            ) as group:
                group.meet()
                results[index] = work(group)
        except UserError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=[i], daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return results


def test_every_process_gets_the_values_of_all():
    def work(group):
        first = group.exchange("numbers", group.index * 10)
        return first, group.exchange("again", {"i": group.index})

    assert together(3, work) == [([0, 10, 20], [{"i": 0}, {"i": 1}, {"i": 2}])] * 3


def test_a_difference_is_told_with_the_process_that_has_it():
    def work(group):
        group.agree("config", {"config.seed": 1 if group.index == 1 else 0, "config.steps": 5})

    host = socket.gethostname()
    for error in together(3, work):
        assert str(error) == (
            f"process 1 on {host} has config.seed=1, process 0 on {host} has 0; all "
            "processes must run the same command, code and data"
        )


@pytest.mark.parametrize("asked", [0, 2])
def test_all_processes_stop_after_the_same_step_whoever_was_asked(asked):
    """As in training: an update needs all processes, and the host is one step ahead of it."""
    updates = [threading.Barrier(3) for _ in range(200)]

    def work(group):
        for step in range(1, 200):
            if step > 1:
                updates[step - 1].wait(timeout=5)  # the result of the update before
            if step == 20 and group.index == asked:
                group.signals.requested = signal.SIGTERM
            time.sleep(0.001 * group.index)
            if group.stops(step):
                return step
        return None

    steps = together(3, work)
    assert len(set(steps)) == 1 and 20 <= steps[0] < 60


def stranger(port, hello, beats=False):
    """A process that says hello, and nothing more."""
    sock = socket.create_connection(("localhost", port), timeout=5)
    sock.sendall(json.dumps(hello).encode() + b"\n")
    return sock


@pytest.mark.parametrize("how", ["ends", "is silent"])
def test_a_lost_process_is_named_with_its_step_and_what_is_saved(how):
    ends, port = Ends(), free_port()
    hello = {"index": 1, "count": 2, "host": "gpu7"}
    with Group(Signals(), f"localhost:{port}", 2, 0, end=ends) as group:
        peer = threading.Timer(0.2, lambda: peers.append(stranger(port, hello)))
        peers = []
        peer.start()
        group.meet()
        group.step, group.outlook = 120, lambda: "the last good checkpoint is step 100"
        begun = time.monotonic()
        if how == "ends":
            peers[0].close()
            said = "ended without a word"
        else:
            group.silence_s = 0.5
            said = "has given no sign of life for 0.5 s"
        assert ends.wait() == [
            (
                f"loopjax: process 1 on gpu7 {said} at step 120; the last good checkpoint is step "
                "100; this process ends with exit code 75, rerun the same command in all processes "
                "to resume",
                RESTART,
            )
        ]
        assert time.monotonic() - begun < 3
        peers[0].close()


def test_an_error_of_the_user_in_one_process_ends_the_others_with_its_sentence_and_code():
    ends = Ends()

    def work(group):
        if group.index == 1:
            raise UserError("--workdir w cannot be written")
        ends.wait()

    together(2, work, ends)
    host = socket.gethostname()
    assert ends == [(f"loopjax: process 1 on {host} ended: --workdir w cannot be written", 2)]


def test_a_process_that_does_not_start_is_named_and_a_line_says_so_meanwhile(monkeypatch, capfd):
    monkeypatch.setattr("loopjax.connection.PATIENCE_S", 0.2)
    for index, missing in ((0, 1), (1, 0)):
        ends, address = Ends(), f"localhost:{free_port()}"
        with (
            pytest.raises(SystemExit),
            Group(Signals(), address, 2, index, start_s=1, end=ends) as group,
        ):
            group.meet()
        (text, code), *_ = ends
        assert f"process {missing} of 2 did not start within 0:01 at {address}" in text
        assert code == RESTART
        assert f"waiting for process {missing} of 2 at {address}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        ({"index": 0, "count": 3}, "two processes have --process_id=0, on "),
        ({"index": 1, "count": 2}, "process 1 on b has --num_processes=2, process 0 on "),
    ],
)
def test_processes_that_do_not_fit_are_refused(hello, says):
    port, answers = free_port(), []

    def come():
        with stranger(port, {**hello, "host": "b"}) as sock:
            lines = map(json.loads, sock.makefile())
            answers.append(next(line["refused"] for line in lines if "refused" in line))

    visitor = threading.Timer(0.2, come)
    visitor.start()
    with (
        pytest.raises(UserError, match=says) as error,
        Group(Signals(), f"localhost:{port}", 3, 0, end=Ends()) as group,
    ):
        group.meet()
    visitor.join()
    assert answers == [str(error.value)]


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[001-002]", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("args", "env", "says"),
    [
        ((None, 2, None, False), {}, "--num_processes=2 requires --coordinator=HOST:PORT"),
        ((None, None, 1, False), {}, "--process_id=1 requires --coordinator=HOST:PORT"),
        (("h:1", None, None, False), {}, "--coordinator=h:1 requires --num_processes and"),
        (("h:1", 2, 2, False), {}, r"--process_id=2 must be 0..1 \(--num_processes=2\)"),
        (("h:1", 2, -1, False), {}, "--process_id=-1 must be 0..1"),
        (("h:1", 0, 0, False), {}, "--num_processes=0 must be at least 1"),
        (("h", 2, 0, False), {}, "--coordinator=h must be HOST:PORT"),
        (("h:99999", 2, 0, False), {}, "--coordinator=h:99999 must be HOST:PORT"),
        ((None, None, None, True), {}, "--distributed: no cluster was found"),
        (
            (None, None, None, True),
            {k: v for k, v in SLURM.items() if k in ("SLURM_JOB_ID", "SLURM_NTASKS")},
            "Slurm sets SLURM_JOB_ID, SLURM_NTASKS, but not SLURM_STEP_NODELIST, SLURM_PROCID",
        ),
        ((None, None, None, True), SLURM | {"SLURM_NTASKS": "2(x2)"}, "SLURM_NTASKS='2.x2.' must"),
        ((None, None, None, False), SLURM, "this is process 1 of 2 .SLURM_PROCID"),
        ((None, None, None, False), {"WORLD_SIZE": "4", "RANK": "3"}, "this is process 3 of 4"),
    ],
)
def test_flags_and_variables_that_do_not_fit_are_told(args, env, says, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        cluster.place(*args)


def test_slurm_tells_a_process_its_place_and_one_process_needs_none(monkeypatch):
    assert cluster.place(None, None, None, False) is None
    assert cluster.place("h:1", 2, 1, False) == cluster.Place("h:1", 2, 1)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = cluster.place(None, None, None, True)
    assert (place.coordinator, place.count, place.index) == ("node001:61447", 2, 1)
    assert cluster.place(None, 1, None, False) is None  # a run of its own


def test_a_hang_leaves_the_stacks_of_all_threads_and_a_sentence(tmp_path):
    ends, file = Ends(), tmp_path / "stacks.0.txt"
    with Watchdog(5, 0.5, file, end=ends) as watchdog:
        for step in range(1, 8):
            watchdog.step(step)
            with watchdog.off():  # a compilation, an evaluation
                time.sleep(0.15 if step < 7 else 1.0)
        assert not ends
        (text, code), *_ = ends.wait()
    assert code == RESTART and "after step 7, where a step takes" in text and str(file) in text
    assert "test_a_hang_leaves_the_stacks" in file.read_text()


def test_without_a_known_step_time_or_at_zero_nothing_is_a_hang(tmp_path):
    ends = Ends()
    for medians, steps in ((5, 3), (0, 20)):
        with Watchdog(medians, 0.1, tmp_path / "x", end=ends) as watchdog:
            for step in range(steps):
                watchdog.step(step)
            time.sleep(0.4)
    assert not ends


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_before_the_first_step_ends_the_process_at_once(name):
    """Also while Python itself does nothing, as in a compilation."""
    script = (
        "import signal, threading, time\n"
        "from loopjax.signals import Signals\n"
        "with Signals('train') as signals:\n"
        "    print('ready', flush=True)\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"  # no handler here
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + getattr(signal, name)
    assert err == f"loopjax train: stopped by {name} before the first step; nothing to save\n"
    assert time.monotonic() - begun < 2


def test_a_signal_after_the_first_step_is_a_request_and_a_second_ctrl_c_interrupts():
    with Signals("train") as signals:
        signals.something_to_save()
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
        assert signals.requested == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def pair(workdir, *flags, own=((), ()), devices=(1, 1)):
    shared = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", *flags]
    commands = [train_command(workdir, *shared, f"--process_id={i}", *own[i]) for i in (0, 1)]
    return [start(command, devices=n) for command, n in zip(commands, devices, strict=True)]


def lines(err):
    return [line for line in err.splitlines() if "Gloo" not in line]


def test_an_abort_of_jax_leaves_time_for_a_sentence():
    """As where JAX notices a lost process before the group does, in a thread without the GIL."""
    script = (
        "import ctypes, threading, time\n"
        "from loopjax.cli.training import _delay_aborts\n"
        "from loopjax.signals import end_process\n"
        "_delay_aborts()\n"
        "threading.Thread(target=ctypes.CDLL(None).abort, daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "end_process('loopjax: process 0 ended', 75)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "loopjax: process 0 ended\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "signum", "within"),
    [(0, signal.SIGKILL, 5), (1, signal.SIGKILL, 5), (0, signal.SIGSTOP, 15), (1, signal.SIGSTOP, 15)],
)  # fmt: skip
def test_the_survivor_of_a_run_ends_in_time_with_one_sentence_and_code_75(
    tmp_path, victim, signum, within
):
    both = pair(tmp_path, "--config.watchdog.silence_s=8", "--config.steps=4000")
    wait_for_step(both[0], tmp_path, 12)
    both[victim].send_signal(signum)
    begun = time.monotonic()
    err = finish(both[1 - victim], RESTART)
    both[victim].kill()
    both[victim].communicate()
    print(f"{signum.name} to process {victim}: {time.monotonic() - begun:.2f} s")
    assert time.monotonic() - begun < within
    said = [line for line in lines(err) if f"process {victim} on" in line]
    assert len(said) == 1 and "exit code 75" in said[0] and "last good checkpoint" in said[0]
    assert "Traceback" not in err  # JAX may print an error of its own before


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_lost_at_start_up_ends_the_other_with_a_sentence(tmp_path, victim, signum):
    shared = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    commands = [train_command(tmp_path, *shared, f"--process_id={i}") for i in (0, 1)]
    killed = ["tests.faults.victim", "compile", "1", signum.name]  # before its first step
    commands[victim][2:4] = killed
    both = [start(command, devices=1) for command in commands]
    next(line for line in both[victim].stderr if "victim: interrupted" in line)
    begun = time.monotonic()
    err = finish(both[1 - victim], RESTART if signum == signal.SIGKILL else 143)
    both[victim].communicate()
    print(f"start-up, {signum.name} to process {victim}: {time.monotonic() - begun:.2f} s")
    assert f"process {victim}" in lines(err)[-1] and "Traceback" not in err
    assert time.monotonic() - begun < 15


def test_a_workdir_that_is_not_shared_ends_all_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(same, "VISIBLE_S", 0.5)
    ends = Ends()

    def work(group):
        own = tmp_path / str(group.index)
        own.mkdir()
        with Lock(own) as lock:
            if group.index == 0:
                lock.take()
                group.exchange("lock", lock.owner())
                ends.wait()  # a process would end here
            else:
                same.check_workdir(group, lock)

    _, error = together(2, work, ends)
    host = socket.gethostname()
    assert str(error) == (
        f"--workdir {tmp_path / '1'} of process 1 on {host} is not that of process 0 on {host}; it "
        "must be on storage that all processes share"
    )
    assert ends == [(f"loopjax: process 1 on {host} ended: {error}", 2)]


@pytest.mark.slow
def test_processes_with_other_configs_or_devices_are_refused(tmp_path):
    for own, devices, says in (
        (((), ("--config.learning_rate=0.1",)), (1, 1), "has config.learning_rate=0.1, process 0"),
        (((), ()), (1, 3), "has devices=3, process 0 on"),
    ):
        both = pair(tmp_path / "run", own=own, devices=devices)
        for process in both:
            err = finish(process, 2)
            assert says in err and "Traceback" not in err
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_process_saves_and_stops_both(tmp_path, asked):
    both = pair(tmp_path, "--config.checkpoint_every=1000", "--config.steps=4000")
    wait_for_step(both[0], tmp_path, 15)
    both[asked].send_signal(signal.SIGHUP)
    begun = time.monotonic()
    errs = [finish(process) for process in both]
    print(f"SIGHUP to process {asked}: {time.monotonic() - begun:.2f} s")
    assert "stopped; saved step" in errs[0]
    steps = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert steps == [str(max(losses(tmp_path)))]


@pytest.mark.slow
def test_a_run_that_hangs_ends_with_code_75_and_the_stacks_of_its_threads(tmp_path):
    """The other process is stopped, and gives signs of life for all that this one knows."""
    both = pair(
        tmp_path, "--config.steps=4000", "--config.watchdog.silence_s=500",
        "--config.watchdog.medians=5", "--config.watchdog.least_s=4",
        "--config.checkpoint_every=0", "--config.eval_every=0",
    )  # fmt: skip
    wait_for_step(both[0], tmp_path, 30)
    both[1].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    err = finish(both[0], RESTART)
    both[1].kill()
    both[1].communicate()
    print(f"hang: {time.monotonic() - begun:.2f} s")
    assert "loopjax: no step for 0:0" in err and "stacks.0.txt" in err and "Traceback" not in err
    assert "step_metrics.py" in (tmp_path / "stacks.0.txt").read_text()
