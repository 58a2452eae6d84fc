"""How many bytes of the source text each token stands for, for bits per byte.

Windows cannot simply be decoded and measured: a decoder drops the space at the start of a text, and a
window may start or end within a character, whose bytes would each be decoded as U+FFFD (3 bytes).
So every token of the vocabulary is measured once, and the counts of a text's tokens add up to its
bytes, whatever the windows. Where a tokenizer changes the text (lower case, unknown characters), the
bytes are those of the text that it keeps.
"""

import json
import re

import numpy as np

from loopjax.data import tokenizers
from loopjax.errors import require

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a piece of a tokenizer with byte fallback
PLAIN = "a"  # a text of one byte, beside which tokens are decoded


class TokenBytes:
    """The counts of a tokenizer.

    Attributes:
      table: int64 [largest id + 1], bytes of each token inside a text; 0 for the start and end of
        documents and for unknown characters.
      at_start: bytes that the tokenizer puts before a text: the space of SentencePiece.
      outside: ids of the start and end of documents.
      before: ids after which the tokenizer sees the start of a text: those, and often other special
        tokens, which split the text.
    """

    def __init__(self, codec):
        self.outside = [codec.eos_id, codec.bos_id]
        if isinstance(codec, tokenizers.ByteTokenizer):
            self.table, self.at_start = np.ones(codec.vocab_size, np.int64), 0
            splitting = []
        else:
            self.table, self.at_start, splitting = _measured(codec)
        self.table[self.outside] = 0
        self.before = [*self.outside, *splitting]

    def count(self, inputs: np.ndarray, targets: np.ndarray) -> int:
        """Bytes of the targets (-1 for none), each of which follows the input at its place."""
        scored = targets >= 0
        starts = scored & np.isin(inputs, self.before) & ~np.isin(targets, self.before)
        return int(self.table[targets[scored]].sum() - self.at_start * starts.sum())


def _measured(codec) -> tuple[np.ndarray, int, list[int]]:
    """(`table`, `at_start`, special tokens behind which it is put too) of a tokenizer file."""
    tokenizer = codec.tokenizer
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    table = np.zeros(max(pieces.values()) + 1, np.int64)
    plain = codec.encode_batch([PLAIN])[0].tolist()
    ids = list(pieces.values())
    # Between two texts, where a decoder treats no token as the first or the last one.
    decoded = tokenizer.decode_batch(
        [[*plain, i, *plain] for i in ids] + [[*plain, *plain]], skip_special_tokens=False
    )
    lengths = [len(text.encode()) for text in decoded]
    table[ids] = np.array(lengths[:-1]) - lengths[-1]
    settings = json.loads(tokenizer.to_str())
    kinds = _kinds(settings["decoder"])
    byte_level = require("tokenizers.pre_tokenizers", "data", "counting bytes").ByteLevel
    alphabet = set(byte_level.alphabet())
    for piece, i in pieces.items():
        if "ByteLevel" in kinds and alphabet.issuperset(piece):
            table[i] = len(piece)  # each character is a byte
        elif "ByteFallback" in kinds and BYTE.fullmatch(piece):
            table[i] = 1
    at_start = int(table[plain].sum()) - len(PLAIN)
    unknown = settings["model"].get("unk_token")
    if unknown in pieces:
        table[pieces[unknown]] = 0
    # Only where the space is put also before a space: else its tokens do not show whether it was.
    added = {token["content"]: token["id"] for token in settings["added_tokens"]}
    found = codec.encode_batch([f"{PLAIN}{content} {PLAIN}" for content in added])
    splitting = [
        i
        for (content, i), ids in zip(added.items(), found, strict=True)
        if i in ids
        and not BYTE.fullmatch(content)
        and table[ids].sum() - table[i] == len(f"{PLAIN} {PLAIN}") + 2 * at_start
    ]
    return table, at_start, splitting


def _kinds(decoder: dict | None) -> set[str]:
    """The types of a decoder and of those that it consists of."""
    if not decoder:
        return set()
    return {decoder["type"]}.union(*map(_kinds, decoder.get("decoders", [])))
