"""Each mistake, and the one sentence that it gets.

A row is what is wrong, the flags that say so, and the sentence. Beside the sentence each test
claims exit code 2, that nothing was compiled, and that no file was written, changed or lost.
Mistakes that show only while a run is going on (a loss that is not finite, a full disk, a damaged
checkpoint) are in test_train.py, those of `prepare` on its way in test_prepare.py.
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


def mistake(place, argv, capsys, monkeypatch) -> str:
    """What a command that fails says; it compiles, writes and loses nothing."""

    def compiled(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.chdir(place)
    monkeypatch.setattr("loopjax.run.Run.jitted_update", compiled)
    monkeypatch.setattr("loopjax.resume.sharded_init", compiled)
    before = snapshot(place)
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    progress = "pieces [0-9/]+  .*\n" if argv[0] == "prepare" else ""
    sentence = re.fullmatch(f"(?:{progress})?loopjax {argv[0]}: (.+)\n", err)
    assert sentence and not out, err
    assert snapshot(place) == before
    return sentence[1].replace(str(place), "PLACE")


BUILT_IN = (
    "built-in are stdlib, p_hop_<1..32>, hop_text_<1..9>, hops_<1..32>x<letters>, sanford_<0..16>, "
    "addition_<2..32>, igsm_<1..21>, copying_<random|real>, var_assign_<basic|math|code>_<0..4>; others are folders "
    "of config.data_dir made by loopjax prepare, or its files NAME.jsonl of prompts and completions"
)
CONFIG = [
    ("unknown key", ["growth.blok=2"], "config.growth.blok does not exist; did you mean config.growth.block?"),
    ("unknown key of a dictionary", ["mesh.rules.embd=fsdp"], "config.mesh.rules.embd does not exist; did you mean config.mesh.rules.embed?"),
    ("text for a whole number", ["steps=many"], "config.steps='many' must be a whole number"),
    ("a fraction for a whole number", ["model.d_model=16.5"], "config.model.d_model='16.5' must be a whole number"),
    ("text for a number", ["learning_rate=high"], "config.learning_rate='high' must be a number"),
    ("text for yes or no", ["model.tie_embeddings=perhaps"], "config.model.tie_embeddings='perhaps' must be true or false"),
    ("no dictionary", ["mixture=web"], "config.mixture='web' must be a dictionary like '{\"web\": 0.7, \"math\": 0.3}'"),
    ("no plan", ["depth=12x"], "config.depth: depth plan '12x' is not readable: write segments L or LxR (L layers, run R times) of positive whole numbers joined by \"-\", like \"24\", \"4x6\" or \"4-4x4-4\""),
    ("growth of a loop", ["depth=2x2"], "config.depth='2x2' is looped; growth ends in a plain depth"),
    ("a plan that does not fit the stack", ["cooldown.depth=2x2"], "config.cooldown.depth: plan 2x2 has 2 unique layers, but the stack that it is to run has 4"),
    ("a block that does not divide", ["growth.block=3"], "config.growth.block=3 does not divide config.depth=4"),
    ("an unknown operator", ["growth.operator=LIDAS"], "config.growth.operator='LIDAS' must be one of midas, lidas, or empty for no growth"),
    ("growth longer than the run", ["growth.steps=100"], "config.growth.steps=100 must lie within 1..10, the steps before the cooldown (0 takes them all)"),
    ("too few steps for the stages", ["growth.steps=1"], "config.growth.steps=1 are too few for 2 stages: they would get (0, 1) steps"),
    ("a cooldown longer than the run", ["cooldown.steps=13"], "config.cooldown.steps=13 must lie within 0..config.steps=12"),
    ("no step", ["steps=0"], "config.steps=0 must be at least 1"),
    ("a rate of nothing", ["learning_rate=0"], "config.learning_rate=0.0 must be positive"),
    ("a negative weight", ['mixture={"p_hop_1": -1.0}'], "config.mixture={'p_hop_1': -1.0} must hold weights of at least 0, one of them positive"),
    ("a weight that is no number", ['mixture={"p_hop_1": "much"}'], "config.mixture={'p_hop_1': 'much'} must hold weights of at least 0, one of them positive"),
    ("no source", ["mixture={}"], "config.mixture={} must hold weights of at least 0, one of them positive"),
    ("an unknown source", ['mixture={"wbe": 1.0}'], f"config.mixture: no source 'wbe' is known; {BUILT_IN}"),
    ("a source that is not in the directory", ['mixture={"wbe": 1.0}', "data_dir=data"], f"config.mixture: no source 'wbe' is in config.data_dir='data'; {BUILT_IN}"),
    ("fewer tokens than a sequence", ['mixture={"web": 1.0}', "data_dir=data", "seq_len=100000"], "data/web (heldout) holds no sequence of config.seq_len=100000 tokens: its longest stream has 4849"),
    ("a vocabulary that is too small", ["model.vocab_size=256", 'mixture={"web": 1.0}', "data_dir=data"], "config.model.vocab_size=256 is smaller than the 257 tokens of source 'web'"),
    ("two tokenizers", ['mixture={"web": 0.5, "bpe": 0.5}', "data_dir=data", "model.vocab_size=320"], "config.mixture joins sources of different tokenizers (bpe: sha256:HASH; web: bytes)"),
    ("another tokenizer beside the shards", ['mixture={"swapped": 1.0}', "data_dir=data", "model.vocab_size=320"], "data/swapped/tokenizer.json is not the tokenizer that made the shards beside it (sha256:HASH)"),
    ("a shard cut short", ['mixture={"cut": 1.0}', "data_dir=data"], "shard data/cut/train/00000.arrayrecord has 1000 bytes, SIZE were written"),
    ("a shard that is gone", ['mixture={"gone": 1.0}', "data_dir=data"], "shard data/gone/train/00000.arrayrecord is missing"),
    ("a foreign shard", ['mixture={"foreign": 1.0}', "data_dir=data"], "shard data/foreign/train/00000.arrayrecord is not readable, or not one: REASON"),
    ("a manifest cut short", ['mixture={"torn": 1.0}', "data_dir=data"], "data/torn/manifest.json is not readable JSON"),
    ("a batch that does not divide", ["batch_size=12"], "config.batch_size (over config.microbatches)=12 is not divisible by 8, the devices of mesh axes data+fsdp that hold 'batch'"),
    ("microbatches that do not divide", ["microbatches=3"], "config.microbatches=3 does not divide config.batch_size=8"),
    ("a mesh of other devices", ["mesh.data=3"], "config.mesh (data=3, fsdp=1, tensor=1) does not multiply to the 8 devices there are"),
    ("two free mesh axes", ["mesh.fsdp=-1"], "config.mesh (data=-1, fsdp=-1, tensor=1): sizes are positive, and one of them may be -1"),
    ("a misspelt mesh axis", ["mesh.rules.embed=fdsp"], "config.mesh.rules.embed='fdsp': 'fdsp' is not one of data, fsdp, tensor"),
    ("heads that cannot be cut", ["mesh.tensor=8"], "config.model.n_heads=4 is not divisible by 8, the devices of mesh axes tensor that hold 'heads'"),
    ("heads that do not divide the width", ["model.n_heads=3"], "config.model: model.n_heads=3 must divide model.d_model=16 into heads of even size (rotary embedding turns pairs), or model.head_dim must say theirs"),
    ("an unknown policy", ["model.remat=some"], "config.model: model.remat='some' must be one of none, dots, full"),
    ("attention of another platform", ["model.attention=cudnn", "model.dtype=bfloat16"], "config.model.attention='cudnn' wants a GPU, not cpu"),
    ("a branch from nowhere", ["init_from=nowhere@3"], "config.init_from='nowhere@3': PLACE/nowhere is not a directory of checkpoints"),
    ("a branch from a step that is not there", ["init_from=run@5"], "config.init_from='run@5': PLACE/run/checkpoints has no checkpoint at step 5; there are 4, 8, 12"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "says"), [r[1:] for r in CONFIG], ids=[r[0] for r in CONFIG])
def test_a_mistake_in_the_config(place, flags, says, capsys, monkeypatch):
    argv = [*TRAIN, "--workdir=new", P_HOP, *(f"--config.{flag}" for flag in flags)]
    said = mistake(place, argv, capsys, monkeypatch)
    said = re.sub("sha256:[0-9a-f]{64}", "sha256:HASH", said)
    said = re.sub("[0-9]+ were written", "SIZE were written", said)
    assert re.sub("not a shard: .+", "not one: REASON", said) == says
    assert not (place / "new").exists()


RUN = [
    ("the run of another seed", ["seed=1"], "the checkpoint is of another run: config.seed=1 (the run has 0); take another --workdir"),
    ("the run of another width", ["model.d_model=32"], "the checkpoint is of another run: config.model.d_model=32 (the run has 16); take another --workdir"),
    ("the run of another growth", ["growth.operator="], "the checkpoint is of another run: another depth, growth or mixture in the steps already made; take another --workdir"),
    ("a run that is longer", ["steps=8"], "the checkpoint is of another run: config.steps=8 (the run is at step 12); take another --workdir"),
    ("a run on other data", ['mixture={"p_hop_2": 1.0}'], "the checkpoint is of another run: another depth, growth or mixture in the steps already made; take another --workdir"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "says"), [r[1:] for r in RUN], ids=[r[0] for r in RUN])
def test_the_workdir_of_another_run(place, flags, says, capsys, monkeypatch):
    argv = [*TRAIN, "--workdir=run", P_HOP, *(f"--config.{flag}" for flag in flags)]
    assert mistake(place, argv, capsys, monkeypatch) == says


EVAL = ["eval", "--checkpoint", "run", "--tokenizer", "bytes", "--output", "e.json", "--tasks",
        "copying_real"]  # fmt: skip
OTHER = [
    ("no config", ["train", "--workdir=w"], "--config is missing; write --config=FILE --workdir=DIR"),
    ("no workdir", TRAIN, "--workdir is missing; write --config=FILE --workdir=DIR"),
    ("a workdir below a file", [*TRAIN, "--workdir=file/w", P_HOP], "--workdir PLACE/file/w cannot be written: Not a directory"),
    ("a config that is not there", ["train", "--config=none.py", "--workdir=w"], "--config=none.py cannot be loaded: No such file or directory"),
    ("an unknown variant", ["flops", f"--config={ROOT}/configs/smollm.py:2b,lidas"], f"--config={ROOT}/configs/smollm.py:2b,lidas: ValueError: variant '2b,lidas' of configs/smollm.py must be SIZE,ROW[,MATH[,PLAN]] with SIZE one of 360m, 1.7b and MATH one of finemath, nemotron"),
    ("an unknown row", ["flops", f"--config={ROOT}/configs/smollm.py:1.7b,looped"], f"--config={ROOT}/configs/smollm.py:1.7b,looped: ValueError: row 'looped' of configs/smollm.py must be baseline, midas, lidas, standard-LAYERS or loop-PLAN"),
    ("no size", ["plan", TRAIN[1], "--memory=80"], "--memory: '80' is no size; write 80GB, say (kB, MB, MiB, GB, GiB, TB)"),
    ("devices that the mesh does not cut", ["plan", TRAIN[1], "--devices=6", "--config.mesh.fsdp=4"], "config.mesh (data=-1, fsdp=4, tensor=1) does not multiply to the 6 devices there are"),
    ("no input", ["prepare", "--input", "none.txt", "--output", "w"], "input none.txt is not a file or a directory"),
    ("empty input", ["prepare", "--input", "empty.jsonl", "--output", "w"], "the inputs hold no document to train on"),
    ("a line without text", ["prepare", "--input", "bad.jsonl", "--output", "w"], "input bad.jsonl, line 4: no JSON object with a text field 'text'"),
    ("an output that holds something else", ["prepare", "--input", "in.jsonl", "--output", "run"], "--output run is not empty; give a new directory"),
    ("no tokenizer", ["prepare", "--input", "in.jsonl", "--output", "w", "--tokenizer", "none.json"], "tokenizer 'none.json' is not a file (or write: bytes)"),
    ("no data", ["data", "file"], "PLACE/file holds nothing that loopjax prepare wrote"),
    ("no flag", ["data"], "the following arguments are required: DIR"),
    ("no run", ["report", "out.html", "data"], "data is not the directory of a run, a checkpoint (DIR or DIR@STEP), nor results of loopjax analyze, intervene, eval, icl or nll"),
    ("no checkpoint", [*EVAL[:2], "nowhere", *EVAL[3:]], "PLACE/nowhere is not a directory of checkpoints"),
    ("no task", EVAL[:-2], "the following arguments are required: --tasks"),
    ("an unknown task", [*EVAL, "--tasks", "copying_rael"], "task 'copying_rael' does not exist; did you mean copying_real?"),
    ("a plan that does not fit the weights", [*EVAL, "--depth", "4,2x2"], "--depth=2x2 has 2 unique layers, the checkpoint has 4"),
    ("a plan that is none", [*EVAL, "--depth", "4,,"], "--depth '4,,' holds an empty plan"),
    ("an output that holds something else", [*EVAL, "--output", "in.jsonl"], "--output in.jsonl holds something else; name a new file"),
    ("an output below a file", [*EVAL, "--output", "file/e.json"], "--output file/e.json cannot be written: file is a file"),
    ("no item", [*EVAL, "--limit", "0"], "argument --limit: '0' must be a whole number of at least 1"),
    ("an unknown mesh axis", [*EVAL, "--mesh", "fdsp=2"], "--mesh 'fdsp=2' must be like data=2,fsdp=4,tensor=1"),
    ("a mesh of too many devices", [*EVAL, "--mesh", "data=1,fsdp=16"], "--mesh (data=1, fsdp=16, tensor=1) does not multiply to the 8 devices there are"),
    ("symbols that are no text", [*EVAL[:3], *EVAL[5:]], "PLACE/run has no tokenizer.json, and the checkpoint was not trained on bytes but with symbols; name a tokenizer by --tokenizer"),
    ("a tokenizer that is too large", [*EVAL[:3], "--tokenizer", "bpe.json", *EVAL[5:]], "the tokenizer has 300 tokens, the checkpoint's vocabulary 264"),
    ("examples that are no number", ["icl", *EVAL[1:], "--shots", "1,many"], "--shots '1,many' must be whole numbers joined by commas"),
    ("a temperature below zero", ["generate", *EVAL[1:5], "--temperature", "-1"], "--temperature -1.0 must be at least 0"),
    ("a mixture that is none", ["nll", *EVAL[1:3], "--mixture", "web"], "--mixture 'web' must be like '{\"web\": 0.7, \"math\": 0.3}'"),
    ("data of another tokenizer", ["nll", *EVAL[1:3], "--mixture", '{"stdlib": 1}'], "the data are of the tokenizer bytes, the checkpoint of symbols"),
    ("an export to a full directory", ["export-hf", "run", "data"], "PLACE/data is not empty; give a new directory"),
    ("an export of a plan that does not fit", ["export-hf", "run", "new", "--depth", "3"], "--depth=3 has 3 unique layers, the checkpoint has 4"),
    ("an import from nowhere", ["import-hf", "nowhere", "new"], "nowhere is not a directory, nor an ID of the Hugging Face hub"),
    ("no verb", ["trian"], "there is no verb 'trian'; did you mean train?"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "says"), [r[1:] for r in OTHER], ids=[r[0] for r in OTHER])
def test_a_mistake_in_a_command(place, argv, says, capsys, monkeypatch):
    assert mistake(place, argv, capsys, monkeypatch) == says


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_may_not_be_written(place, capsys, monkeypatch, tmp_path):
    tmp_path.chmod(0o500)
    said = mistake(place, [*TRAIN, f"--workdir={tmp_path}/w", P_HOP], capsys, monkeypatch)
    assert said == f"--workdir {tmp_path}/w cannot be written: Permission denied"


def test_the_tests_see_eight_devices():
    assert jax.device_count() == 8
