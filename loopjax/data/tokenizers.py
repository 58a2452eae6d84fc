"""Text to token ids: bytes, or any tokenizer file of the Hugging Face `tokenizers` library."""

import contextlib
import hashlib
import pathlib
import re
import sys

import numpy as np

from loopjax import files, paths
from loopjax.errors import UserError, first_line, require

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
MOST_IDS = 2**31  # ids are int32 in a batch
EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[EOS]")


def utf8(text: str) -> bytes:
    """The bytes of a text; lone surrogates, which a JSON file can hold, become "?"."""
    return text.encode("utf-8", errors="replace")


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, and 256 for the end of a document."""

    name = "bytes"
    vocab_size = 257
    eos = ""
    eos_id = bos_id = 256
    add_bos = None
    path = None

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(utf8(text), np.uint8) for text in texts]

    def encode_spans(self, text: str) -> tuple[list[int], list[int]]:
        lengths = [len(utf8(character)) for character in text]
        return self.encode(text), np.repeat(np.arange(len(text)) + 1, lengths).tolist()

    def decode(self, ids, *, special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def special_texts(self) -> list[str]:
        return []


def name_of(path: pathlib.Path) -> str:
    """The name of the tokenizer in a file."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


class FileTokenizer:
    """A `tokenizer.json`; its name is the hash of the file, so equal files have equal names.

    Of the file's own settings, truncation and padding are switched off, and of the tokens that its
    template adds only those before a text (BOS) are used: where a text ends, the caller decides.

    Args:
      eos: end-of-document token, if it is not the first of `EOS_NAMES` that the file has.
      bos: token that starts a text without context.
      add_bos: False to leave out also what the template adds before a text; such a model was
        trained without it.

    Attributes:
      vocab_size: the largest id + 1; ids may have gaps, so it is not the number of tokens.
      eos_id: id that ends a document.
      bos_id: id that starts a text without context: `bos` if the tokenizer has such a token, else
        the end of a previous document.
    """

    def __init__(self, path, eos=None, bos=None, add_bos: bool | None = None):
        tokenizers = require("tokenizers", "data", "reading a tokenizer file")
        self.path = paths.of(path)
        if not self.path.is_file():
            raise UserError(f"tokenizer {str(path)!r} must be 'bytes' or an existing file")
        with _as_user_error(f"tokenizer {str(path)!r} is not readable"):
            if paths.is_remote(self.path):
                self.tokenizer = tokenizers.Tokenizer.from_buffer(self.path.read_bytes())
            else:
                self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self.vocab_size = max(self.tokenizer.get_vocab().values(), default=-1) + 1
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
        if self.vocab_size > MOST_IDS:
            raise UserError(
                f"tokenizer {str(path)!r} has the token id {self.vocab_size - 1}; ids must be below "
                f"{MOST_IDS}"
            )
        self.limit = self.vocab_size
        self.name = name_of(self.path)
        names = (eos,) if eos else EOS_NAMES
        known = [name for name in names if self.tokenizer.token_to_id(name) is not None]
        if not known:
            raise UserError(
                f"tokenizer {str(path)!r} has none of the end-of-document tokens {', '.join(names)}; "
                "set --eos"
            )
        self.eos = known[0]
        self.eos_id = self.tokenizer.token_to_id(self.eos)
        self.add_bos = add_bos is not False
        self.before = self._before_a_text() if self.add_bos else []
        bos_id = self.tokenizer.token_to_id(bos) if bos and self.add_bos else None
        self.bos = None if bos_id is None else bos
        self.bos_id = self.eos_id if bos_id is None else bos_id

    def _before_a_text(self) -> list[int]:
        """The ids that the file's template puts before a text."""
        with self._in_a_sentence():
            probe = self.tokenizer.encode("a")
        if 0 in probe.special_tokens_mask:
            return probe.ids[: probe.special_tokens_mask.index(0)]
        # The tokenizer does not know the probe: all tokens are the template's.
        return probe.ids[:-1] if probe.ids[-1:] == [self.eos_id] else probe.ids

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the special tokens that the file itself adds before a text."""
        return self.before + self.encode_spans(text)[0]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of texts, without special tokens."""
        clean = [utf8(text).decode() for text in texts]
        with self._in_a_sentence():
            encodings = self.tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(self._checked(encoding.ids), np.uint32) for encoding in encodings]

    def encode_spans(self, text: str) -> tuple[list[int], list[int]]:
        """(ids of a text without special tokens, number of characters up to the end of each)."""
        with self._in_a_sentence():
            encoding = self.tokenizer.encode(utf8(text).decode(), add_special_tokens=False)
        return self._checked(encoding.ids), [stop for _, stop in encoding.offsets]

    def decode(self, ids, *, special: bool = True) -> str:
        """The text of ids, without special tokens if `special` is False."""
        with self._in_a_sentence():
            return self.tokenizer.decode(list(ids), skip_special_tokens=not special)

    def _checked(self, ids: list[int]) -> list[int]:
        if self.limit < self.vocab_size and max(ids, default=0) >= self.limit:
            raise UserError(
                f"a text has the token {self.tokenizer.id_to_token(max(ids))!r} (id {max(ids)}), but "
                f"the vocabulary of the model has only {self.limit} tokens"
            )
        return ids

    def _in_a_sentence(self):
        return _as_user_error(f"tokenizer {str(self.path)!r} fails on a text")

    def special_texts(self) -> list[str]:
        """The special tokens as texts, which `decode` leaves out if `special` is False."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]


@contextlib.contextmanager
def _as_user_error(what: str):
    """Turns any error of the library into a UserError, also a panic of its Rust code.

    Such a panic, for example of a regular expression that backtracks without end, is no Exception.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{what}: {first_line(error)}") from error
        raise


