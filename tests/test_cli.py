import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from loopjax import config as config_lib
from loopjax import config_flags
from loopjax.cli import main as cli
from loopjax.errors import MissingPackage, UserError, require
from loopjax.files import read_rows
from loopjax.progress import duration

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = str(ROOT / "configs" / "tiny.py")
PACED = f"{ROOT / 'tests' / 'paced.py'}:lidas"  # the same run, slow enough to be stopped
# A run that a test can afford, as flags.
SMALL = [
    "--config.steps=40", "--config.cooldown.steps=8", "--config.warmup_steps=2",
    "--config.depth=4", "--config.growth.block=2", "--config.batch_size=8",
    "--config.seq_len=16", "--config.model.d_model=16", "--config.model.d_ff=24",
    '--config.mixture={"p_hop_1": 1.0, "p_hop_2": 1.0}', "--config.checkpoint_every=5",
    "--config.eval_batches=2", "--config.eval_every=20",
]  # fmt: skip


def train_command(workdir, *flags, config=f"{TINY}:lidas"):
    return [
        sys.executable, "-m", "loopjax", "train", f"--config={config}", f"--workdir={workdir}",
        *SMALL, *flags,
    ]  # fmt: skip


def start(command, devices=2, **kwargs):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE, cwd=ROOT, **kwargs)


