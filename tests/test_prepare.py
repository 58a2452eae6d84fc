import contextlib
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax.cli import main as cli
from loopjax.data import show, token_shards, tokenizers
from loopjax.data.prepare import hub, input_files, job, pieces, progress, readers, shards, workers
from loopjax.errors import UserError
from tests.test_shards import decoded

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write_lines(path, documents):
    path.write_text("\n".join(json.dumps({"text": d}) for d in documents))
    return path


def tree(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


LIMIT = readers.MAX_DOCUMENT


def cut_files(paths, size, limit=LIMIT, kind=None):
    files, _ = input_files.find(paths, input_files.Reading("text", kind, limit))
    return pieces.cut_files(files, "text", size, limit)


def documents_of(cut, key="text", limit=LIMIT):
    return [d for piece in cut for part in piece for d, _ in part.documents(key, limit)]


# --- pieces --------------------------------------------------------------------------------------

line = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12)
ending = st.sampled_from(["\n", "\r\n", "\n\n"])


@given(st.lists(st.tuples(line, ending), max_size=12), line, st.integers(1, 60))
def test_pieces_tile_the_input_exactly(tmp_path_factory, lines, last, size):
    folder = tmp_path_factory.mktemp("tiles")
    content = "".join(a + b for a, b in lines) + last
    (folder / "a.txt").write_bytes(content.encode())
    cut = cut_files([folder / "a.txt"], size, kind="text")
    assert "".join(documents_of(cut)) == content
    assert sum(part.bytes for piece in cut for part in piece) == len(content.encode())
    assert len(cut) == -(-len(content.encode()) // size)

    as_json = (json.dumps({"text": a}, ensure_ascii=False) + b for a, b in [*lines, (last, "")])
    (folder / "a.jsonl").write_bytes("".join(as_json).encode())
    cut = cut_files([folder / "a.jsonl"], size)
    assert documents_of(cut) == [*(a for a, _ in lines), last]


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 100))
def test_short_files_lie_together_in_their_order(sizes, size):
    parts = [pieces.FileRange(str(i), 0, n, "text", "") for i, n in enumerate(sizes)]
    cut = pieces.join(parts, size)
    assert [part for piece in cut for part in piece] == parts
    totals = [sum(part.bytes for part in piece) for piece in cut]
    for piece, total, after in zip(cut, totals, cut[1:], strict=False):
        assert (total <= size or len(piece) == 1) and total + after[0].bytes > size


def test_a_long_text_file_is_cut_at_line_ends(tmp_path):
    lines = [f"line {i} " + "x" * 100 + "\n" for i in range(2000)]
    (tmp_path / "long.txt").write_text("".join(lines))
    documents = documents_of(cut_files([tmp_path / "long.txt"], 10**9))
    assert "".join(documents) == "".join(lines) and len(documents) > 2
    assert all(document.endswith("\n") for document in documents)


def test_a_directory_stands_for_the_files_below_it_packed_or_not(tmp_path):
    pa = pytest.importorskip("pyarrow")
    write_lines(tmp_path / "b.jsonl", ["second"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "readme.md").write_text("not taken")
    with gzip.open(tmp_path / "a" / "x.txt.gz", "wt") as file:
        file.write("first")
    with pa.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as file:
        file.write(b'{"text": "third"}\n')
    assert documents_of(cut_files([tmp_path], 1)) == ["first", "second", "third"]
    with pytest.raises(UserError, match="has no file of JSON lines, Parquet, or text"):
        (tmp_path / "empty").mkdir()
        cut_files([tmp_path / "empty"], 1)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_cut_short_is_told(tmp_path, suffix):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / f"a.txt{suffix}"
    codec = {".gz": "gzip", ".zst": "zstd"}[suffix]
    with pa.CompressedOutputStream(str(path), codec) as file:
        file.write(np.random.default_rng(0).bytes(5000).hex().encode())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"input {path} is not readable: "):
        documents_of(cut_files([path], 10**6))


