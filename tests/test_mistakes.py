"""Each mistake of a user gets exit code 2 and one sentence that names what is wrong.

A row is what is wrong, the flags, and the names (fields, flags, files) that the sentence must hold.
Nothing is compiled, and no file is written, changed or lost. The sentences themselves are in
mistakes.golden.txt, to be read as a whole; after a change of wording rewrite that file with

    python -m pytest tests/test_mistakes.py --update-golden

Mistakes that show only during a run (a loss that is not finite, a full disk, a damaged checkpoint)
are in test_train.py, those of `prepare` at work in test_prepare.py.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import shutil

import jax
import pytest
import tokenizers

from loopjax.cli import main as cli
from loopjax.data.prepare.job import prepare

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN = [
    "train", f"--config={ROOT / 'configs' / 'tiny.py'}:lidas", "--config.steps=12",
    "--config.depth=4", "--config.growth.block=2", "--config.seq_len=16", "--config.eval_batches=1",
    "--config.model.d_model=16", "--config.model.d_ff=24", "--config.checkpoint_every=4",
]  # fmt: skip
GOLDEN = pathlib.Path(__file__).parent / "mistakes.golden.txt"
# What is compiled to read and verify a checkpoint; nothing of a model may be.
READING = {"jit(stage)", "jit(_threefry_seed)", "jit(_bit_sums)"}
P_HOP = '--config.mixture={"p_hop_1": 1.0}'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with prepared data, sound and damaged, and a finished run."""
    place = tmp_path_factory.mktemp("place")
    with contextlib.chdir(place), contextlib.redirect_stderr(io.StringIO()):
        lines = [json.dumps({"text": f"line {i} " * 30}) for i in range(200)]
        pathlib.Path("in.jsonl").write_text("\n".join(lines))
        pathlib.Path("empty.jsonl").write_text("\n")
        pathlib.Path("bad.jsonl").write_text("\n".join([*lines[:3], '{"txt": "no"}']))
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator(lines, 300, special_tokens=["</s>"], show_progress=False)
        bpe.save("bpe.json")
        prepare(["in.jsonl"], "data/web", heldout=0.1)
        prepare(["in.jsonl"], "data/bpe", "bpe.json", heldout=0.1)
        for name in ("cut", "foreign", "gone", "torn"):
            shutil.copytree("data/web", f"data/{name}")
        shard = pathlib.Path("train/00000.arrayrecord")
        whole = (pathlib.Path("data/web") / shard).read_bytes()
        (pathlib.Path("data/cut") / shard).write_bytes(whole[:1000])
        (pathlib.Path("data/foreign") / shard).write_bytes(b"foreign " * (len(whole) // 8))
        (pathlib.Path("data/gone") / shard).unlink()
        manifest = pathlib.Path("data/torn/manifest.json")
        manifest.write_text(manifest.read_text()[:200])
        shutil.copytree("data/bpe", "data/swapped")
        bpe.train_from_iterator(lines, 290, special_tokens=["</s>"], show_progress=False)
        bpe.save("data/swapped/tokenizer.json")
        pathlib.Path("file").write_text("no directory")
        assert cli.main([*TRAIN, "--workdir=run", P_HOP]) == 0
    return place


def snapshot(root) -> dict:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def without_noise(sentence: str, place) -> str:
    """The sentence without what differs from machine to machine."""
    sentence = sentence.replace(str(place), "PLACE").replace(str(ROOT), "ROOT")
    sentence = re.sub("sha256:[0-9a-f]{64}", "sha256:HASH", sentence)
    sentence = re.sub("[0-9]+ were written", "SIZE were written", sentence)
    sentence = re.sub(r"(\.py\S*, line) [0-9]+", r"\1 N", sentence)
    return re.sub("not a shard: .+", "not a shard: REASON", sentence)


def read_golden() -> dict[str, str]:
    lines = GOLDEN.read_text().splitlines() if GOLDEN.exists() else []
    return dict(line.split(": ", 1) for line in lines)


@pytest.fixture(scope="module")
def golden(request):
    """(sentences of the golden file, sentences of this test run); --update-golden writes the latter."""
    observed = {}
    yield read_golden(), observed
    if request.config.getoption("--update-golden"):
        sentences = read_golden() | observed
        lines = [f"{case}: {sentences[case]}\n" for case in CASES if case in sentences]
        GOLDEN.write_text("".join(lines))


@pytest.fixture(scope="module")
def compiled():
    """Names of the functions that XLA compiles, as it happens."""
    names = []

    def listen(event: str, duration: float, **details):
        if "backend_compile" in event:
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names


@pytest.fixture
def mistake(place, golden, compiled, capsys, monkeypatch, request):
    """A function of (case, argv, names) that runs a command with a mistake and checks the outcome."""

    def check(case: str, argv: list[str], names: list[str]) -> None:
        expected, observed = golden
        before = snapshot(place)
        compiled.clear()
        assert cli.main(argv) == 2
        out, err = capsys.readouterr()
        progress = "pieces [0-9/]+  .*\n" if argv[0] == "prepare" else ""
        sentence = re.fullmatch(f"(?:{progress})?loopjax {argv[0]}: (.+)\n", err)
        assert sentence and not out, err
        assert snapshot(place) == before
        assert set(compiled) <= READING
        observed[case] = without_noise(sentence[1], place)
        for name in names:
            assert name in observed[case], f"the sentence does not name {name}"
        if not request.config.getoption("--update-golden"):
            assert observed[case] == expected.get(case), (
                f"the sentence of {case!r} changed; if it is meant, rewrite {GOLDEN.name}: "
                "python -m pytest tests/test_mistakes.py --update-golden"
            )

    monkeypatch.chdir(place)
    return check


CONFIG = [
    ("unknown key", ["growth.blok=2"], ["config.growth.blok", "config.growth.block"]),
    (
        "unknown key of a dictionary",
        ["mesh.rules.embd=fsdp"],
        ["config.mesh.rules.embd", "config.mesh.rules.embed"],
    ),
    ("text for a whole number", ["steps=many"], ["config.steps"]),
    ("a fraction for a whole number", ["model.d_model=16.5"], ["config.model.d_model"]),
    ("text for a number", ["learning_rate=high"], ["config.learning_rate"]),
    ("text for yes or no", ["model.tie_embeddings=perhaps"], ["config.model.tie_embeddings"]),
    ("no dictionary", ["mixture=web"], ["config.mixture"]),
    ("a broken dictionary", ['mixture={"web": 1, "math": x}'], ['{"web": 1, "math": x}']),
    ("no plan", ["depth=12x"], ["config.depth"]),
    ("growth of a loop", ["depth=2x2"], ["config.depth='2x2'"]),
    ("a plan that does not fit the stack", ["cooldown.depth=2x2"], ["config.cooldown.depth"]),
    (
        "a block that does not divide",
        ["growth.block=3"],
        ["config.growth.block=3", "config.depth=4"],
    ),
    (
        "an unknown operator",
        ["growth.operator=LIDAS"],
        ["config.growth.operator", "midas", "lidas"],
    ),
    ("growth longer than the run", ["growth.steps=100"], ["config.growth.steps"]),
    ("too few steps for the stages", ["growth.steps=1"], ["config.growth.steps"]),
    (
        "a cooldown longer than the run",
        ["cooldown.steps=13"],
        ["config.cooldown.steps=13", "config.steps=12"],
    ),
    ("no step", ["steps=0"], ["config.steps"]),
    ("a rate of nothing", ["learning_rate=0"], ["config.learning_rate"]),
    ("a negative weight", ['mixture={"p_hop_1": -1.0}'], ["config.mixture"]),
    ("a weight that is no number", ['mixture={"p_hop_1": "much"}'], ["config.mixture"]),
    ("no source", ["mixture={}"], ["config.mixture"]),
    ("an unknown loss of exits", ["losses.per_repetition=all"], ["config.losses.per_repetition"]),
    ("a loss of exits without a loop", ["losses.exit_gate=joint"], ["losses.exit_gate", "plan 2"]),
    ("blocks that do not fit", ["losses.block_cosine=1", "losses.block=3"], ["losses.block=3"]),
    (
        "an unknown source",
        ['mixture={"wbe": 1.0}'],
        ["config.mixture", "'wbe'", "var_assign", "loopjax prepare"],
    ),
    (
        "a source that is not in the directory",
        ['mixture={"wbe": 1.0}', "data_dir=data"],
        ["'wbe'", "config.data_dir='data'"],
    ),
    (
        "fewer tokens than a sequence",
        ['mixture={"web": 1.0}', "data_dir=data", "seq_len=100000"],
        ["data/web", "config.seq_len=100000"],
    ),
    (
        "a vocabulary that is too small",
        ["model.vocab_size=256", 'mixture={"web": 1.0}', "data_dir=data"],
        ["config.model.vocab_size=256", "'web'"],
    ),
    (
        "two tokenizers",
        ['mixture={"web": 0.5, "bpe": 0.5}', "data_dir=data", "model.vocab_size=320"],
        ["config.mixture", "bpe", "web"],
    ),
    (
        "another tokenizer beside the shards",
        ['mixture={"swapped": 1.0}', "data_dir=data", "model.vocab_size=320"],
        ["data/swapped/tokenizer.json"],
    ),
    (
        "a shard cut short",
        ['mixture={"cut": 1.0}', "data_dir=data"],
        ["data/cut/train/00000.arrayrecord", "1000"],
    ),
    (
        "a shard that is gone",
        ['mixture={"gone": 1.0}', "data_dir=data"],
        ["data/gone/train/00000.arrayrecord"],
    ),
    (
        "a foreign shard",
        ['mixture={"foreign": 1.0}', "data_dir=data"],
        ["data/foreign/train/00000.arrayrecord"],
    ),
    (
        "a manifest cut short",
        ['mixture={"torn": 1.0}', "data_dir=data"],
        ["data/torn/manifest.json"],
    ),
    ("a batch that does not divide", ["batch_size=12"], ["config.batch_size"]),
    (
        "microbatches that do not divide",
        ["microbatches=3"],
        ["config.microbatches=3", "config.batch_size=8"],
    ),
    ("a mesh of other devices", ["mesh.data=3"], ["config.mesh", "data=3"]),
    ("two free mesh axes", ["mesh.fsdp=-1"], ["config.mesh", "fsdp=-1"]),
    ("a misspelt mesh axis", ["mesh.rules.embed=fdsp"], ["config.mesh.rules.embed"]),
    ("an axis that no slices can share", ["mesh.slice_axis=tensor"], ["config.mesh.slice_axis"]),
    ("heads that cannot be cut", ["mesh.tensor=8"], ["config.model.n_heads=4", "tensor"]),
    (
        "heads that do not divide the width",
        ["model.n_heads=3"],
        ["model.n_heads=3", "model.d_model=16", "model.head_dim"],
    ),
    (
        "an unknown policy",
        ["model.remat=some"],
        ["model.remat='some'", "none, dots, attention, full, offload"],
    ),
    ("offloading on a CPU", ["model.remat=offload"], ["config.model.remat='offload'", "'full'"]),
    (
        "attention of another platform",
        ["model.attention=cudnn", "model.dtype=bfloat16"],
        ["config.model.attention"],
    ),
    (
        "a branch from nowhere",
        ["init_from=nowhere@3"],
        ["config.init_from='nowhere@3'", "PLACE/nowhere"],
    ),
    (
        "a branch from a step that is not there",
        ["init_from=run@5"],
        ["config.init_from='run@5'", "4, 8, 12"],
    ),
]


@pytest.mark.parametrize("row", CONFIG, ids=[row[0] for row in CONFIG])
def test_a_mistake_in_the_config(place, row, mistake):
    case, fields, names = row
    flags = [f"--config.{field}" for field in fields]
    mistake(case, [*TRAIN, "--workdir=new", P_HOP, *flags], names)
    assert not (place / "new").exists()


RUN = [
    ("the run of another seed", ["seed=1"], ["config.seed=1", "--workdir"]),
    ("the run of another width", ["model.d_model=32"], ["config.model.d_model=32", "--workdir"]),
    ("the run of another growth", ["growth.operator="], ["growth", "--workdir"]),
    ("a run that is longer", ["steps=8"], ["config.steps=8", "--workdir"]),
    ("a run on other data", ['mixture={"p_hop_2": 1.0}'], ["mixture", "--workdir"]),
]


@pytest.mark.parametrize("row", RUN, ids=[row[0] for row in RUN])
def test_the_workdir_of_another_run(row, mistake):
    case, fields, names = row
    mistake(
        case, [*TRAIN, "--workdir=run", P_HOP, *(f"--config.{field}" for field in fields)], names
    )


EVAL = ["eval", "--checkpoint", "run", "--tokenizer", "bytes", "--output", "e.json", "--tasks",
        "copying_real"]  # fmt: skip
OTHER = [
    ("no config", ["train", "--workdir=w"], ["--config"]),
    ("no workdir", TRAIN, ["--workdir"]),
    ("a workdir below a file", [*TRAIN, "--workdir=file/w", P_HOP], ["--workdir", "PLACE/file/w"]),
    (
        "a config that is not there",
        ["train", "--config=none.py", "--workdir=w"],
        ["--config=none.py"],
    ),
    (
        "an unknown variant",
        ["flops", f"--config={ROOT}/configs/smollm.py:2b,lidas"],
        ["'2b,lidas'", "configs/smollm.py"],
    ),
    (
        "an unknown row",
        ["flops", f"--config={ROOT}/configs/smollm.py:1.7b,looped"],
        ["'1.7b,looped'", "configs/smollm.py"],
    ),
    *(
        (
            f"steps {steps!r} to trace",
            [*TRAIN, "--workdir=new", P_HOP, f"--profile_steps={steps}"],
            [f"--profile_steps='{steps}'", "FIRST:LAST", "1 to 12"],
        )
        for steps in ("0:5", "5:3", "a:b", "10", "10:13")
    ),
    (
        "a tokenizer that is not there, though no source uses it",
        [*TRAIN, "--workdir=new", P_HOP, "--config.tokenizer=none.json"],
        ["tokenizer", "'none.json'"],
    ),
    (
        "a cache on a bucket",
        [*TRAIN, "--workdir=new", P_HOP, "--compilation_cache=gs://programs"],
        ["--compilation_cache", "gs://programs"],
    ),
    ("no size", ["plan", TRAIN[1], "--memory=80"], ["--memory", "'80'", "80GB"]),
    ("an unknown chip", ["plan", TRAIN[1], "--device=v7"], ["--device=v7", "v5p", "h100"]),
    (
        "devices that the mesh does not cut",
        ["plan", TRAIN[1], "--devices=6", "--config.mesh.fsdp=4"],
        ["config.mesh", "fsdp=4", "6"],
    ),
    ("no input", ["prepare", "--input", "none.txt", "--output", "w"], ["none.txt"]),
    ("empty input", ["prepare", "--input", "empty.jsonl", "--output", "w"], ["document"]),
    (
        "a line without text",
        ["prepare", "--input", "bad.jsonl", "--output", "w"],
        ["bad.jsonl", "line 4", "'text'"],
    ),
    (
        "another end of a document of bytes",
        ["prepare", "--input", "in.jsonl", "--output", "w", "--eos", "</s>"],
        ["--eos=</s>", "bytes"],
    ),
    ("a negative seed", ["data", "data/web", "--seed", "-1"], ["--seed", "'-1'"]),
    (
        "pairs that are no file",
        ["finetune", "--checkpoint=run", "--workdir=w", "--pairs=none.v2.jsonl"],
        ["--pairs none.v2.jsonl"],
    ),
    (
        "an output that holds something else",
        ["prepare", "--input", "in.jsonl", "--output", "run"],
        ["--output run"],
    ),
    (
        "no tokenizer",
        ["prepare", "--input", "in.jsonl", "--output", "w", "--tokenizer", "none.json"],
        ["tokenizer", "'none.json'"],
    ),
    ("no data", ["data", "file"], ["PLACE/file"]),
    ("no flag", ["data"], ["DIR"]),
    ("no run", ["report", "out.html", "data"], ["data"]),
    ("no checkpoint", [*EVAL[:2], "nowhere", *EVAL[3:]], ["PLACE/nowhere"]),
    ("no task", EVAL[:-2], ["--tasks"]),
    ("an unknown task", [*EVAL, "--tasks", "copying_rael"], ["'copying_rael'", "copying_real"]),
    ("a plan that does not fit the weights", [*EVAL, "--depth", "4,2x2"], ["--depth=2x2"]),
    ("a plan that is none", [*EVAL, "--depth", "4,,"], ["--depth '4,,'"]),
    (
        "an evaluation's output that holds something else",
        [*EVAL, "--output", "in.jsonl"],
        ["--output in.jsonl"],
    ),
    ("an output below a file", [*EVAL, "--output", "file/e.json"], ["--output file/e.json"]),
    ("no item", [*EVAL, "--limit", "0"], ["--limit", "'0'"]),
    ("an unknown mesh axis", [*EVAL, "--mesh", "fdsp=2"], ["--mesh 'fdsp=2'"]),
    ("a mesh of too many devices", [*EVAL, "--mesh", "data=1,fsdp=16"], ["--mesh", "fsdp=16", "8"]),
    ("symbols that are no text", [*EVAL[:3], *EVAL[5:]], ["PLACE/run", "--tokenizer"]),
    (
        "a tokenizer that is too large",
        [*EVAL[:3], "--tokenizer", "bpe.json", *EVAL[5:]],
        ["tokenizer", "300", "264"],
    ),
    ("examples that are no number", ["icl", *EVAL[1:], "--shots", "1,many"], ["--shots '1,many'"]),
    (
        "a temperature below zero",
        ["generate", *EVAL[1:5], "--temperature", "-1"],
        ["--temperature"],
    ),
    (
        "an exit of no rule",
        ["nll", *EVAL[1:3], "--exit", "soon:1"],
        ["--exit 'soon:1'", "latent:0.03"],
    ),
    ("an exit without a loop", ["nll", *EVAL[1:3], "--exit", "kl:1e-3"], ["--exit", "plan 4"]),
    (
        "repetitions without a loop",
        ["generate", *EVAL[1:5], "--max-repeats", "3"],
        ["--max-repeats 3", "plan 4"],
    ),
    ("a mixture that is none", ["nll", *EVAL[1:3], "--mixture", "web"], ["--mixture 'web'"]),
    (
        "data of another tokenizer",
        ["nll", *EVAL[1:3], "--mixture", '{"stdlib": 1}'],
        ["tokenizer", "bytes"],
    ),
    ("an export to a full directory", ["export-hf", "run", "data"], ["PLACE/data"]),
    (
        "an export of a plan that does not fit",
        ["export-hf", "run", "new", "--depth", "3"],
        ["--depth=3"],
    ),
    ("an import from nowhere", ["import-hf", "nowhere", "new"], ["nowhere"]),
    ("a map that is none", ["import-orbax", "run", "new", "--map", "own.tml"], ["--map own.tml"]),
    ("an unknown command", ["trian"], ["'trian'", "train"]),
]


@pytest.mark.parametrize("row", OTHER, ids=[row[0] for row in OTHER])
def test_a_mistake_in_a_command(row, mistake):
    mistake(*row)


CASES = [row[0] for row in (*CONFIG, *RUN, *OTHER)]


def test_the_golden_file_has_every_case_once(request):
    assert len(set(CASES)) == len(CASES)
    if not request.config.getoption("--update-golden"):  # the file is written after the last test
        assert list(read_golden()) == CASES


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_may_not_be_written(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert cli.main([*TRAIN, f"--workdir={tmp_path}/w", P_HOP]) == 2
    assert f"--workdir {tmp_path}/w cannot be written" in capsys.readouterr().err


def test_the_tests_see_eight_devices():
    assert jax.device_count() == 8