def finish(process, code=0):
    try:
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, err
    return err


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_rows(workdir / "metrics.jsonl")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    err = finish(start(train_command(workdir)))
    assert "lidas to 4 layers" in err and "done: held-out NLL" in err
    assert "Traceback" not in err and "Warning" not in err
    return workdir


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if max(losses(workdir), default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {process.stderr.read()}")


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(whole, tmp_path):
    for step in (7, 23):
        process = start(train_command(tmp_path, config=PACED))
        wait_for_step(process, tmp_path, step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    err = finish(start(train_command(tmp_path)))
    assert "resuming from step" in err
    assert losses(tmp_path) == losses(whole)
    ends = [json.loads((path / "result.json").read_text()) for path in (tmp_path, whole)]
    assert ends[0]["heldout"] == ends[1]["heldout"]


@pytest.mark.slow
def test_sigterm_saves_and_exits_and_the_run_resumes(whole, tmp_path):
    process = start(train_command(tmp_path, "--config.checkpoint_every=1000", config=PACED))
    wait_for_step(process, tmp_path, 15)
    process.send_signal(signal.SIGTERM)
    assert "stopped; saved step" in finish(process)
    assert "resuming from step" in finish(start(train_command(tmp_path)))
    assert losses(tmp_path) == losses(whole)


def free_port():
    import socket

    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def start_pair(workdir, *flags, **kwargs):
    """Two processes of one device each, as on two hosts."""
    shared = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", *flags]
    return [
        start(train_command(workdir, *shared, f"--process_id={i}", **kwargs), devices=1)
        for i in (0, 1)
    ]


@pytest.mark.slow
def test_two_processes_make_the_losses_of_one(whole, tmp_path):
    pair = start_pair(tmp_path)
    errs = [finish(process) for process in pair]
    assert "done" in errs[0] and "step 40/40" not in errs[1]
    one = losses(whole)
    assert losses(tmp_path) == {step: pytest.approx(loss, rel=1e-5) for step, loss in one.items()}


@pytest.mark.slow
def test_two_processes_stop_together_and_one_process_resumes(whole, tmp_path):
    pair = start_pair(tmp_path, "--config.checkpoint_every=1000", config=PACED)
    wait_for_step(pair[0], tmp_path, 15)
    for process in pair:
        process.send_signal(signal.SIGTERM)
    errs = [finish(process) for process in pair]
    assert "stopped; saved step" in errs[0]
    finish(start(train_command(tmp_path)))
    one = losses(whole)
    assert losses(tmp_path) == {step: pytest.approx(loss, rel=1e-5) for step, loss in one.items()}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["train"], "--config is missing"),
        (["train", f"--config={TINY}"], "--workdir is missing"),
        (["train", f"--config={TINY}:grown", "--workdir=w"], "variant 'grown' of configs/tiny.py"),
        (["train", "--config=none.py", "--workdir=w"], "--config=none.py cannot be loaded"),
        (
            ["train", f"--config={TINY}", "--workdir=w", "--config.growth.blok=2"],
            "config.growth.blok does not exist; did you mean config.growth.block?",
        ),
        (["train", f"--config={TINY}", "--workdir=w", "--config.steps=many"], "config.steps"),
        (["train", f"--config={TINY}", "--workdir=w", "--config.depth=12x"], "config.depth"),
        (["train", f"--config={TINY}", "--workdir=w", "--wrokdir=x"], "did you mean --workdir?"),
        (
            ["train", f"--config={TINY}", "--workdir=w", "--steps=3"],
            "unknown flag --steps; did you mean --config.steps=3?",
        ),
        (
            ["train", f"--config={TINY}", "--workdir=w", "--d_model=64"],
            "unknown flag --d_model; did you mean --config.model.d_model=64?",
        ),
        (["train", f"--config={TINY}", "--workdir=w", "stray"], "'stray' is not a flag"),
        (["prepare", "--input", "none.txt", "--output", "w"], "input none.txt is not a file"),
        (["prepare", "--output", "w"], "give exactly one of --input, --dataset and --recipe"),
        (["prepare", "--recipe", "smol", "--output", "w"], "smol must be one of smollm, smollm-"),
        (["prepare", "--input", "x", "--subset", "en", "--output", "w"], "goes with --dataset"),
        (["data", "none"], "none has no data written by loopjax prepare"),
        (
            ["report", "out.html", "w"],
            "w is not the directory of a run, a checkpoint (DIR or DIR@STEP), or results",
        ),
    ],
)
def test_a_mistake_is_reported_in_one_sentence_with_exit_code_2(
    argv, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_flags_override_the_config():
    argv = [f"--config={TINY}:loop", "--config.mixture={'web': 0.7, 'math': 0.3}"]
    config, _ = config_flags.parse("flops", "", argv)
    assert config.depth == "4x3"
    assert config.mixture.to_dict() == {"web": 0.7, "math": 0.3}
    with pytest.raises(UserError):
        config_flags.parse("flops", "", [f"--config={TINY}", "--config.model.d_model=1.5"])


@pytest.mark.slow
def test_prepare_and_train_from_the_command_line(tmp_path, capsys):
    lines = (json.dumps({"text": f"line {i} " * 30}) for i in range(200))
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    output = ["--output", str(tmp_path / "data" / "web"), "--heldout", "0.1"]
    assert cli.main(["prepare", "--input", str(tmp_path / "in.jsonl"), *output]) == 0
    assert "train:" in capsys.readouterr().out
    flags = [f"--config.data_dir={tmp_path / 'data'}", "--config.mixture={'web': 1.0}"]
    finish(start(train_command(tmp_path / "run", *flags, "--config.steps=10")))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["heldout"]["web/nll"] > 0


def test_durations_read_like_a_clock():
    assert [duration(s) for s in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]


def test_an_interrupt_is_reported_in_one_sentence(tmp_path):
    """Also while JAX compiles: no traceback, no crash, the code that shells expect."""
    script = (
        "import signal, sys, loopjax.cli.main as cli\n"
        # A process started in the background ignores the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def interrupted(argv):\n"
        "    import jax, threading, _thread\n"
        "    f = jax.jit(lambda x: sum(jax.numpy.sin(x * i) @ x for i in range(300)))\n"
        "    threading.Timer(0.5, _thread.interrupt_main).start()\n"
        "    f(jax.numpy.ones((8, 8)))\n"
        "    import time; time.sleep(60)\n"
        "cli.Command.run = lambda command, argv: interrupted(argv)\n"
        "sys.argv = ['loopjax', 'flops']\n"
        "cli.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        130,
        "loopjax flops: interrupted; files already written are kept\n",
    )


@pytest.mark.parametrize("closed", ["2>&1 | head -1", "2>&-", ">&- 2>&-"])
def test_a_reader_that_is_gone_ends_nothing(closed, tmp_path):
    script = (
        "import sys, time, loopjax.cli.main as cli\n"
        "from loopjax.progress import print_line\n"
        "def train(argv):\n"
        "    for i in range(20):\n"
        "        print_line(f'step {i}')\n"
        "        time.sleep(0.01)\n"
        "    with open('file', 'w') as file: file.write('trained')\n"
        "    return 0\n"
        "cli.Command.run = lambda command, argv: train(argv)\n"
        "sys.argv = ['loopjax', 'train']\n"
        "cli.run()\n"
    )
    (tmp_path / "run.py").write_text(script)
    shell = f"set -o pipefail; {sys.executable} run.py {closed}; exit $?"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == 0, done
    assert (tmp_path / "file").read_text() == "trained"
    assert b"Broken" not in done.stderr


def test_output_that_nobody_reads_and_too_little_memory_are_no_tracebacks(tmp_path):
    script = (
        "import sys, loopjax.cli.main as cli\n"
        "def run(argv):\n"
        "    if argv: raise MemoryError('Unable to allocate 20 GiB')\n"
        "    while True: print('row ' * 1000)\n"
        "cli.Command.run = lambda command, argv: run(argv)\n"
        "cli.run()\n"
    )
    (tmp_path / "run.py").write_text(script)
    shell = f"{sys.executable} run.py results | head -1; echo ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-c", shell], **run)
    assert (done.stdout.splitlines()[1], done.stderr) == ("141", "")
    done = subprocess.run([sys.executable, "run.py", "train", "--big"], **run)
    assert (done.returncode, done.stderr) == (
        2,
        "loopjax train: this machine has too little memory: Unable to allocate 20 GiB\n",
    )