def test_parquet_and_datasets_make_the_shards_of_the_json_lines(tmp_path):
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet as pq

    documents = [f"document {i} " * (1 + i % 5) for i in range(120)]
    lines = write_lines(tmp_path / "a.jsonl", documents)
    table = datasets.Dataset.from_dict({"n": list(range(120)), "text": documents})
    (tmp_path / "hub").mkdir()
    pq.write_table(table.data.table, tmp_path / "a.parquet", row_group_size=11)
    pq.write_table(table.data.table[:50], tmp_path / "hub" / "train-0.parquet", row_group_size=9)
    pq.write_table(table.data.table[50:], tmp_path / "hub" / "train-1.parquet", row_group_size=9)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "saved")
    ways = {
        "parquet": {"inputs": [tmp_path / "a.parquet"]},
        "saved": {"inputs": (), "dataset": str(tmp_path / "saved")},
        "hub": {"inputs": (), "dataset": str(tmp_path / "hub")},
    }
    wanted = job.prepare([lines], tmp_path / "out", heldout=0.2)
    kept = {split: decoded(tmp_path / "out", split) for split in token_shards.SPLITS}
    for way, source in ways.items():
        found = job.prepare(output=tmp_path / f"out-{way}", heldout=0.2, **source)
        if way == "hub":  # a file is a piece, whatever its size
            assert len(found["splits"]["train"]["shards"]) == 2
        else:
            assert found["splits"] == wanted["splits"]
        cut = tmp_path / f"cut-{way}"
        found = job.prepare(output=cut, heldout=0.2, shard_size=400, **source)
        assert {split: decoded(cut, split) for split in token_shards.SPLITS} == kept
        assert len(found["splits"]["train"]["shards"]) > 3
    assert found["source"] == {
        "dataset": str(tmp_path / "hub"), "subset": None, "split": "train",
        **{k: found["source"][k] for k in ("fingerprint", "modified_ns", "ends_sha256")},
    }  # fmt: skip


# --- the same shards, whatever happens -----------------------------------------------------------


@pytest.fixture
def long_corpus(tmp_path):
    """Some 20 pieces of 20 kB."""
    write_lines(tmp_path / "in.jsonl", [f"{i} " + "lorem ipsum " * 50 for i in range(600)])
    return {"inputs": [tmp_path / "in.jsonl"], "heldout": 0.05, "shard_size": 20_000}


def test_two_processes_make_the_shards_of_one(long_corpus, tmp_path):
    write_lines(tmp_path / "held.jsonl", [f"{i} " + "lorem ipsum " * 50 for i in range(0, 600, 9)])
    for held in ((), [tmp_path / "held.jsonl"]):
        options = {**long_corpus, "heldout_inputs": held}
        one, two = (tmp_path / f"{n}-{len(held)}" for n in (1, 2))
        manifest = job.prepare(output=one, processes=1, **options)
        job.prepare(output=two, processes=2, **options)
        assert tree(one) == tree(two)
        assert len(manifest["splits"]["train"]["shards"]) > 15
        assert manifest["dropped_from_training"] == (67 if held else 0)


def test_killed_without_warning_and_started_again_it_makes_the_same_shards(tmp_path):
    write_lines(tmp_path / "in.jsonl", [f"{i} " + "lorem ipsum " * 900 for i in range(2000)])
    flags = ["--input", str(tmp_path / "in.jsonl"), "--shard-size", "300kB", "--output"]
    command = [sys.executable, "-m", "loopjax", "prepare", *flags, str(tmp_path / "killed")]
    process = subprocess.Popen([*command, "--processes=2"], cwd=ROOT, stderr=subprocess.DEVNULL)
    unfinished = tmp_path / "killed" / shards.UNFINISHED
    deadline = time.monotonic() + 60
    while len(job.finished_parts(tmp_path / "killed")) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    n_done = len(job.finished_parts(tmp_path / "killed"))
    assert 3 <= n_done < 70 and (unfinished / job.JOB).is_file()
    before = {path.name: path.stat().st_mtime_ns for path in unfinished.glob("0*.json")}
    times = []
    with watching(job.shards, "write_piece", lambda task, piece, *_: times.append(piece.name)):
        assert cli.main(["prepare", *flags, str(tmp_path / "killed")]) == 0
    assert not set(times) & set(before) and len(times) + len(before) >= 70
    assert cli.main(["prepare", *flags, str(tmp_path / "whole")]) == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


