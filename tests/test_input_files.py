"""What `prepare` takes for its input, what it leaves out and says so, what it refuses."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from loopjax.cli import main as cli
from loopjax.data import token_shards
from loopjax.data.prepare import input_files, job, pieces, shards
from loopjax.errors import UserError
from tests.test_shards import decoded

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXTS = [f"document {i}" for i in range(40)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty directory, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(*inputs, **options):
    """The documents that become tokens, in the order of the input."""
    job.prepare(inputs, "out", **{"heldout": 0.0, **options})
    found = decoded(pathlib.Path("out"), "train")
    shutil.rmtree("out")
    return found


def refused(*inputs, **options):
    with pytest.raises(UserError) as error:
        job.prepare(inputs, "out", **{"heldout": 0.0, **options})
    assert not os.path.exists("out") and "\n" not in str(error.value)
    return str(error.value)


def packed(path, text, codec):
    pa = pytest.importorskip("pyarrow")
    with pa.CompressedOutputStream(str(path), codec) as file:
        file.write(text.encode())


NAMES = [
    "a.ndjson",
    "A.JSONL",
    "a.json",
    "RC_2010-04",
    "c4.json.gz",
    "RC_2010-04.zst",
    "A.JSONL.GZ",
]


@pytest.mark.parametrize("name", NAMES)
def test_json_lines_are_told_by_their_content_whatever_their_name(name, place):
    path = place / "folder" / name
    path.parent.mkdir()
    codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.casefold())
    packed(path, LINES, codec) if codec else path.write_text(LINES)
    assert prepared(path) == prepared("folder") == TEXTS


def test_what_is_left_out_of_a_folder_is_listed_and_nothing_is_read_twice(place, capsys):
    folder = place / "c4"
    folder.mkdir()
    for i in range(2):
        packed(folder / f"c4-{i}.json.gz", LINES, "gzip")
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "more.jsonl").write_text('{"text": "more"}\n')
    (folder / "README.txt").write_text("read me")
    (folder / "README.md").write_text("# read me")
    (folder / "info.json").write_text('{"builder": "c4"}')
    (folder / "card.json").write_text(json.dumps({"text": "x"}, indent=1))
    (folder / "picture").write_bytes(b"\x89PNG\0\0")
    (folder / "old.bz2").write_bytes(b"BZh91AY&SY")
    (folder / "failed.jsonl").touch()
    os.mkfifo(folder / "pipe")
    for name, target in {
        "gone": "nowhere", "linked": "../elsewhere", "loop": ".", "twin.json.gz": "c4-1.json.gz"
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    assert sorted(prepared("c4")) == sorted([*TEXTS, *TEXTS, "more", "read me"])
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("pieces")]
    assert told == [
        "reading 3 files (c4/c4-0.json.gz, c4/c4-1.json.gz, c4/linked/more.jsonl) as JSON lines",
        "reading 1 file (c4/README.txt) as plain text",
        "left out (the same folder as c4): 1 file (c4/loop)",
        "left out (not JSON lines, Parquet, or text named .txt): 1 file (c4/README.md)",
        "left out (JSON, but not one object per line; set --input-format=text if it is text): "
        "1 file (c4/card.json)",
        "left out (empty): 1 file (c4/failed.jsonl)",
        "left out (a broken link): 1 file (c4/gone)",
        "left out (JSON without a text field 'text' in its first line): 1 file (c4/info.json)",
        "left out (compressed with bzip2; gzip and zstd are read): 1 file (c4/old.bz2)",
        "left out (binary): 1 file (c4/picture)",
        "left out (not a regular file): 1 file (c4/pipe)",
        "left out (the same file as c4/c4-1.json.gz): 1 file (c4/twin.json.gz)",
    ]
    many = [(f"{i}.png", "binary") for i in range(1007)]
    listed = "left out (binary): 1,007 files (0.png, 1.png, 2.png, 3.png, 4.png and 1,002 more)"
    assert input_files.summary([], many) == [listed]


def test_the_output_is_not_part_of_the_input_around_it(place):
    (place / "corpus").mkdir()
    (place / "corpus" / "a.jsonl").write_text(LINES)
    for _ in range(2):
        manifest = job.prepare(["corpus"], "corpus/tokens", heldout=0.0)
        assert [file["file"] for file in manifest["source"]["files"]] == ["corpus/a.jsonl"]


def test_the_format_can_be_set(place):
    (place / "a.txt").write_text(LINES)
    assert prepared("a.txt", input_format="text") == [LINES]
    assert prepared("a.txt", input_format="jsonl") == TEXTS
    assert cli.main(["prepare", "--input=a.txt", "--input-format=csv", "--output=out"]) == 2
    (place / "src").mkdir()
    (place / "src" / "a.py").write_text("[{")
    (place / "src" / "a.pyc").write_bytes(b"PK\x03\x04")
    assert prepared("src", input_format="text") == ["[{"]


UTF8 = "not UTF-8 (invalid continuation byte)"
REFUSED = {
    "a.txt": (LINES.encode(), "input a.txt cannot be read: it is JSON lines by its content but text by its name; set --input-format"),
    "a.xz": (b"\xfd7zXZ\0", "input a.xz cannot be read: it is compressed with xz; gzip and zstd are read"),
    "a.tex": (b"{\n\"a\": 1}", "input a.tex cannot be read: it is JSON, but not one object per line; set --input-format=text if it is text"),
    "b.txt": ("wide".encode("utf-16"), "input b.txt cannot be read: it is UTF-16; UTF-8 is read"),
    "c.txt": (b"nul\0", "input c.txt cannot be read: it is binary; set --input-format=text if it is text"),
    "d.txt": (b"one\n" * 9 + b"caf\xe9s", f"input d.txt, line 10: {UTF8}"),
    "d.jsonl": (b'{"text": "a"}\n{"text": "caf\xe9s"}', f"input d.jsonl, line 2: {UTF8}"),
    "e.txt": (b"version https://git-lfs.github.com/spec/v1\n", "input e.txt is a pointer of Git LFS and not the data; run git lfs pull"),
    "f.jsonl": (b'{"text": "a"}\n{"text": "a", "b": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "input f.jsonl, line 2: JSON nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_as_it_is_named(name, place):
    content, says = REFUSED[name]
    (place / name).write_bytes(content)
    assert refused(name) == says
    if not name.endswith((".xz", ".tex")):  # also in a folder: the name says that it is data
        (place / "folder").mkdir()
        (place / name).rename(place / "folder" / name)
        assert refused("folder") == says.replace(name, f"folder/{name}")


def test_inputs_that_are_given_twice_or_are_no_files(place):
    (place / "folder").mkdir()
    (place / "folder" / "a.jsonl").write_text(LINES)
    (place / "b.jsonl").symlink_to("folder/a.jsonl")
    twice = "is given twice (also as folder/a.jsonl); give it once"
    assert refused("folder/a.jsonl", "b.jsonl") == f"input b.jsonl {twice}"
    assert refused("folder", "folder/a.jsonl") == f"input folder/a.jsonl {twice}"
    assert refused("n" * 300) == f"input {'n' * 300} is not readable: File name too long"
    os.mkfifo("pipe")
    assert refused("pipe") == "input pipe is not a regular file; write its content to one"


def test_an_input_that_was_replaced_between_two_starts_is_noticed(place, monkeypatch):
    path = place / "in.jsonl"
    path.write_text(LINES)
    options = {"output": "out", "heldout": 0.0, "shard_size": 300}
    write_piece = shards.write_piece

    def interrupted(task, piece, *args):
        if piece.name == "00001":
            raise KeyboardInterrupt
        return write_piece(task, piece, *args)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_piece", interrupted)
        with pytest.raises(UserError, match="interrupted with 1 of"):
            job.prepare([path], **options)
    before = path.stat()
    for content, same_time in ((LINES.upper(), True), (LINES, False)):
        path.write_text(content.replace('"TEXT"', '"text"'))
        assert path.stat().st_size == before.st_size
        if same_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(UserError) as error:
            job.prepare([path], **options)
        assert str(error.value) == (
            f"--output out has an unfinished job with a different source ({path} is another or has "
            "changed); resume that job or choose a new directory"
        )
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    manifest = job.prepare([path], **options)  # the file of the beginning is back
    os.utime(path)  # a copy of the same content: what is finished stays finished
    assert job.prepare([path], **options) == manifest


def test_an_input_that_changes_while_it_is_read_is_noticed(place, monkeypatch):
    path = place / "in.jsonl"
    path.write_text(LINES)
    write_piece = shards.write_piece

    def replaced(*args):
        path.write_text(LINES)
        return write_piece(*args)

    monkeypatch.setattr(shards, "write_piece", replaced)
    with pytest.raises(UserError) as error:
        job.prepare([path], "out", heldout=0.0)
    says = f"input {path} changed while it was read; prepare it again in a new directory"
    assert str(error.value) == says and not (place / "out" / token_shards.MANIFEST).exists()


def test_data_of_an_older_version_is_still_prepared(place, capsys):
    (place / "in.jsonl").write_text(LINES)
    job.prepare(["in.jsonl"], "out", heldout=0.0)
    path = place / "out" / token_shards.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["source"] = {"files": [{"file": "in.jsonl", "bytes": len(LINES)}]}
    manifest.pop("sha256")
    path.write_text(json.dumps(manifest))
    job.prepare(["in.jsonl"], "out", heldout=0.0)
    assert "out is already prepared, skipped" in capsys.readouterr().err


def test_a_damaged_state_of_a_job_is_written_anew_or_told(place):
    (place / "in.jsonl").write_text(LINES)
    job.prepare(["in.jsonl"], "whole", heldout=0.0, shard_size=300)
    shutil.copytree("whole", "out")
    manifest = place / "out" / token_shards.MANIFEST
    fields = json.loads(manifest.read_text())
    manifest.unlink()
    state = place / "out" / shards.UNFINISHED
    state.mkdir()
    (state / job.JOB).write_text(json.dumps(fields))
    for i, content in enumerate(("", "[]", '{"splits": []}', '{"splits": {"train": 3}}')):
        (state / f"{i:05d}.json").write_text(content)
    assert job.prepare(["in.jsonl"], "out", heldout=0.0, shard_size=300) == fields
    manifest.unlink()
    state.mkdir()
    (state / job.JOB).write_text("[]")
    with pytest.raises(UserError, match=r"job.json is damaged; remove out to prepare it anew"):
        job.prepare(["in.jsonl"], "out", heldout=0.0, shard_size=300)


# --- the split -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("heldout", "split"), [(1e-9, "held-out"), (1 - 2**-40, "training")])
def test_an_empty_split_is_told_with_a_fraction_that_would_do(heldout, split, place):
    (place / "in.jsonl").write_text(LINES)
    said = refused("in.jsonl", heldout=heldout)
    start = f"the {split} split is empty at --heldout={heldout}; set --heldout="
    assert said.startswith(start)
    fraction = float(said.removeprefix(start).split()[0])
    manifest = job.prepare(["in.jsonl"], "out", heldout=fraction)
    assert all(manifest["splits"][name]["documents"] for name in token_shards.SPLITS)


def test_documents_that_cannot_be_divided(place):
    (place / "one.jsonl").write_text('{"text": "one"}\n')
    (place / "same.jsonl").write_text('{"text": "one"}\n' * 7)
    end = "which cannot be divided: set --heldout=0, or name files with --heldout-input"
    start = "the held-out split is empty at --heldout=0.01; "
    assert refused("one.jsonl", heldout=0.01) == f"{start}the input is one document, {end}"
    assert refused("same.jsonl", heldout=0.01) == f"{start}all 7 documents are the same text, {end}"
    (place / "copy.jsonl").write_text('{"text": "one"}\n')
    assert refused("one.jsonl", heldout_inputs=["copy.jsonl"]) == (
        "every document of the input is also in the files of --heldout-input"
    )
    (place / "blank.jsonl").write_text("\n\n")
    assert refused("one.jsonl", heldout_inputs=["blank.jsonl"]) == (
        "the files of --heldout-input have no document"
    )


# --- bounded memory ------------------------------------------------------------------------------

LONG = "is longer than 0.001 MB; raise --max-document if it is one document"


@pytest.mark.parametrize("codec", [None, "gzip", "zstd"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_line_above_the_limit_is_told_with_its_number(codec, name, place):
    def written(n):
        lines = ["a" * 900, "b" * n]
        text = "\n".join(json.dumps({"text": x}) if "json" in name else x for x in lines) + "\n"
        path = place / (name + {None: "", "gzip": ".gz", "zstd": ".zst"}[codec])
        packed(path, text, codec) if codec else path.write_text(text)
        return path

    path = written(1200)
    assert refused(path, max_document=1000) == f"input {path}, line 2: the line {LONG}"
    if not codec:  # where the long line goes on into other parts
        files, _ = input_files.find([path], input_files.Reading("text", None, 10**6))
        errors = []
        for (part,) in pieces.cut_files(files, "text", 100, 1000):
            try:
                list(part.documents("text", 1000))
            except UserError as error:
                errors.append(str(error))
        assert errors == [f"input {path}, line 2: the line {LONG}"]
    assert "".join(prepared(written(900), max_document=1000)).count("b") == 900


def test_a_text_in_parquet_above_the_limit_or_not_utf8_is_told_with_its_row(place):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = [*(["short"] * 20), "x" * 1200, "short"]
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ):
        pq.write_table(pa.table({"text": pa.array(texts).cast(kind)}), "a.parquet")
        says = f"input a.parquet, row 20: column 'text' {LONG}"
        assert refused("a.parquet", max_document=1000) == says
        assert prepared("a.parquet", max_document=1200) == texts
    whole = pa.table({"text": ["x" * 10**5] * 4})
    pq.write_table(whole, "b.parquet", row_group_size=2, use_dictionary=False, compression="zstd")
    # Told by the sizes that the file states, before it is read.
    assert refused("b.parquet", max_document=1000) == (
        f"input b.parquet, rows 0 to 1: a text in column 'text' {LONG}"
    )
    offsets, data = pa.array([0, 1, 4], pa.int32()).buffers()[1], pa.py_buffer(b"a\xe9bc")
    bad = pa.StringArray.from_buffers(2, offsets, data)
    pq.write_table(pa.table({"text": bad}), "c.parquet")
    assert refused("c.parquet") == f"input c.parquet, row 1: column 'text' is {UTF8}"


def test_a_text_of_a_dataset_above_the_limit_is_told_with_its_row(place):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    texts = [*(["short"] * 20), "x" * 1200, "short"]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk("saved")
    says = f"dataset saved, row 20: column 'text' {LONG}"
    assert refused(dataset="saved", max_document=1000) == says
    (place / "hub").mkdir()
    (place / "hub" / "a.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
    says = f"dataset hub, file 0, part 0, row 20: column 'text' {LONG}"
    assert refused(dataset="hub", max_document=1000) == says


PEAK = """
import re, sys
from loopjax.cli import main as cli
code = cli.main(sys.argv[1:])
print(code, re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace("\\t", " "))[1])
"""


def test_a_decompression_bomb_takes_little_memory(place):
    with gzip.open("bomb.jsonl.gz", "wb", 1) as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(400):
            file.write(b"a" * 10**6)
    command = [sys.executable, "-c", PEAK, "prepare", "--input=bomb.jsonl.gz", "--output=out"]
    done = subprocess.run(
        [*command, "--max-document=4MB"], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, peak = done.stdout.split()
    assert code == "2" and int(peak) < 200_000, done.stderr  # kB; Python and its packages are 90 MB
    assert "input bomb.jsonl.gz, line 2: the line is longer than 4 MB; " in done.stderr
