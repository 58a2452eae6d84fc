"""Prompts with their completions, for supervised fine-tuning: only completions are targets.

The name of a source lists its parts, joined by "+": "chat" is the file DATA_DIR/chat.jsonl with one
object {"prompt", "completion"} per line; "chat:500" its first 500 training pairs;
"var_assign_code_1:64+var_assign_code_2:64" 64 items of each of two text tasks. Pairs are packed
into rows of T tokens; each pair is a segment that attends only to itself and starts at position 0.
A pair is tokenized as in evaluation; the end-of-document token is its last target.
"""

import bisect
import dataclasses
import hashlib
import json
import pathlib
import re

import numpy as np

from loopjax.data import registry, token_shards
from loopjax.data.source import Source
from loopjax.errors import UserError

HELDOUT = 0.1  # share of the pairs of a file, by hash, if there is no NAME.heldout.jsonl
HELDOUT_ITEMS = 256  # per text task
# The held-out items of a training run differ from those of the evaluation, whose seed is 0.
HELDOUT_SEED = 2**31


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt and its completion; `where` names the pair in messages."""

    prompt: str
    completion: str
    where: str

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(f"{self.prompt}\0{self.completion}".encode()).digest()


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
        self.vocab_size = codec.vocab_size
        digest = hashlib.sha256(b"".join(pair.digest for pair in pairs))
        self.fingerprint = {"pairs": digest.hexdigest(), "tokenizer": codec.name}
        if not pairs:
            raise UserError(
                f"config.mixture: {name!r} has no {split} pair"
                + ("; add some, or set config.eval_batches=0" if split == "heldout" else "")
            )
        self.segments = _tokenized(pairs, codec)
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


def _tokenized(pairs: list[Pair], codec) -> list[tuple[np.ndarray, int]]:
    """(tokens, number of prompt tokens) of each pair."""
    segments = []
    for pair in pairs:
        prompt = [int(i) for i in codec.encode(pair.prompt)] or [codec.bos_id]
        completion = codec.encode_batch([pair.completion])[0].tolist()
        tokens = np.array([*prompt, *completion, codec.eos_id], np.int32)
        segments.append((tokens, len(prompt)))
    return segments


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
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON: {error}") from None
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
        if (folder / f"{source}.jsonl").is_file():
            pairs += _of_file(folder, source, count, split)
        elif count and registry.has_items(source):
            pairs += _of_task(source, count, split, seed)
        else:
            return None
    return Pairs(name, pairs, split, seq_len, codec())


def _of_file(folder: pathlib.Path, name: str, count: int, split: str) -> list[Pair]:
    heldout_file = folder / f"{name}.heldout.jsonl"
    if heldout_file.is_file():
        pairs = read_file(heldout_file if split == "heldout" else folder / f"{name}.jsonl")
    else:
        heldout = split == "heldout"
        everything = read_file(folder / f"{name}.jsonl")
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