@contextlib.contextmanager
def watching(module, name, watch):
    original = getattr(module, name)

    def watched(*args):
        watch(*args)
        return original(*args)

    setattr(module, name, watched)
    try:
        yield
    finally:
        setattr(module, name, original)


def test_interrupted_it_says_how_to_go_on_and_does(long_corpus, tmp_path, capsys):
    half = tmp_path / "out" / shards.UNFINISHED / "00003.train.1.tmp"

    def interrupt(task, piece, *_):
        if piece.name == "00003":
            half.write_bytes(b"half a shard")
            raise KeyboardInterrupt

    with (
        watching(shards, "write_piece", interrupt),
        pytest.raises(UserError, match="interrupted with 3 of 19 pieces done; rerun"),
    ):
        job.prepare(output=tmp_path / "out", **long_corpus)
    assert not half.exists()
    assert show.look(tmp_path / "out", "train", 1, 0)["unfinished"] == {"out": (3, 19)}
    capsys.readouterr()
    (tmp_path / "out" / "train" / "00001.arrayrecord").unlink()  # noticed, and written anew
    job.prepare(output=tmp_path / "out", **long_corpus)
    err = capsys.readouterr().err
    assert "resuming: 2 of 19 pieces are done" in err and "pieces 19/19" in err
    job.prepare(output=tmp_path / "whole", **long_corpus)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


class Fatal:
    """A part that ends the process that reads it."""

    bytes = 1

    def documents(self, key, limit):
        os.kill(os.getpid(), signal.SIGKILL)
        yield


def test_a_process_that_the_system_kills_is_told(long_corpus, tmp_path):
    (tmp_path / "out" / shards.UNFINISHED).mkdir(parents=True)
    task = shards.Task(tmp_path / "out", "bytes", "", "text", None, 0.0, False)
    cut = cut_files(long_corpus["inputs"], 10**5)
    todo = [shards.Piece("00000", cut[0]), shards.Piece("00001", (Fatal(),))]
    shown = progress.Progress(todo, [])
    with pytest.raises(UserError, match=r"a worker process died \(exit code -9\) at piece"):
        workers.run(task, todo, tokenizers.ByteTokenizer(), 2, shown)


def test_a_mistake_in_a_process_is_told_with_file_and_line(long_corpus, tmp_path):
    path = long_corpus["inputs"][0]
    lines = path.read_text().split("\n")
    lines[500] = '{"text": 3}'
    path.write_text("\n".join(lines))
    for processes in (1, 2):
        with pytest.raises(UserError) as error:
            job.prepare(output=tmp_path / "out", processes=processes, **long_corpus)
        says = f"input {path}, line 501: not a JSON object with a text field 'text'"
        assert str(error.value) == says
    assert len(job.finished_parts(tmp_path / "out")) > 10


