"""Every file of a checkpoint damaged in every way, and read by every command that reads checkpoints.

The outcome is what the sound checkpoint gives, or one sentence about the damage; a resumed run falls
back to the checkpoint before and ends with the same bits. Never a traceback, never another number.
FAULTS=all tries every combination; by default a sample of them, the same each time.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys

import pytest

from loopjax.checkpoint import checksums, load_params
from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.lm.loaded_model import open_model
from loopjax.train import train
from tests.conftest import tiny_run
from tests.faults import damage

SAMPLE = {"quick": 0.4, "slow": 0.06}  # shares of the combinations, by the time a command takes
ALL = os.environ.get("FAULTS") == "all"


def config():
    config = tiny_run()
    config.growth.operator, config.cooldown.mixture, config.mixture = "", {}, {"stdlib": 1.0}
    config.update(depth="2", steps=8, checkpoint_every=4, eval_batches=0, seq_len=64)
    config.model.vocab_size = 257
    return config


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run with checkpoints at steps 4 and 8."""
    workdir = tmp_path_factory.mktemp("sound") / "run"
    with contextlib.redirect_stderr(io.StringIO()):
        train(config(), workdir)
    return workdir


def files_of(run):
    """Names of the files of the newest checkpoint: those with hashes for names by their place."""
    step = run / "checkpoints" / "8"
    return sorted(path.relative_to(step) for path in step.rglob("*") if path.is_file())


def has_sibling(path) -> bool:
    return sum(other.is_file() for other in path.parent.iterdir()) > 1


def swap_with_older(path):
    """Exchanges a file with that of the checkpoint before; a file of data with any of them."""
    step = next(parent for parent in path.parents if parent.name == "8")
    other = step.with_name("4") / path.relative_to(step)
    if not other.exists():
        other = sorted(other.parent.iterdir())[0]
    content = other.read_bytes()
    other.write_bytes(path.read_bytes())
    path.write_bytes(content)


DAMAGES = (*damage.DAMAGES, swap_with_older)


def printed(*argv) -> str:
    """Standard output of a command that must succeed; raises UserError with its sentence else."""
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(arg) for arg in argv])
    if code:
        sentence = re.fullmatch(rf"(?s)loopjax {argv[0]}: ([^\n]+)\n", err.getvalue())
        assert code == 2 and sentence, (code, err.getvalue()[-500:])
        raise UserError(sentence[1])
    print(err.getvalue(), file=sys.stderr)
    return out.getvalue()


def files_below(directory) -> dict:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.suffix in (".json", ".safetensors")
    }


# What a command reads from a run, as a value to compare. `new` is a path that does not exist.


def resume(run, new):
    train(config(), run)
    return checksums(load_params(run)[0])


def load(run, new):
    lm = open_model(run, mesh="fsdp=8", text=False)
    return checksums(lm.params)


def inspect(run, new):
    shown = json.loads(printed("inspect", run, "--layers", "--json"))
    return without_records(shown)


def without_records(value):
    """Without the path, and what Orbax records of time and devices: no checksum covers that."""
    if isinstance(value, list):
        return [without_records(part) for part in value]
    if not isinstance(value, dict):
        return value
    records = ("directory", "written", "mesh", "devices", "sharding", "checkpoint_b", "path")
    return {key: without_records(part) for key, part in value.items() if key not in records}


def against(run, new):
    shown = json.loads(printed("inspect", f"{run}@4", "--against", run, "--json"))
    return without_records(shown["against"])


def nll(run, new):
    return printed("nll", f"--checkpoint={run}", "--batches=1", "--batch-size=8")


def generate(run, new):
    return printed("generate", f"--checkpoint={run}", "--prompt=import", "--max-new-tokens=8")


def analyze(run, new):
    printed("analyze", f"--checkpoint={run}", "--what=norms", "--n=2", f"--output={new}")
    result = json.loads((new / "norms-arithmetic.json").read_text())
    weights = result["about"]["weights"]
    return weights, {k: v for k, v in result.items() if k not in ("about", "seconds")}


def export(run, new):
    printed("export-hf", run, new)
    return files_below(new)


def finetune(run, new):
    start = config()
    start.update(init_from=str(run), init="weights", steps=2)
    start.cooldown.steps = 0
    train(start, new)
    return checksums(load_params(new)[0])


QUICK = (load, inspect, export)
SLOW = (resume, nll, generate, analyze, against, finetune)


@pytest.mark.parametrize("command", [*QUICK, *SLOW], ids=lambda command: command.__name__)
def test_a_damaged_checkpoint_is_read_right_or_not_at_all(sound, tmp_path, capfd, outcome, command):
    expected = command(damage.copy(sound, tmp_path / "whole"), tmp_path / "new")
    older = damage.copy(sound, tmp_path / "older")
    shutil.rmtree(older / "checkpoints" / "8")
    before = command(older, tmp_path / "before")
    combinations = [
        (name, how)
        for name in files_of(sound)
        for how in DAMAGES
        if how is not damage.swap or has_sibling(sound / "checkpoints" / "8" / name)
    ]
    if not ALL:
        share = SAMPLE["slow" if command in SLOW else "quick"]
        draw = random.Random(command.__name__)
        combinations = draw.sample(combinations, round(share * len(combinations)))
    for name, how in combinations:
        run = damage.copy(sound, tmp_path / "run")
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        how(run / "checkpoints" / "8" / name)
        capfd.readouterr()
        what = f"{how.__name__} of {name}"
        try:
            found = command(run, tmp_path / "new")
            said = capfd.readouterr().err
            passed_over = "checkpoints/8 is not a complete checkpoint; passed over" in said
            assert found == (before if passed_over else expected), what
            result = "the checkpoint before, with a line" if passed_over else "right"
            if "is damaged" in said:
                result = "right, from the checkpoint before"
                assert (run / "checkpoints.damaged" / "8.0").is_dir(), what
        except UserError as error:
            said = capfd.readouterr().err
            assert re.search(r"checkpoint|no tokenizer", str(error)), (what, str(error))
            assert "\n" not in str(error), what
            assert not (tmp_path / "new").exists() or command is finetune, what
            result = "one sentence"
            if command is resume:  # an exchange damages both checkpoints
                assert how is swap_with_older and "[4, 8]" in str(error), (what, str(error))
                result = "one sentence: both checkpoints are damaged"
        assert "Traceback" not in said and "Event loop" not in said, (what, said)
        kept = [run / "checkpoints" / "4", *run.glob("checkpoints.damaged/4.*")]
        assert any(place.is_dir() for place in kept), what
        outcome("checkpoint, a damaged file", f"read by {command.__name__}", result)
