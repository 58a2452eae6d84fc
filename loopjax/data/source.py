"""What the pipeline asks of a data source, with a default for everything that has one."""

import pathlib

import numpy as np

from loopjax.data import tokenizers


class Source:
    """A sequence of training examples: `len(source)` and `source[i]`, from any thread.

    An example is a dict of int32 arrays [T], T = config.seq_len:

      inputs     token ids
      targets    the token to predict at each position, -1 where nothing is predicted and scored
      segments   packed sources only: number of the text at each position, -1 for padding
      positions  packed sources only: position within the text

    A subclass defines `__len__`, `__getitem__` and `fingerprint`; the example of an index and the
    fingerprint must not depend on anything but the arguments of the source.

    Attributes:
      fingerprint: JSON object that identifies the content; a resumed run must find the same.
      tokenizer: name of the tokenizer; the sources of one mixture must agree.
      vocab_size: number of token ids, at most config.model.vocab_size.
      finite: whether the source is shuffled and repeated in epochs; otherwise it is read once, in
        order, and `len` only has to be large.
      packed: whether examples have "segments" and "positions".
      one_answer: whether a row has one answer of several tokens, correct only as a whole (the
        metric "exact").
      codec: the tokenizer itself, where the source tokenizes text while it is read.
      add_bos: whether texts start with what the tokenizer's template puts before them (BOS), as
        evaluation then does too; None for bytes and for sources without text.
      name, limit: set by `pipeline.open_sources`: the name in the mixture, and the vocabulary size
        of the model, which no id may reach.
    """

    fingerprint: dict
    tokenizer: str = tokenizers.ByteTokenizer.name
    vocab_size: int = tokenizers.ByteTokenizer.vocab_size
    finite: bool = True
    packed: bool = False
    one_answer: bool = False
    codec = None
    add_bos: bool | None = None
    name: str = ""
    limit: int = tokenizers.MOST_IDS

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def copy_tokenizer(self, directory: pathlib.Path) -> bool:
        """Copies the tokenizer files to a run's directory; False if the source has none."""
        if self.codec is None or self.codec.path is None:
            return False
        tokenizers.copy(self.codec.path.parent, directory, self.codec.eos, self.codec.bos)
        return True


def as_packed(example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An example with one segment added, so that it fits into a batch with packed examples."""
    T = len(example["inputs"])
    return {"segments": np.zeros(T, np.int32), "positions": np.arange(T, dtype=np.int32), **example}
