"""Bad command lines, generated from the type of every flag and of every config field.

Each must end with code 2 and one sentence on standard error, without a traceback, and write nothing.
"""

import argparse
import contextlib
import io
import json
import pathlib
import re
import shutil

import pytest
from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax.cli import main as cli
from loopjax.train import train
from tests.conftest import tiny_run

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TINY = f"--config={ROOT / 'configs' / 'tiny.py'}:lidas"
HUGE = str(10**22)
BAD_WHOLE = ("-2", HUGE, "nan", "1.5", "many", "")
BAD_NUMBER = ("nan", "inf", "-1", "high", "")
BAD_PATH = ("gs://bucket/x", "", "a\0b")
BAD_SIZE = ("0GB", "-1GB", "9" * 400 + "GB", "nanGB", "80", "")
# Values that a flag or field may have, though others of its type may not.
ALLOWED = {
    ("config.growth.alpha", "-1"),  # later stages get fewer steps
    ("--mesh", ""),
    ("--tasks", ""),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a finished run and a file of text."""
    place = tmp_path_factory.mktemp("place")
    config = tiny_run()
    config.growth.operator, config.cooldown.mixture, config.mixture = "", {}, {"stdlib": 1.0}
    config.update(steps=4, checkpoint_every=4, eval_batches=0, seq_len=300)
    config.depth, config.model.vocab_size = "1x8", 257
    config.cooldown.steps = 0
    with contextlib.redirect_stderr(io.StringIO()):
        train(config, place / "run")
    (place / "in.jsonl").write_text('{"text": "some text"}\n' * 50)
    return place


# What each command needs besides the flag that is wrong.
NEEDED = {
    "sweep": [f"--config={ROOT / 'configs' / 'study.py'}", "--workdir=sweep"],
    "results": ["run"],
    "scaling": ["run"],
    "prepare": ["--input=in.jsonl", "--output=out"],
    "data": ["run"],
    "eval": ["--checkpoint=run", "--tasks=lambada_openai", "--output=eval.json"],
    "icl": ["--checkpoint=run", "--output=icl.json"],
    "nll": ["--checkpoint=run"],
    "generate": ["--checkpoint=run"],
    "analyze": ["--checkpoint=run", "--output=analysis"],
    "intervene": ["--checkpoint=run", "--op=swap", "--output=swap.json"],
    "inspect": ["run"],
    "report": ["page.html", "run"],
    "import-hf": ["model", "imported"],
    "import-orbax": ["run", "imported", "--map=maxtext"],
    "export-hf": ["run", "exported"],
}
WITH_CONFIG = {
    "train": [TINY, "--workdir=new"],
    "finetune": ["--checkpoint=run", "--pairs=var_assign_code_1:8", "--workdir=new"],
    "flops": [TINY],
    "plan": [TINY],
    "compile": [TINY, "--topology=v5e:2x2"],
}


# Where the sentence names another field than the one that was set.
SPOKEN_OF = {"--checkpoint": "checkpoint", "--pairs": "mixture", "model.vocab_size": "config.depth"}


class Grabbed(Exception):
    def __init__(self, parser):
        self.parser = parser


def parser_of(command: str) -> argparse.ArgumentParser:
    def grab(self, *args, **kwargs):
        raise Grabbed(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Grabbed) as grabbed:
        patch.setattr(argparse.ArgumentParser, "parse_args", grab)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", grab)
        cli.main([command, *NEEDED[command]])
    return grabbed.value.parser


def bad_values(action) -> tuple[str, ...]:
    kind = getattr(action.type, "__name__", "")
    if action.nargs == 0:
        return ()
    if action.choices:
        return ("no-such-choice", "")
    if kind == "size":
        return BAD_SIZE
    if kind in ("float", "number"):
        return BAD_NUMBER
    if action.type is not None:
        return BAD_WHOLE
    if re.search(r"(?<!:)\b(DIR|FILE|PATH|OUT)\b", str(action.metavar)):
        return BAD_PATH
    return {"PLAN": ("0", "x", HUGE, "4-", "4x2:damped0"), "PLAN,...": ("0", ",", "4,,8"),
            "JSON": ("x", "{}", "[1]", '{"a": NaN}', '{"a": -1}', '{"a": "x"}'),
            "RULE:THRESHOLD": ("", "kl", "kl:-1", "gate:2", "no:1", "latent:nan"),
            "AXIS=N,...": ("fsdp", "fsdp=0", f"fsdp={HUGE}", "pipe=2", "fsdp=x"),
            }.get(str(action.metavar), ())  # fmt: skip


def of_parsers():
    """(command line, the flag, its value) for the flags of commands with argparse."""
    for command, needed in NEEDED.items():
        for action in parser_of(command)._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            for value in bad_values(action):
                if action.option_strings:
                    flag = action.option_strings[-1]
                    rest = [a for a in needed if not a.startswith(f"{flag}=")]
                    yield [command, *rest, f"{flag}={value}"], flag, value
                else:
                    # The positional arguments come first in NEEDED, in their order.
                    order = [a.dest for a in parser_of(command)._actions if not a.option_strings]
                    line = list(needed)
                    line[order.index(action.dest)] = value
                    yield [command, *line], action.metavar, value
        yield [command, *needed, "--no-such-flag=1"], "--no-such-flag", "1"


def of_absl():
    """The same for the commands with a config."""
    flags = {
        "plan": {
            "devices": BAD_WHOLE, "peak-tflops": BAD_NUMBER, "mfu": (*BAD_NUMBER, "1.5"),
            "memory": BAD_SIZE[:-1], "device": ("no-such-choice", ""),
        },
        "train": {"workdir": BAD_PATH},
        "finetune": {"workdir": BAD_PATH, "checkpoint": BAD_PATH, "pairs": ("",)},
        "flops": {},
        "compile": {
            "topology": ("v5p", "v9:2x2", "v5p:3x4x4", "h100:0x8", "v5e:2x2,slices=0", ""),
            "phase": ("first", "-1", ""), "programs": ("no", "update,", ""),
            "json": BAD_PATH, "dump": BAD_PATH,
        },
    }  # fmt: skip
    for command, needed in WITH_CONFIG.items():
        for flag, values in flags[command].items():
            for value in values:
                rest = [a for a in needed if not a.startswith(f"--{flag}=")]
                yield [command, *rest, f"--{flag}={value}"], f"--{flag}", value
        yield [command, *needed, "--no-such-flag=1"], "--no-such-flag", "1"


TEXTS = {
    "init": ("no",), "init_operator": ("no",), "depth": ("x", "0", HUGE, "999999", "4x999999", "-1", "1x8:damped"),
    "growth.operator": ("no",), "growth.plans": ("x", "4,2", HUGE, "1,,8", "4x2,12"),
    "growth.starts": ("x", "0", "-1", "1.5", HUGE, "0.1,,0.5", "nan", "0.5,0.2"),
    "losses.per_repetition": ("no",), "losses.exit_gate": ("no",),
    "growth.transform": ("no",), "growth.moments": ("no",), "cooldown.depth": ("x", HUGE, "4x2:mlp"),
    "cooldown.operator": ("no",), "schedule": ("no", ""), "optimizer.name": ("no", ""),
    "model.rope_scaling": ("x", "llama3:0:1:4:8192", "llama3:8:4:4:8192", "llama3:8:0:4:0"),
    "mixture_update.metric": ("no", ""),
    "model.dtype": ("no", "float16"), "model.attention": ("no",), "model.remat": ("no",),
    "mesh.slice_axis": ("no", "tensor"),
    "init_from": ("gs://bucket/x", "nothing", "a\0b"), "data_dir": ("s3://bucket/x", "a\0b"),
    "tokenizer": ("gs://bucket/x", "a\0b"),
}  # fmt: skip
DICTIONARY = ("x", "[1]", '{"p_hop_1": NaN}', '{"p_hop_1": -1.0}', '{"p_hop_1": Infinity}',
              '{"p_hop_1": "x"}', '{"no such source": 1.0}', '{"p_hop_1": 1%s}' % ("0" * 400))  # fmt: skip


def of_fields():
    """Each config field with values that are wrong for its type."""
    fields = config_lib.flatten(config_lib.default().to_dict())
    for name, default in fields.items():
        if config_lib.is_by_source(name):
            continue  # below
        if isinstance(default, bool):
            values = ("perhaps", "2", "")
        elif isinstance(default, int):
            values = BAD_WHOLE
        elif isinstance(default, float):
            values = BAD_NUMBER
        elif name.startswith("mesh.rules."):
            values = ("no", "fsdp,fsdp", "data,no")
        else:
            values = TEXTS.get(name, ())
        for value in values:
            yield (
                ["train", *WITH_CONFIG["train"], f"--config.{name}={value}"],
                f"config.{name}",
                value,
            )
    for name in ("mixture", "cooldown.mixture", "mixture_update.bounds"):
        for value in DICTIONARY:
            yield (
                ["train", *WITH_CONFIG["train"], f"--config.{name}={value}"],
                f"config.{name}",
                value,
            )
    for line in ("model.n_heads=3",
                 "model.vocab_size=1000000000 model.d_model=1000000", "microbatches=4 batch_size=6",
                 "mesh.rules.seq=data", "cooldown.steps=2000000"):  # fmt: skip
        name = line.partition("=")[0]
        yield ["train", *WITH_CONFIG["train"], *(f"--config.{f}" for f in line.split())], name, line


CONFIG_FILES = {
    "syntax": "def get_config(:\n", "exits": "import sys\nsys.exit(3)\n",
    "raises": "def get_config():\n    return {}['x']\n", "returns": "def get_config():\n    return 3\n",
    "empty": "", "recursion": "def get_config():\n    return get_config()\n",
    "exits_late": "def get_config():\n    raise SystemExit('no')\n", "nul": "a\0b",
    "bytes": "\ud800",
}  # fmt: skip


def of_files(place):
    for name, text in CONFIG_FILES.items():
        (place / f"{name}.py").write_bytes(text.encode("utf-8", "surrogatepass"))
        yield ["flops", f"--config={name}.py"], "--config", name
    for path in ("", ".", "nothing.py", "in.jsonl", "gs://bucket/config.py"):
        yield ["flops", f"--config={path}"], "--config", path


def snapshot(root):
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if "__pycache__" not in path.parts
    }


def fault_of(argv, name, place, capfd) -> str:
    """ "" if all is right, else what is wrong."""
    before = snapshot(place)
    try:
        code = cli.main(argv)
    except BaseException as error:  # anything that is not a sentence is what is looked for
        code = f"{type(error).__name__}: {str(error)[:100]}"
    out, err = capfd.readouterr()
    wrong = []
    if code != 2:
        wrong.append(f"ends with {code}")
    elif not re.fullmatch(rf"loopjax {argv[0]}: [^\n]+\n", err) or out:
        wrong.append(f"says {err[:200]!r} {out[:50]!r}")
    elif name.lstrip("-").rpartition(".")[2] not in err and SPOKEN_OF.get(name, name) not in err:
        wrong.append(f"does not name it: {err[:200]!r}")
    if snapshot(place) != before:
        wrong.append("writes " + ", ".join(snapshot(place).keys() - before.keys()))
        for name in snapshot(place).keys() - before.keys():
            path = place / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return "; ".join(wrong)


def test_every_bad_command_line_gets_one_sentence(place, monkeypatch, capfd, outcome):
    monkeypatch.chdir(place)
    assert NEEDED.keys() | WITH_CONFIG.keys() == cli.COMMANDS.keys()
    lines = [*of_files(place), *of_fields(), *of_absl(), *of_parsers()]
    lines = [line for line in lines if (line[1], line[2]) not in ALLOWED]
    assert isinstance(config_lib.default(), ConfigDict) and len(lines) >= 200
    wrong = {}
    for argv, name, value in lines:
        what = fault_of(argv, name, place, capfd)
        outcome("bad command line", argv[0], "otherwise" if what else "one sentence")
        if what:
            wrong[f"{argv[0]} {name}={value[:40]!r}"] = what
    assert not wrong, json.dumps(wrong, indent=1)
