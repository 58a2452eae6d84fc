"""Prompts with their completions, for supervised fine-tuning: only completions are targets.

The name of a source lists its parts, joined by "+": "chat" is the file DATA_DIR/chat.jsonl with one
object {"prompt", "completion"} per line; "chat:500" its first 500 training pairs;
"var_assign_code_1:64+var_assign_code_2:64" 64 items of each of two text tasks. Pairs are packed
into rows of T tokens; each pair is a segment that attends only to itself and starts at position 0.
A pair is tokenized as in evaluation; the end-of-document token is its last target.

A name has letters, digits, "_" and "-" only, while files may be called chat.v2.jsonl.gz: any other
file is named by its whole name, with "_" for every other character (chat_v2_jsonl_gz).
"""

import bisect
import dataclasses
import hashlib
import pathlib
import re

import numpy as np

from loopjax import files
from loopjax.data import registry, token_shards, tokenizers
from loopjax.data.source import Source
from loopjax.errors import UserError

HELDOUT = 0.1  # share of the pairs of a file, by hash, if there is no NAME.heldout.jsonl
HELDOUT_ITEMS = 256  # per text task
# The held-out items of a training run differ from those of the evaluation, whose seed is 0.
HELDOUT_SEED = 2**31
_FILE = re.compile(r"(.*)(\.(?:jsonl|ndjson|json)(?:\.gz|\.zst)?)", re.IGNORECASE | re.DOTALL)
SUFFIXES = ".jsonl, .ndjson or .json (also .gz, .zst)"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt and its completion; `where` names the pair in messages."""

    prompt: str
    completion: str
    where: str

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(tokenizers.utf8(f"{self.prompt}\0{self.completion}")).digest()


class Pairs(Source):
    """Rows of packed pairs.

    Args:
      name: name of the source, for messages.
      pairs: pairs to pack.
      split: "train" or "heldout".
      codec: tokenizer.
    """

    packed = True

    def __init__(self, name: str, pairs: list[Pair], split: str, seq_len: int, codec):
        self.seq_len = seq_len
        self.codec = codec
        self.tokenizer = codec.name
        self.add_bos = codec.add_bos
        if not pairs:
            raise UserError(
                f"config.mixture: {name!r} has no {split} pair"
                + ("; add some, or set config.eval_batches=0" if split == "heldout" else "")
            )
        self.segments, apart = _tokenized(pairs, codec)
        # A tokenizer may have more tokens than the model, as long as they do not occur.
        self.vocab_size = max(int(tokens.max()) for tokens, _ in self.segments) + 1
        digest = hashlib.sha256(b"".join(pair.digest for pair in pairs))
        self.fingerprint = {"pairs": digest.hexdigest(), "tokenizer": codec.name}
        if apart:  # earlier versions trained on other ids
            self.fingerprint["version"] = 2
        for pair, (tokens, _) in zip(pairs, self.segments, strict=True):
            if len(tokens) > seq_len + 1:
                raise UserError(
                    f"{pair.where} has {len(tokens)} tokens; config.seq_len={seq_len} fits at most "
                    f"{seq_len + 1}"
                )
        self.rows = _packed([len(tokens) - 1 for tokens, _ in self.segments], seq_len)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        row = {key: np.zeros(self.seq_len, np.int32) for key in ("inputs", "positions")}
        row |= {key: np.full(self.seq_len, -1, np.int32) for key in ("targets", "segments")}
        start = 0
        for number, segment in enumerate(self.rows[i]):
            tokens, n_prompt = self.segments[segment]
            where = slice(start, start + len(tokens) - 1)
            row["inputs"][where] = tokens[:-1]
            row["targets"][where][n_prompt - 1 :] = tokens[n_prompt:]
            row["segments"][where] = number
            row["positions"][where] = np.arange(len(tokens) - 1)
            start = where.stop
        return row


def _tokenized(pairs: list[Pair], codec) -> tuple[list[tuple[np.ndarray, int]], bool]:
    """(tokens, number of prompt tokens) of each pair; whether the two alone have other tokens."""
    segments, differ = [], False
    for pair in pairs:
        ids, n_prompt = tokenizers.encode_pair(codec, pair.prompt, pair.completion)
        segments.append((np.array([*ids, codec.eos_id], np.int32), n_prompt))
        alone = codec.encode(pair.prompt) or [codec.bos_id]
        differ |= ids != [*alone, *codec.encode_batch([pair.completion])[0].tolist()]
    return segments, differ


def _packed(lengths: list[int], room: int) -> list[list[int]]:
    """The segments of each row by best fit: longest first, each where the least room remains."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), ascending
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(free, (lengths[i], -1))
        left, row = free.pop(at) if at < len(free) else (room, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        bisect.insort(free, (left - lengths[i], row))
    return rows


def read_file(path: pathlib.Path) -> list[Pair]:
    """The pairs of a JSON lines file; raises UserError that names the invalid line."""
    pairs = []
    for number, line in files.lines(path):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        row = files.parse_json(line, where)
        if isinstance(row, dict) and "messages" in row:
            raise UserError(
                f'{where} has "messages"; write each conversation as {{"prompt": text, '
                '"completion": text}, with the chat template of the model'
            )
        for key in ("prompt", "completion"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise UserError(
                    f'{where} must be an object {{"prompt": text, "completion": text}}; it has no '
                    f"text {key!r}"
                )
        if not row["completion"]:
            raise UserError(f"{where} has an empty completion")
        pairs.append(Pair(row["prompt"], row["completion"], where))
    if not pairs:
        raise UserError(f"{path} has no pairs")
    return pairs


def find_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file of pairs of this name in a folder; UserError if there are several."""
    path = folder / f"{name}.jsonl"
    if path.is_file():
        return path
    below = folder.iterdir() if folder.is_dir() else []
    found = sorted(p for p in below if whole_name(p) == name and p.is_file())
    if len(found) > 1:
        raise UserError(
            f"source {name!r} may be {' or '.join(map(str, found))}; rename one of the files"
        )
    return found[0] if found else None


def whole_name(path: pathlib.Path) -> str | None:
    """The name of a file of pairs that no other kind of source has; None for another file."""
    return re.sub(r"[^\w-]", "_", path.name) if _FILE.fullmatch(path.name) else None


def name_of(path: pathlib.Path) -> str:
    """The name that a mixture has for a file of pairs: NAME of NAME.jsonl where it means the file.

    A built-in source or a prepared folder may have that name; then it is the whole name.
    """
    if whole_name(path) is None:
        raise UserError(f"{path} must end in {SUFFIXES} to be read as prompts and completions")
    for name in (path.name.removesuffix(".jsonl"), whole_name(path)):
        prepared = (path.parent / name / token_shards.MANIFEST).is_file()
        plain = re.fullmatch(r"[\w-]+", name) and not registry.find(name) and not prepared
        if plain and find_file(path.parent, name) == path:
            return name
    raise UserError(f"{path} has the name of another source; rename the file")


_PART = re.compile(r"([^:+]+)(?::([1-9][0-9]*))?")


def parts(name: str) -> list[tuple[str, int]] | None:
    """The parts of a source of pairs: (file or text task, number of training pairs or 0 for all).

    None if the name is not a list of parts.
    """
    matches = [_PART.fullmatch(part) for part in name.split("+")]
    return [(part[1], int(part[2] or 0)) for part in matches] if all(matches) else None


def open_pairs(name: str, split: str, folder: pathlib.Path, seq_len: int, seed: int, codec):
    """The source of this name; None if a part is neither a file nor a text task with a number.

    `codec()` returns the tokenizer.
    """
    named = parts(name)
    if named is None:
        return None
    pairs: list[Pair] = []
    for source, count in named:
        if file := find_file(folder, source):
            pairs += _of_file(file, source, count, split)
        elif count and registry.has_items(source):
            pairs += _of_task(source, count, split, seed)
        else:
            return None
    return Pairs(name, pairs, split, seq_len, codec())


def _of_file(path: pathlib.Path, name: str, count: int, split: str) -> list[Pair]:
    stem, suffix = _FILE.fullmatch(path.name).groups()
    heldout_file = path.with_name(f"{stem}.heldout{suffix}")
    if heldout_file.is_file():
        pairs = read_file(heldout_file if split == "heldout" else path)
    else:
        heldout = split == "heldout"
        everything = read_file(path)
        pairs = [p for p in everything if token_shards.is_heldout(p.digest, HELDOUT) == heldout]
    if split == "heldout" or not count:
        return pairs
    if count > len(pairs):
        raise UserError(
            f"config.mixture: {name}:{count} is more than the {len(pairs)} training pairs of {name}"
        )
    return pairs[:count]


def _of_task(name: str, count: int, split: str, seed: int) -> list[Pair]:
    if split == "heldout":
        count = HELDOUT_ITEMS
        seed = (seed + HELDOUT_SEED) % 2**32
    items = registry.items(name, split, seed, count)
    return [Pair(item.prompt, item.completion, f"an item of {name}") for item in items]
