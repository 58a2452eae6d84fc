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
        self.fingerprint = {"task": name, "version": 1, "seed": seed, "tokenizer": codec.name}
        longest = max(sum(map(len, self._encoded(i, 0))) for i in range(20)) + 2
        if longest > seq_len:
            raise UserError(
                f"config.seq_len={seq_len} is too short for {name}: items take {longest} tokens"
            )

    def __len__(self) -> int:
        return LENGTH // MOST_PER_ROW

    def _encoded(self, index: int, nth: int) -> list[list[int]]:
        """Token ids of prompt and answer of the nth item of a row."""
        item = draw_item(self.make, self.split, self.seed, index * MOST_PER_ROW + nth)
        prompt = ("\n\n" if nth else "") + item.prompt
        return [ids.tolist() for ids in self.codec.encode_batch([prompt, item.completion])]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens = [self.codec.eos_id]
        scored = [False]
        for nth in range(MOST_PER_ROW):
            prompt, answer = self._encoded(index, nth)
            if len(tokens) + len(prompt) + len(answer) > self.seq_len + 1:
                break
            tokens += prompt + answer
            scored += [False] * len(prompt) + [True] * len(answer)
        padding = self.seq_len + 1 - len(tokens)
        tokens = np.array(tokens + [self.codec.eos_id] * padding, np.int32)
        scored = np.array(scored + [False] * padding)
        return {"inputs": tokens[:-1], "targets": np.where(scored, tokens, -1)[1:]}