def encode_pair(codec, prompt: str, completion: str) -> tuple[list[int], int]:
    """(ids of a prompt and its completion, number of those that are the prompt).

    Both are one text, as in evaluation: a tokenizer may join characters across the seam, or mark
    the start of a text. A token that holds a part of the completion is no part of the prompt. There
    is at least one id of a prompt, `bos_id` if it would be empty.
    """
    before, ids = codec.encode(prompt), codec.encode(prompt + completion)
    if not before:
        return [codec.bos_id, *ids], 1
    n = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), None)
    if n == 0:  # the first token spans the seam
        return before + codec.encode_batch([completion])[0].tolist(), len(before)
    return ids, min(len(before), len(ids)) if n is None else n


def limit(codec, vocab_size: int) -> None:
    """Prepares a tokenizer for a model of `vocab_size` ids.

    Added tokens beyond the vocabulary are reported, and refused only in a text that contains one;
    raises UserError if other tokens exceed it.
    """
    if codec.vocab_size <= vocab_size:
        return
    own = codec.vocab_size
    if codec.path is not None:
        plain = codec.tokenizer.get_vocab(with_added_tokens=False).values()
        own = max(*plain, codec.eos_id, codec.bos_id, *codec.before) + 1
    if own > vocab_size:
        raise UserError(
            f"the tokenizer has {codec.vocab_size} tokens, but the checkpoint's vocabulary has only "
            f"{vocab_size}"
        )
    vocabulary = codec.tokenizer.get_vocab()
    outside = sorted(token for token, i in vocabulary.items() if i >= vocab_size)
    print(
        f"the tokenizer's added tokens {', '.join(outside)} exceed the checkpoint's vocabulary of "
        f"{vocab_size}: a text that contains one is refused",
        file=sys.stderr,
    )
    codec.limit = vocab_size


def load(spec: str, eos: str | None = None, add_bos: bool | None = None):
    """The tokenizer "bytes", a tokenizer.json, a directory with one, or one of the hub.

    The end-of-document token is `eos`, else the one in the tokenizer_config.json beside the file,
    else the first of the usual names that the tokenizer has. `add_bos` as in `FileTokenizer`.
    """
    if spec == ByteTokenizer.name:
        if eos:
            raise UserError(
                f"--eos={eos} does not go with the tokenizer bytes, where the id 256 ends a document"
            )
        return ByteTokenizer()
    if eos == "":
        raise UserError("--eos is empty; name a token of the tokenizer")
    path = paths.location(spec, "tokenizer")
    if path.is_dir():
        path = path / FILE
    elif not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and path.suffix != ".json":
        path = _from_hub(spec)
    config = path.with_name(CONFIG)
    return FileTokenizer(
        path, eos or _configured(config, "eos_token"), _configured(config, "bos_token"), add_bos
    )


def copy(source: pathlib.Path, directory: pathlib.Path, eos: str, bos: str | None = None) -> None:
    """Copies a tokenizer file, if it exists, and writes its eos and bos tokens beside it."""
    if (source / FILE).is_file():
        with files.replaced(directory / FILE) as temporary:
            temporary.write_bytes((source / FILE).read_bytes())
        files.write_json(
            directory / CONFIG, {"eos_token": eos} | ({"bos_token": bos} if bos else {})
        )


def _from_hub(repository: str) -> pathlib.Path:
    what = f"tokenizer {repository!r} is not a file, and downloading it"
    hub = require("huggingface_hub", "data", what)
    try:
        path = hub.hf_hub_download(repository, FILE)
        try:
            hub.hf_hub_download(repository, CONFIG)
        except hub.errors.LocalEntryNotFoundError:
            raise  # the hub could not be reached
        except hub.errors.EntryNotFoundError:
            pass  # the file is optional
    except Exception as error:  # any error of the network or the hub
        raise UserError(
            f"tokenizer {repository!r} is not a file, and the Hugging Face hub does not have it: "
            f"{first_line(error)}"
        ) from None
    return pathlib.Path(path)


def _configured(path: pathlib.Path, key: str) -> str | None:
    """A token of a tokenizer_config.json, a string or {"content": string}; None without one."""
    config = files.read_json(path)
    token = config.get(key) if isinstance(config, dict) else None
    content = token.get("content") if isinstance(token, dict) else token
    if config is not None and (not isinstance(config, dict) or not isinstance(content, str | None)):
        raise UserError(f"{path} must be an object whose {key!r} is a text, not {token!r}")
    return content
