"""Prompts with their completions, for supervised fine-tuning: only completions are targets.

A source is named by what it is made of, joined by "+": "chat" is the file DATA_DIR/chat.jsonl, an
object {"prompt", "completion"} a line; "chat:500" its first 500 training pairs;
"var_assign_code_1:64+var_assign_code_2:64" as many items of two reasoning primitives. Pairs are
packed into rows of T tokens, each a segment of its own, which sees itself alone and begins at
position 0. A pair is tokenised as evaluation does it; the end of a document is its last target.
"""

import bisect
import dataclasses
import hashlib
import json
import pathlib
import re

import numpy as np

from loopjax.data import synthetic, token_shards
from loopjax.errors import UserError

HELDOUT = 0.1  # of the pairs of a file, by hash, where there is no NAME.heldout.jsonl
HELDOUT_ITEMS = 256  # of a primitive
# The held-out items of a training run are not those of the evaluation, which draws by seed 0.
HELDOUT_SEED = 2**31


@dataclasses.dataclass(frozen=True)
class Pair:
    prompt: str
    completion: str
    where: str  # for messages

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(f"{self.prompt}\0{self.completion}".encode()).digest()


class Pairs:
    """Rows of packed pairs: "inputs", "targets", "segments" and "positions", int32 [T].

    Args:
      name: as above.
      pairs: what is packed; of the same name, split and seed always the same.
      split: "train" or "heldout".
      codec: the tokenizer.
    """

    finite, packed = True, True

    def __init__(self, name: str, pairs: list[Pair], split: str, seq_len: int, codec):
        self.seq_len, self.codec = seq_len, codec
        self.tokenizer, self.vocab_size = codec.name, codec.vocab_size
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
                    f"{pair.where} has {len(tokens)} tokens, config.seq_len={seq_len} has room "
                    f"for {seq_len + 1}"
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


def unpacked(example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A row of running text as one segment, to stand in a batch beside packed ones."""
    T = len(example["inputs"])
    return {"segments": np.zeros(T, np.int32), "positions": np.arange(T, dtype=np.int32), **example}


def _tokenized(pairs: list[Pair], codec) -> list[tuple[np.ndarray, int]]:
    """(tokens, how many of them are the prompt) of each pair."""
    out = []
    for pair in pairs:
        prompt = [int(i) for i in codec.encode(pair.prompt)] or [codec.bos_id]
        completion = codec.encode_batch([pair.completion])[0].tolist()
        tokens = np.array([*prompt, *completion, codec.eos_id], np.int32)
        out.append((tokens, len(prompt)))
    return out


def _packed(lengths: list[int], room: int) -> list[list[int]]:
    """Which segments share a row: the longest first, each where it leaves the least room."""
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
    """The pairs of a JSON-lines file; raises UserError that names the line that is none."""
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
            found = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON: {error}") from None
        for key in ("prompt", "completion"):
            if not isinstance(found, dict) or not isinstance(found.get(key), str):
                raise UserError(
                    f'{where} must be an object {{"prompt": text, "completion": text}}; it has no '
                    f"text {key!r}"
                )
        if not found["completion"]:
            raise UserError(f"{where} has an empty completion")
        pairs.append(Pair(found["prompt"], found["completion"], where))
    if not pairs:
        raise UserError(f"{path} holds no pair")
    return pairs


_PART = re.compile(r"([^:+]+)(?::([1-9][0-9]*))?")


def parts(name: str) -> list[tuple[str, int]] | None:
    """What a source of pairs is made of: (file or primitive, how many training pairs or 0 for all).

    None for a name that is no such source's.
    """
    found = [_PART.fullmatch(part) for part in name.split("+")]
    return [(part[1], int(part[2] or 0)) for part in found] if all(found) else None


def open_pairs(name: str, split: str, folder: pathlib.Path, seq_len: int, seed: int, codec):
    """The source of this name; None where a part of it is neither a file nor a primitive.

    `codec()` gives the tokenizer.
    """
    named = parts(name)
    if named is None:
        return None
    pairs: list[Pair] = []
    for source, count in named:
        if (folder / f"{source}.jsonl").is_file():
            pairs += _of_file(folder, source, count, split)
        elif count and synthetic.has_items(source):
            pairs += _of_primitive(source, count, split, seed)
        else:
            return None
    return Pairs(name, pairs, split, seq_len, codec())


def _of_file(folder: pathlib.Path, name: str, count: int, split: str) -> list[Pair]:
    apart = folder / f"{name}.heldout.jsonl"
    if apart.is_file():
        pairs = read_file(apart if split == "heldout" else folder / f"{name}.jsonl")
    else:
        heldout = split == "heldout"
        everything = read_file(folder / f"{name}.jsonl")
        pairs = [p for p in everything if token_shards.is_heldout(p.digest, HELDOUT) == heldout]
    if split == "heldout" or not count:
        return pairs
    if count > len(pairs):
        raise UserError(
            f"config.mixture: {name}:{count}, but there are {len(pairs)} training pairs"
        )
    return pairs[:count]


def _of_primitive(name: str, count: int, split: str, seed: int) -> list[Pair]:
    if split == "heldout":
        count, seed = HELDOUT_ITEMS, (seed + HELDOUT_SEED) % 2**32
    items = synthetic.items(name, split, seed, count)
    return [Pair(item.prompt, item.completion, f"an item of {name}") for item in items]
