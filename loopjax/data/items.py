"""Text tasks: questions with a closed set of answers, as evaluation items and as a data source."""

import dataclasses
import itertools

import numpy as np

from loopjax.data.instances import LENGTH, draw
from loopjax.data.source import Source
from loopjax.errors import UserError

MOST_PER_ROW = 1024  # more items than fit into a row of any length


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with a closed set of answers.

    Attributes:
      prompt: text of the question.
      answer: the correct option.
      options: all options, in the order of the prompt.
      space: text between prompt and answer.
    """

    prompt: str
    answer: str
    options: tuple[str, ...]
    space: str = " "

    @property
    def completion(self) -> str:
        return self.space + self.answer


def draw_item(make, split: str, seed: int, index: int) -> Item:
    """Item number `index` of a split; `make(rng)` returns a new item."""

    def with_content(rng):
        item = make(rng)
        return item.prompt.encode(), item

    return draw(with_content, split, seed, index)


def distinct(make, split: str, seed: int, count: int) -> list[Item]:
    """The first `count` different items of a split."""
    by_prompt: dict[str, Item] = {}
    for index in itertools.count():
        item = draw_item(make, split, seed, index)
        by_prompt.setdefault(item.prompt, item)
        if len(by_prompt) == count:
            return list(by_prompt.values())


class Items(Source):
    """Rows of as many items as fit into T tokens; only answers are targets."""

    finite = False

    def __init__(self, name: str, make, split: str, seq_len: int, seed: int, codec):
        self.make = make
        self.split = split
        self.seq_len = seq_len
        self.seed = seed
        self.codec = codec
        self.tokenizer = codec.name
        self.vocab_size = codec.vocab_size
        self.add_bos = None if codec.add_bos is None else False
        lengths, apart = zip(*map(self._measured, range(20)), strict=True)
        # Version 1 tokenized prompts and answers apart, which for most tokenizers is the same.
        self.fingerprint = {
            "task": name, "version": 2 if any(apart) else 1, "seed": seed, "tokenizer": codec.name,
        }  # fmt: skip
        if max(lengths) + 2 > seq_len:
            raise UserError(
                f"config.seq_len={seq_len} is too short for {name}: items take {max(lengths) + 2} "
                "tokens"
            )
        self.guess = -(-seq_len // min(lengths))  # items in a row, at first

    def __len__(self) -> int:
        return LENGTH // MOST_PER_ROW

    def _text(self, index: int, count: int) -> tuple[str, list[int]]:
        """The first items of a row as one text, and where the prompts and answers in it end."""
        text, ends = "", []
        for nth in range(count):
            item = draw_item(self.make, self.split, self.seed, index * MOST_PER_ROW + nth)
            text += ("\n\n" if nth else "") + item.prompt
            ends.append(len(text))
            text += item.completion
            ends.append(len(text))
        return text, ends

    def _measured(self, index: int) -> tuple[int, bool]:
        """Number of tokens of the first item of a row; whether its parts alone have other tokens."""
        text, (seam, _) = self._text(index, 1)
        together = self.codec.encode_spans(text)[0]
        apart = [part.tolist() for part in self.codec.encode_batch([text[:seam], text[seam:]])]
        return len(together), [*apart[0], *apart[1]] != together

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        # A row is one text, tokenized as in evaluation; whole items of it are kept.
        count = self.guess
        while True:
            text, ends = self._text(index, count)
            ids, stops = self.codec.encode_spans(text)
            if len(ids) > self.seq_len or count == MOST_PER_ROW:
                break
            count = min(2 * count, MOST_PER_ROW)
        places = np.searchsorted(stops, ends, side="right")  # tokens up to the end of each part
        whole = places[1::2][places[1::2] <= self.seq_len]
        n = int(whole[-1]) if len(whole) else 0
        tokens = np.full(self.seq_len + 1, self.codec.eos_id, np.int32)
        tokens[1 : n + 1] = ids[:n]
        scored = np.zeros(self.seq_len + 1, bool)
        for start, stop in zip(places[::2], whole, strict=False):
            scored[1 + start : 1 + stop] = True
        return {"inputs": tokens[:-1], "targets": np.where(scored, tokens, -1)[1:]}