def test_the_speed_leaves_out_what_was_done_before(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    parts = [shards.Piece(str(i), (pieces.FileRange("f", 0, 10**8, "text", ""),)) for i in range(4)]
    shown = progress.Progress(parts, parts[:1])
    clock[0] = 10.0
    shown.done(parts[1], 2 * 10**8)
    says = "pieces 2/4  200/400 MB  10.0 MB/s (text 20.0 MB/s)  ETA 0:20\n"
    assert capsys.readouterr().err == says


def test_a_restart_reads_the_commit_of_the_hub_that_it_began_with(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    (tmp_path / "hub").mkdir()
    for i in range(3):
        write_lines(tmp_path / "hub" / f"train-{i}.jsonl", [f"{i} {j}" for j in range(50)])
    asked, load = [], datasets.load_dataset_builder

    def info(self, path, revision):
        return huggingface_hub.DatasetInfo(id=path, sha=revision or f"newest{len(asked)}", tags=[])

    def builder(path, subset, revision):
        asked.append((path, subset, revision))
        return load(str(tmp_path / "hub"))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    options = {"inputs": (), "dataset": "some/corpus", "subset": "en", "heldout": 0.1}

    def interrupt(task, piece, *_):
        if piece.name == "00001":
            raise KeyboardInterrupt

    with watching(shards, "write_piece", interrupt), pytest.raises(UserError):
        job.prepare(output=tmp_path / "out", **options)
    hub._open_stream.cache_clear()
    manifest = job.prepare(output=tmp_path / "out", **options)
    assert asked == [("some/corpus", "en", "newest0")] * 2
    source = {"dataset": "some/corpus", "subset": "en", "split": "train", "revision": "newest0"}
    assert manifest["source"] == source and len(manifest["splits"]["train"]["shards"]) == 3


# --- what is refused -----------------------------------------------------------------------------


def test_only_the_same_job_goes_on_in_a_directory(corpus, tmp_path, capsys):
    _, files = corpus
    manifest = job.prepare(files, tmp_path / "web")
    before = tree(tmp_path / "web")
    assert job.prepare(files, tmp_path / "web") == manifest
    assert "web is already prepared" in capsys.readouterr().err and tree(tmp_path / "web") == before
    with pytest.raises(UserError, match="web is not empty; choose a new directory"):
        job.prepare(files, tmp_path / "web", heldout=0.2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="mine is not empty; choose a new directory"):
        job.prepare(files, tmp_path / "mine")
    assert list(tree(tmp_path / "mine")) == ["thesis.tex"]


def test_the_beginning_of_another_job_is_refused(long_corpus, tmp_path):
    def stop(task, piece, *_):
        if piece.name == "00001":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with watching(shards, "write_piece", stop), pytest.raises(UserError):
        job.prepare(output=out, **long_corpus)
    says = f"--output {out} has an unfinished job with heldout 0.05 instead of 0.1;"
    with pytest.raises(UserError, match=says):
        job.prepare(output=out, **{**long_corpus, "heldout": 0.1})
    path = long_corpus["inputs"][0]
    path.write_text(path.read_text() + '\n{"text": "more"}')
    says = (
        rf"an unfinished job with a different source \({path} is another or has changed\); resume"
    )
    with pytest.raises(UserError, match=says):
        job.prepare(output=out, **long_corpus)
    with (
        job._claimed(out, {}, tokenizers.ByteTokenizer()),
        pytest.raises(UserError, match=f"another loopjax prepare is writing to {out}"),
        job._claimed(out, {}, tokenizers.ByteTokenizer()),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "fine"}\n{"text": 3}\n', "line 2: not a JSON object with a text field 'text'"),
        ("not json\n", "line 1"),
        ("", "have no document to train on"),
        ('{"text": "one"}\n', "the held-out split is empty"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left_behind(content, says, tmp_path):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(UserError) as error:
        job.prepare([tmp_path / "in.jsonl"], tmp_path / "out", heldout=1e-9)
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "dataset DIR has no column 'text'; set --text-key to one of body, n"),
        ({"split": "test"}, "dataset DIR cannot be opened: Bad split: test"),
        ({"subset": "en"}, "dataset DIR (en) cannot be opened: BuilderConfig 'en' not found"),
        ({"text_key": "n"}, "dataset DIR, file 0, part 0, row 0: column 'n' is not text"),
        ({"dataset": "no/such"}, "dataset no/such is not a directory, and the Hugging Face hub"),
        ({"inputs": ["x"]}, "give exactly one of --input, --dataset and --recipe"),
        ({"processes": 0}, "--processes=0 must be at least 1"),
        ({"heldout": 1.0}, "--heldout=1.0 must be at least 0 and below 1"),
        ({"tokenizer": "no/such"}, "tokenizer 'no/such' is not a file, and the Hugging Face hub"),
    ],
)
def test_a_mistake_about_a_dataset_is_told_in_one_sentence(options, says, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    import huggingface_hub
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub"
    folder.mkdir()
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), folder / "train.parquet")
    with pytest.raises(UserError) as error:
        arguments = {"inputs": (), "dataset": str(folder), **options}
        job.prepare(output=tmp_path / "out", **arguments)
    assert str(error.value).startswith(says.replace("DIR", str(folder)))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