def test_few_open_files_are_told_before_anything_is_imported(tmp_path):
    shell = (
        f"ulimit -n 24; {sys.executable} -m loopjax train --config={TINY} --workdir={tmp_path}/w"
    )
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "loopjax train: this process may open 24 files; training needs at least 64: raise the limit "
        "with ulimit -n\n",
    )


def test_help_lists_every_command_in_two_columns_without_jax():
    script = (
        "import sys, loopjax.cli.main as cli\n"
        "assert cli.main(['--help']) == 0\n"
        "assert not {'jax', 'absl', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [row.split()[0] for row in rows] == list(cli.COMMANDS)
    assert len({len(re.match(r"  \S+ +", row)[0]) for row in rows}) == 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_flag_has_a_help_text_that_stands_alone(name, capsys):
    """Flags may be sorted: no text may continue another one."""
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    lines = re.sub(r"\n {6,}", "  ", capsys.readouterr().out).splitlines()
    flags = [re.match(r"  (-{1,2}\w[^ ]*(?: [^ ]+)*)(?:  +(.*))?$", line) for line in lines]
    texts = {match[1]: match[2] or "" for match in flags if match}
    assert texts
    for flag, text in texts.items():
        assert re.match(r"(?!of |that |which |its? |where |if |instead|at |how )[\w\d]", text), flag


def test_help_config_lists_every_field_with_default_and_comment(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help-config"])
    text = capsys.readouterr().out
    rows = dict(re.findall(r"^  ([\w.]+) = (\S+)", text, re.M))
    config = config_lib.default()
    fields = config_lib.flatten({**config.to_dict(), "mixture": 0})
    fields |= {"cooldown.mixture": {}, "mixture_update.bounds": {}}
    assert set(rows) == set(fields)
    assert rows["growth.block"] == "4" and rows["mesh.data"] == "-1"
    assert re.search(r"growth\.block = 4 +layers added per stage\n", text)
    assert re.search(r"\n\nLearning rate[^\n]*\n  learning_rate = 0.0005", text)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("config.steps = stpes", "line 4: NameError: name 'stpes' is not defined"),
        ("config.steps = 1 // 0", "line 4: ZeroDivisionError: "),
        ("config.steps = int('many')", "line 4: ValueError: invalid literal"),
        ("config.steps = (1", "line 4: SyntaxError: '(' was never closed"),
        ("import no_such_module", "line 4: ModuleNotFoundError: "),
        ("config.steps = {}['foo']", "line 4: KeyError: 'foo'\n"),
        ("config.modle.d_model = 8", "line 4: AttributeError: 'modle' Did you mean \"model\" "),
    ],
)
def test_an_exception_in_a_config_file_is_reported_with_its_line(line, says, tmp_path, capsys):
    file = tmp_path / "wrong.py"
    file.write_text(
        "from loopjax import config as config_lib\n"
        "def get_config():\n"
        "    config = config_lib.default()\n"
        f"    {line}\n"
        "    return config\n"
    )
    assert cli.main(["flops", f"--config={file}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"loopjax flops: --config={file}, {says}") and err.count("\n") == 1


def test_an_exception_in_a_module_of_the_config_names_both_places(tmp_path, capsys, monkeypatch):
    (tmp_path / "module_of_mine.py").write_text("def table():\n    return {}['foo']\n")
    file = tmp_path / "wrong.py"
    file.write_text("import module_of_mine\n\ndef get_config():\n    module_of_mine.table()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["flops", f"--config={file}"]) == 2
    place = f"{tmp_path / 'module_of_mine.py'}, line 2"
    said = f"loopjax flops: --config={file}, line 4: KeyError: 'foo' ({place})\n"
    assert capsys.readouterr().err == said


def test_a_config_without_the_variant_that_it_needs_is_reported_in_one_sentence(tmp_path, capsys):
    file = tmp_path / "wrong.py"
    file.write_text("def get_config(variant):\n    pass\n")
    assert cli.main(["flops", f"--config={file}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"loopjax flops: --config={file}: get_config() missing 1 required")
    assert said.count("\n") == 1


def test_a_config_file_cannot_add_a_field(tmp_path, capsys):
    file = tmp_path / "wrong.py"
    file.write_text(
        "from loopjax import config as config_lib\n"
        "def get_config():\n"
        "    config = config_lib.default()\n"
        "    config.growth.blok = 2\n"
        "    return config\n"
    )
    assert cli.main(["flops", f"--config={file}"]) == 2
    assert capsys.readouterr().err == (
        "loopjax flops: config.growth.blok does not exist; did you mean config.growth.block?\n"
    )


def test_a_missing_package_is_reported_with_the_extra_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingPackage) as error:
        require("lm_eval.tasks", "eval")
    assert str(error.value) == "needs pip install 'loopjax[eval]' (lm_eval is not installed)"
