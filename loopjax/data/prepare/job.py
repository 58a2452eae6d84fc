"""`loopjax prepare`: text to token shards.

Input (files or a dataset) -> pieces (what one worker reads at a time) -> a shard per piece and
split (a file) -> records (2048 token ids, the unit of random access).

    DIR/manifest.json             counts, hashes, tokenizer, source; written last
    DIR/tokenizer.json            a copy of the tokenizer file, if there is one
    DIR/train/00000.arrayrecord   token ids, a shard for each piece of the input
    DIR/heldout/00000.arrayrecord
    DIR/unfinished/               until the job is done: job.json, and the counts of finished pieces

The pieces (`pieces`, `hub`) do not depend on the number of processes, and a finished piece stays
finished: the same command resumes an interrupted job.

A document is held out by the hash of its text, or because it is in one of the held-out files; a
document of those files that also occurs in the input is left out of training.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import math
import pathlib
import shutil
import sys

from loopjax.data import token_shards, tokenizers
from loopjax.data.prepare import (
    hub,
    input_files,
    pieces,
    progress,
    readers,
    recipes,
    shards,
    workers,
)
from loopjax.errors import UserError
from loopjax.files import read_json, write_json

SHARD_SIZE = 256 * 10**6  # bytes of input per piece, and so per shard
JOB = "job.json"


def prepare(
    inputs,
    output,
    tokenizer: str = "bytes",
    *,
    dataset: str | None = None,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    heldout: float = 0.01,
    heldout_inputs=(),
    text_key: str = "text",
    text_url: str | None = None,
    input_format: str | None = None,
    max_document: int = readers.MAX_DOCUMENT,
    eos: str | None = None,
    shard_size: int = SHARD_SIZE,
    first_pieces: int | None = None,
    processes: int = 1,
) -> dict:
    """Writes the token shards of files or of a dataset and returns the manifest.

    Args:
      inputs: JSON lines, Parquet or text files (also gzip, zstd), and directories of such files.
      output: a new or empty directory, or one with an unfinished job of the same settings.
      tokenizer: "bytes", a tokenizer.json, a directory with one, or a repository of the hub.
      dataset: a dataset of the Hugging Face hub or a local directory, instead of inputs.
      subset, split, revision: subset, split and commit of the dataset.
      heldout: fraction of documents held out, by hash; not used with `heldout_inputs`.
      heldout_inputs: files whose documents are the held-out split.
      text_key: field or column of the text.
      text_url: URL prefix to fetch texts from, if the field holds only their names.
      input_format: "jsonl" or "text" for all inputs; by default the content of each decides.
      max_document: bytes of the longest line or text; a longer one is an error.
      eos: end-of-document token, if it is not the one that the tokenizer's files name.
      shard_size: bytes of input per piece.
      first_pieces: number of pieces to stop after, to try a large corpus.
      processes: number of worker processes.
    """
    numbers = {"shard-size": shard_size, "pieces": first_pieces, "processes": processes}
    _check(inputs, dataset, heldout, numbers | {"max-document": max_document})
    output = pathlib.Path(output)
    existing = _existing(output)
    codec = tokenizers.load(tokenizer, eos)
    reading = input_files.Reading(text_key, input_format, max_document)
    heldout_files, left_out = input_files.find(heldout_inputs, reading, output)
    files = []
    if dataset:
        before = existing.get("source", {})
        if before.get("dataset") == dataset:
            revision = revision or before.get("revision")  # there may be a newer one by now
        data = hub.find(dataset, subset, split, revision)
        source = data.describe()
        parts_of_input = hub.cut(data, text_key, shard_size)
    else:
        files, left_out_here = input_files.find(inputs, reading, output)
        left_out += left_out_here
        source = input_files.describe(files)
        parts_of_input = pieces.cut_files(files, text_key, shard_size, max_document)
    parts_of_heldout = pieces.cut_files(heldout_files, text_key, shard_size, max_document)
    all_pieces = _named(parts_of_heldout, parts_of_input[:first_pieces])
    job = {
        "format": token_shards.FORMAT,
        "tokenizer": codec.name,
        "vocab_size": codec.vocab_size,
        "eos": codec.eos,
        "dtype": shards.token_dtype(codec).name,
        "record_tokens": shards.RECORD_TOKENS,
        "source": source,
        "text_key": text_key,
        "text_url": text_url,
        "heldout": input_files.describe(heldout_files) if heldout_files else heldout,
        "shard_size": shard_size,
        "pieces": len(all_pieces),
    }
    _check_same(output, existing, job)
    if (output / token_shards.MANIFEST).is_file():
        shutil.rmtree(output / shards.UNFINISHED, ignore_errors=True)
        print(f"{output} is already prepared, skipped", file=sys.stderr)
        return existing
    for sentence in input_files.summary([*files, *heldout_files], left_out):
        print(sentence, file=sys.stderr)
    spec = "bytes" if codec.path is None else str(output / tokenizers.FILE)
    task = shards.Task(
        output, spec, codec.eos, text_key, text_url, heldout, bool(heldout_files), max_document
    )
    with _claimed(output, job, codec):
        _run(task, all_pieces, codec, processes)
        input_files.check_unchanged([*files, *heldout_files])
        if dataset and data.describe() != source:
            raise UserError(f"{data} changed while it was read; choose a new directory")
        return _join(task, job, all_pieces)


def prepare_recipe(name: str, output, only=(), **options) -> list[tuple[str, dict]]:
    """Prepares each source of a recipe in its own folder; returns the mixtures to train with.

    `options` are options of `prepare` for every source; `only` selects some of the sources.
    """
    if name not in recipes.RECIPES:
        raise UserError(f"--recipe {name} must be one of {', '.join(recipes.RECIPES)}")
    recipe = recipes.RECIPES[name]
    unknown = [source for source in only if source not in recipe["sources"]]
    if unknown:
        raise UserError(
            f"--only {unknown[0]} must be a source of {name}: {', '.join(recipe['sources'])}"
        )
    for source, settings in recipe["sources"].items():
        if not only or source in only:
            print(f"{source}: {settings['dataset']}", file=sys.stderr)
            folder = pathlib.Path(output) / source
            prepare((), folder, recipe["tokenizer"], **{**options, **settings})
    return recipe["mixtures"]


def _named(heldout: list[tuple], train: list[tuple]) -> list[shards.Piece]:
    """The pieces with their names, those of the held-out files first."""
    return [
        *(shards.Piece(f"heldout-{i:05d}", parts, True) for i, parts in enumerate(heldout)),
        *(shards.Piece(f"{i:05d}", parts) for i, parts in enumerate(train)),
    ]


def _check(inputs, dataset, heldout, numbers: dict) -> None:
    if bool(inputs) == bool(dataset):
        raise UserError("give exactly one of --input, --dataset and --recipe")
    if not 0 <= heldout < 1:
        raise UserError(f"--heldout={heldout} must be at least 0 and below 1")
    for flag, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"--{flag}={value} must be at least 1")


def _existing(output: pathlib.Path) -> dict:
    """The manifest or the unfinished job of an output directory; {} for a new directory."""
    if (output / token_shards.MANIFEST).is_file():
        return token_shards.read_manifest(output)
    job = output / shards.UNFINISHED / JOB
    if job.is_file():
        found = read_json(job)
        if not isinstance(found, dict):
            raise UserError(f"{job} is damaged; remove {output} to prepare it anew")
        return found
    # A process that is killed before it has written its job leaves no more than this.
    allowed = {job.parent, job.with_name(f"{JOB}.tmp")}
    if output.is_file() or {*output.glob("*"), *job.parent.glob("*")} - allowed:
        raise UserError(f"--output {output} is not empty; choose a new directory")
    return {}


def _check_same(output: pathlib.Path, existing: dict, job: dict) -> None:
    """Raises UserError if the directory belongs to another job."""
    finished = (output / token_shards.MANIFEST).is_file()
    differing = [
        key for key in job if existing and not _same(existing.get(key), job[key], finished)
    ]
    if not differing:
        return
    if finished:
        raise UserError(f"--output {output} is not empty; choose a new directory")
    key = differing[0]
    was = existing.get(key)
    now = job[key]
    nested = isinstance(was, dict) or isinstance(now, dict)
    difference = f"{key} {was} instead of {now}"
    if nested:
        file = isinstance(was, dict) and isinstance(now, dict) and input_files.changed(was, now)
        difference = f"a different {key}" + (f" ({file} is another or has changed)" if file else "")
    raise UserError(
        f"--output {output} has an unfinished job with {difference}; resume that job or choose a new "
        "directory"
    )


def _same(was, now, finished: bool) -> bool:
    """Whether two settings are equal. Finished data is not lost because its input was copied.

    A manifest of an older version has fewer fields of a file than this one.
    """
    if not (finished and isinstance(was, dict) and isinstance(now, dict)):
        return was == now
    if "files" in was or "files" in now:
        return not input_files.changed(was, now, times=False)
    return all(now.get(key) == value for key, value in was.items() if key != "modified_ns")


@contextlib.contextmanager
def _claimed(output: pathlib.Path, job: dict, codec):
    """Claims the directory for a job; finished pieces stay if the work is interrupted."""
    folder = output / shards.UNFINISHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / JOB).is_file():
            write_json(folder / JOB, job)
    except OSError as error:
        raise UserError(f"--output {output} cannot be created: {error.strerror}") from None
    with open(folder / JOB) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another loopjax prepare is writing to {output}") from None
        _clear(folder)
        copy = output / tokenizers.FILE
        if codec.path is not None and codec.path.resolve() != copy.resolve():
            shutil.copyfile(codec.path, copy)
        try:
            yield
        except BaseException:
            _clear(folder)
            if not finished_parts(output):
                shutil.rmtree(output, ignore_errors=True)
            raise


def _clear(folder: pathlib.Path) -> None:
    """Removes files that were being written when the work was interrupted."""
    for path in folder.glob("*.tmp"):
        path.unlink()


def finished_parts(output: pathlib.Path) -> list[pathlib.Path]:
    """The parts of the manifest that finished pieces have written."""
    folder = output / shards.UNFINISHED
    return [path for path in folder.glob("*.json") if path.name != JOB]


def how_far(output: pathlib.Path) -> tuple[int, int]:
    """(finished pieces, all pieces) of an unfinished job."""
    return len(finished_parts(output)), _existing(output).get("pieces", 0)


def _run(task: shards.Task, all_pieces: list[shards.Piece], codec, processes: int) -> None:
    """Writes the pieces that are not finished; those of the held-out files come first."""
    done = [piece for piece in all_pieces if _is_done(task.output, piece)]
    names = {piece.name for piece in done}
    if done:
        print(f"resuming: {len(done)} of {len(all_pieces)} pieces are done", file=sys.stderr)
    counts = progress.Progress(all_pieces, done)
    try:
        # The hashes of the held-out documents must be known before training shards are written.
        for of_heldout in (True, False):
            todo = [p for p in all_pieces if p.is_heldout is of_heldout and p.name not in names]
            workers.run(task, todo, codec, processes, counts)
    except KeyboardInterrupt:
        raise UserError(
            f"interrupted with {counts.finished} of {len(all_pieces)} pieces done; rerun the same "
            "command to resume"
        ) from None
    finally:
        counts.show(last=True)


def _is_done(output: pathlib.Path, piece: shards.Piece) -> bool:
    """Whether a piece has its part of the manifest, and its shards still exist."""
    try:
        part = read_json(shards.part_path(output, piece))
        if part is None:
            return False
        files = [shard for split in part["splits"].values() for shard in split["shards"]]
        return all((output / s["file"]).stat().st_size == s["bytes"] for s in files)
    except (OSError, UserError, AttributeError, KeyError, TypeError):
        return False  # a damaged part: the piece is written anew


def _join(task: shards.Task, job: dict, all_pieces: list[shards.Piece]) -> dict:
    """Writes the manifest from the parts of the pieces, in their order."""
    output = task.output
    parts = [read_json(shards.part_path(output, piece)) for piece in all_pieces]
    splits = {}
    for name in token_shards.SPLITS:
        split = [part["splits"][name] for part in parts]
        counts = {k: sum(s[k] for s in split) for k in ("documents", "tokens", "text_bytes")}
        splits[name] = {**counts, "shards": [shard for s in split for shard in s["shards"]]}
    try:
        n_dropped = sum(part["dropped_from_training"] for part in parts)
        _check_not_empty(task, splits, n_dropped, all_pieces)
    except UserError:
        shutil.rmtree(output, ignore_errors=True)
        raise
    packages = ("loopjax", "tokenizers") if job["tokenizer"] != "bytes" else ("loopjax",)
    manifest = {
        **job,
        **{key: sum(p[key] for p in parts) for key in ("dropped_from_training", "missing_texts")},
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "splits": splits,
    }
    manifest = token_shards.write_manifest(output, manifest)
    shutil.rmtree(output / shards.UNFINISHED)
    return manifest


def _check_not_empty(task: shards.Task, splits: dict, n_dropped: int, all_pieces: list) -> None:
    """Raises UserError if a split has no document, with a fraction that would do."""
    n_train, n_heldout = (splits[name]["documents"] for name in token_shards.SPLITS)
    if not n_train and n_dropped:
        raise UserError("every document of the input is also in the files of --heldout-input")
    if not n_train and (task.named_heldout or not n_heldout):
        raise UserError("the inputs have no document to train on")
    if not n_heldout and task.named_heldout:
        raise UserError("the files of --heldout-input have no document")
    if n_train and (n_heldout or not task.heldout):
        return
    n = n_train + n_heldout
    fraction = _dividing_fraction(task, all_pieces)
    if fraction:
        remedy = f"set --heldout={fraction} for these {n:,} documents"
    elif n == 1:
        remedy = "the input is one document, which cannot be divided: set --heldout=0"
    else:
        remedy = f"all {n:,} documents are the same text, which cannot be divided: set --heldout=0"
    split = "held-out" if n_train else "training"
    raise UserError(
        f"the {split} split is empty at --heldout={task.heldout}; {remedy}, or name files with "
        "--heldout-input"
    )


def _dividing_fraction(task: shards.Task, all_pieces: list) -> float | None:
    """The smallest short fraction at which both splits have a document; None if there is none."""
    documents = (d for piece in all_pieces for d, _ in shards.documents(task, piece))
    known = (tokenizers.utf8(document) for document in documents if document is not None)
    digests = {hashlib.sha256(data).digest() for data in known}
    lowest, highest = min(digests), max(digests)
    for digits in range(2, 18):
        scale = 10**digits
        fraction = math.ceil(int.from_bytes(lowest[:8], "big") / 2**64 * scale) / scale
        held = [token_shards.is_heldout(digest, fraction) for digest in (lowest, highest)]
        if held == [True, False]:
            return fraction
    return None
