"""A damaged corpus is refused in one sentence, or trains to the very same losses."""

import json

import jax
import pytest

from loopjax.cli import main as cli
from tests.faults import damage, runs


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Every run compiles the same program: once."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words by a tokenizer file, in three shards of each split."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("corpus")
    words = [f"w{i}" for i in range(300)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*words, "<eos>"])}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "words.json"))
    draw = (words[(i * i * 7 + i) % 300] for i in range(10**9))
    documents = [" ".join(next(draw) for _ in range(20 + i % 50)) for i in range(200)]
    for i in range(3):
        lines = [json.dumps({"text": document}) for document in documents[i::3]]
        (folder / f"{i}.jsonl").write_text("\n".join(lines))
    command = ["prepare", "--output", folder / "data" / "web", "--input"]
    command += sorted(folder.glob("[0-9].jsonl"))
    command += ["--tokenizer", folder / "words.json", "--eos", "<eos>", "--heldout", "0.1"]
    command += ["--shard-size", "16kB"]
    assert cli.main([str(part) for part in command]) == 0
    return folder / "data"


def train(data, workdir) -> int:
    return cli.main(
        [
            "train", f"--config={runs.ROOT / runs.CONFIG}", f"--workdir={workdir}",
            f"--config.data_dir={data}", "--config.mixture={'web': 1.0}", "--config.seq_len=32",
            "--config.cooldown.mixture={'web': 1.0}", "--config.growth.operator=",
            "--config.depth=1", "--config.model.vocab_size=304", "--config.steps=45",
            "--config.checkpoint_every=100", "--config.eval_every=0",
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The run on undamaged data: it reads every window at least once."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(corpus, workdir) == 0
    return workdir


def files_of(corpus):
    return sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())


def test_a_damaged_corpus_is_refused_or_gives_the_same_run(
    corpus, whole, tmp_path, capsys, outcome
):
    for file in files_of(corpus):
        for harm in damage.DAMAGES:
            data = damage.copy(corpus, tmp_path / "data")
            harm(data / file)
            kind = file.name if file.suffix == ".json" else f"{file.parts[1]} shard"
            verified = cli.main(["data", str(data / "web"), "--verify", "--samples", "0"])
            said = check(capsys, verified, "data", kind, harm)
            outcome("damaged data: data --verify", kind, said)
            workdir = tmp_path / f"{file.name}-{harm.__name__}"
            code = train(data, workdir)
            said = check(capsys, code, "train", kind, harm)
            outcome("damaged data: train", kind, said)
            if code == 0:
                assert runs.rows(workdir) == runs.rows(whole), (file, harm)
                assert runs.result(workdir)["heldout"] == runs.result(whole)["heldout"]
            else:
                assert not (workdir / "result.json").exists()


def check(capsys, code, command, kind, harm) -> str:
    """The outcome of a command in words; fails unless it is right, or one sentence."""
    err = capsys.readouterr().err
    assert code in (0, 2), (command, kind, harm, err)
    assert "Traceback" not in err, err
    if code == 0:
        return "unharmed, same numbers"
    lines = [line for line in err.splitlines() if line.startswith("loopjax")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0], (command, kind, harm, err)
    return "refused in a sentence"


def test_verification_knows_every_other_token(corpus, tmp_path, capsys, outcome):
    """Each byte of a shard that holds tokens, flipped: `data --verify` never says that it is fine."""
    [first, *_] = sorted((corpus / "web" / "train").iterdir())
    step = max(1, first.stat().st_size // 40)
    for where in range(0, first.stat().st_size, step):
        data = damage.copy(corpus, tmp_path / "data")
        damage.flip(data / "web" / "train" / first.name, where / first.stat().st_size)
        code = cli.main(["data", str(data / "web"), "--verify", "--samples", "0"])
        said = check(capsys, code, "data", "shard", damage.flip)
        outcome("damaged data: data --verify", "shard: one bit, every 2.5% of its length", said)
