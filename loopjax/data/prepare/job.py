"""`loopjax prepare`: text to token shards.

    DIR/manifest.json             counts, hashes, tokenizer, source; written last
    DIR/tokenizer.json            a copy of the tokenizer file, if there was one
    DIR/train/00000.arrayrecord   token ids, a shard for each piece of the input
    DIR/heldout/00000.arrayrecord
    DIR/unfinished/               while it is at work: the job, and what the finished pieces hold

The input is cut into pieces (`pieces`, `hub`) that do not depend on the number of processes, and
a finished piece stays finished: started again by the same command, the work goes on.

Whether a document is held out is decided by the hash of its text, or by a list of held-out files;
a document of those files that also occurs in the input is left out of training.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import pathlib
import shutil
import sys

from loopjax.data import token_shards, tokenizers
from loopjax.data.prepare import hub, pieces, progress, recipes, shards, workers
from loopjax.errors import UserError
from loopjax.files import write_json

SHARD_SIZE = 256 * 10**6  # bytes of input a piece, and so a shard
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
    eos: str | None = None,
    shard_size: int = SHARD_SIZE,
    first_pieces: int | None = None,
    processes: int = 1,
) -> dict:
    """Writes the token shards of files or of a dataset and returns the manifest.

    Args:
      inputs: .jsonl, .parquet or text files (.gz, .zst), and directories that hold such.
      output: a new or empty directory, or one where the same job was begun.
      tokenizer: "bytes", a tokenizer.json, a directory that holds one, or a repository of the hub.
      dataset: instead of inputs, a dataset of the Hugging Face hub or a directory that holds one.
      subset, split, revision: which part of the dataset.
      heldout: fraction of documents held out, by hash; not used with `heldout_inputs`.
      heldout_inputs: files whose documents are the held-out split.
      text_key: the field or column that holds the text.
      text_url: where texts are fetched from if that field holds but their names.
      eos: the end-of-document token, if it is not the one that the tokenizer's files name.
      shard_size: bytes of input a piece.
      first_pieces: so many pieces only, to try a large corpus.
      processes: how many work at a time.
    """
    _check(inputs, dataset, heldout, shard_size, first_pieces, processes)
    output = pathlib.Path(output)
    found = _found(output)
    codec = tokenizers.load(tokenizer, eos)
    held_paths = pieces.find_files(heldout_inputs)
    if dataset:
        before = found.get("source", {})
        if before.get("dataset") == dataset:
            revision = revision or before.get("revision")  # the hub may have moved on since
        data = hub.find(dataset, subset, split, revision)
        source, cut = hub.describe(data), hub.cut(data, text_key, shard_size)
    else:
        paths = pieces.find_files(inputs)
        source, cut = _described(paths), pieces.cut_files(paths, text_key, shard_size)
    held = pieces.cut_files(held_paths, text_key, shard_size)
    wanted = _named(held, cut[:first_pieces])
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
        "heldout": _described(held_paths) if held_paths else heldout,
        "shard_size": shard_size,
        "pieces": len(wanted),
    }
    _check_same(output, found, job)
    if (output / token_shards.MANIFEST).is_file():
        shutil.rmtree(output / shards.UNFINISHED, ignore_errors=True)
        print(f"{output} is already prepared", file=sys.stderr)
        return found
    spec = "bytes" if codec.path is None else str(output / tokenizers.FILE)
    task = shards.Task(output, spec, codec.eos, text_key, text_url, heldout, bool(held_paths))
    with _begun(output, job, codec):
        _run(task, wanted, codec, processes)
        return _join(output, job, wanted)


def prepare_recipe(name: str, output, only=(), **options) -> list[tuple[str, dict]]:
    """Prepares the sources of a recipe, a folder each; returns the mixtures to train with.

    `options` are those of `prepare` that hold for every source; `only` names some of the sources.
    """
    if name not in recipes.RECIPES:
        raise UserError(f"--recipe {name} is not known: {', '.join(recipes.RECIPES)}")
    recipe = recipes.RECIPES[name]
    unknown = [source for source in only if source not in recipe["sources"]]
    if unknown:
        raise UserError(f"--only {unknown[0]} is not of {name}: {', '.join(recipe['sources'])}")
    for source, settings in recipe["sources"].items():
        if not only or source in only:
            print(f"{source}: {settings['dataset']}", file=sys.stderr)
            folder = pathlib.Path(output) / source
            prepare((), folder, recipe["tokenizer"], **{**options, **settings})
    return recipe["mixtures"]


def _named(held: list[tuple], cut: list[tuple]) -> list[shards.Piece]:
    return [
        *(shards.Piece(f"heldout-{i:05d}", parts, True) for i, parts in enumerate(held)),
        *(shards.Piece(f"{i:05d}", parts) for i, parts in enumerate(cut)),
    ]


def _check(inputs, dataset, heldout, shard_size, first_pieces, processes) -> None:
    if bool(inputs) == bool(dataset):
        raise UserError("give --input, --dataset or --recipe, one of them")
    if not 0 <= heldout < 1:
        raise UserError(f"--heldout={heldout} must be a fraction of at least 0 and below 1")
    numbers = {"shard-size": shard_size, "pieces": first_pieces, "processes": processes}
    for flag, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"--{flag}={value} must be at least 1")


def _described(paths) -> dict:
    return {"files": [{"file": str(path), "bytes": path.stat().st_size} for path in paths]}


def _found(output: pathlib.Path) -> dict:
    """The manifest or the job of an output directory, {} if there is none yet."""
    if (output / token_shards.MANIFEST).is_file():
        return token_shards.read_manifest(output)
    job = output / shards.UNFINISHED / JOB
    if job.is_file():
        return json.loads(job.read_text())
    # What is killed before its job is written down has left no more than this.
    allowed = {job.parent, job.with_name(f"{JOB}.tmp")}
    if output.is_file() or {*output.glob("*"), *job.parent.glob("*")} - allowed:
        raise UserError(f"--output {output} is not empty; give a new directory")
    return {}


def _check_same(output: pathlib.Path, found: dict, job: dict) -> None:
    """Raises UserError where another job was begun or done."""
    other = [key for key in job if found and found.get(key) != job[key]]
    if not other:
        return
    if (output / token_shards.MANIFEST).is_file():
        raise UserError(f"--output {output} is not empty; give a new directory")
    key, was, now = other[0], found.get(other[0]), job[other[0]]
    differs = f"other {key}" if isinstance(was, dict) or isinstance(now, dict) else None
    raise UserError(
        f"--output {output} holds the beginning of another job, with "
        f"{differs or f'{key} {was} instead of {now}'}; go on with that, or give a new directory"
    )


@contextlib.contextmanager
def _begun(output: pathlib.Path, job: dict, codec):
    """Claims the directory for a job; what is finished stays when the work is cut short."""
    folder = output / shards.UNFINISHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / JOB).is_file():
            write_json(folder / JOB, job)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from None
    with open(folder / JOB) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another loopjax prepare is at work in {output}") from None
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
    """Removes what was being written when the work was cut short."""
    for path in folder.glob("*.tmp"):
        path.unlink()


def finished_parts(output: pathlib.Path) -> list[pathlib.Path]:
    """What the pieces that are done have left of the manifest."""
    folder = output / shards.UNFINISHED
    return [path for path in folder.glob("*.json") if path.name != JOB]


def how_far(output: pathlib.Path) -> tuple[int, int]:
    """How many pieces of an unfinished job are done, and of how many."""
    return len(finished_parts(output)), _found(output).get("pieces", 0)


def _run(task: shards.Task, wanted: list[shards.Piece], codec, processes: int) -> None:
    """Writes the pieces that are not there yet; those of the held-out files come first."""
    done = [piece for piece in wanted if _is_done(task.output, piece)]
    names = {piece.name for piece in done}
    if done:
        print(f"going on: {len(done)} of {len(wanted)} pieces are done", file=sys.stderr)
    shown = progress.Progress(wanted, done)
    try:
        for of_heldout in (True, False):
            todo = [p for p in wanted if p.is_heldout is of_heldout and p.name not in names]
            workers.run(task, todo, codec, processes, shown)
    except KeyboardInterrupt:
        raise UserError(
            f"stopped with {shown.finished} of {len(wanted)} pieces done: the same command goes on"
        ) from None
    finally:
        shown.say(last=True)


def _is_done(output: pathlib.Path, piece: shards.Piece) -> bool:
    """Whether a piece has its part of the manifest, and its shards are still there."""
    try:
        part = json.loads(shards.part_path(output, piece).read_text())
        files = [shard for split in part["splits"].values() for shard in split["shards"]]
        return all((output / s["file"]).stat().st_size == s["bytes"] for s in files)
    except OSError:
        return False


def _join(output: pathlib.Path, job: dict, wanted: list[shards.Piece]) -> dict:
    """The parts of the pieces, in their order, as the manifest."""
    parts = [json.loads(shards.part_path(output, piece).read_text()) for piece in wanted]
    splits = {}
    for name in token_shards.SPLITS:
        split = [part["splits"][name] for part in parts]
        counts = {k: sum(s[k] for s in split) for k in ("documents", "tokens", "text_bytes")}
        splits[name] = {**counts, "shards": [shard for s in split for shard in s["shards"]]}
    try:
        _check_not_empty(splits, job["heldout"])
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
    write_json(output / token_shards.MANIFEST, manifest)
    shutil.rmtree(output / shards.UNFINISHED)
    return manifest


def _check_not_empty(splits: dict, heldout) -> None:
    if not splits["train"]["documents"]:
        raise UserError("the inputs hold no document to train on")
    if heldout and not splits["heldout"]["documents"]:
        raise UserError(
            f"no document fell into the held-out split ({splits['train']['documents']} documents "
            f"at --heldout={heldout}): raise the fraction, or name files by --heldout-input"
        )
