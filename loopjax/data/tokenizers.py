"""Text to token ids: bytes, or any tokenizer file of the Hugging Face `tokenizers` library."""

import hashlib
import json
import pathlib
import re
import shutil

import numpy as np

from loopjax.errors import UserError, first_line, require

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
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
    path = None

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(utf8(text), np.uint8) for text in texts]

    def decode(self, ids, *, special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def name_of(path: pathlib.Path) -> str:
    """The name of the tokenizer in a file."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


class FileTokenizer:
    """A `tokenizer.json`; its name is the hash of the file, so equal files have equal names.

    `eos_id` ends a document; `bos_id` starts a text without context (`bos` if the tokenizer has
    such a token, else the end of a previous document).
    """

    def __init__(self, path, eos: str | None = None, bos: str | None = None):
        tokenizers = require("tokenizers", "data", "reading a tokenizer file")
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise UserError(f"tokenizer {str(path)!r} must be 'bytes' or an existing file")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise UserError(f"tokenizer {str(path)!r} is not readable: {error}") from None
        self.name = name_of(self.path)
        self.vocab_size = self.tokenizer.get_vocab_size()
        names = (eos,) if eos else EOS_NAMES
        known = [name for name in names if self.tokenizer.token_to_id(name) is not None]
        if not known:
            raise UserError(
                f"tokenizer {str(path)!r} has none of the end-of-document tokens {', '.join(names)}; "
                "set --eos"
            )
        self.eos = known[0]
        self.eos_id = self.tokenizer.token_to_id(self.eos)
        bos_id = self.tokenizer.token_to_id(bos) if bos else None
        self.bos = None if bos_id is None else bos
        self.bos_id = self.eos_id if bos_id is None else bos_id

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the special tokens that the file itself adds before a text."""
        return self.tokenizer.encode(utf8(text).decode()).ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        clean = [utf8(text).decode() for text in texts]
        encodings = self.tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids, *, special: bool = True) -> str:
        """The text of ids, without special tokens if `special` is False."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not special)


def load(spec: str, eos: str | None = None):
    """The tokenizer "bytes", a tokenizer.json, a directory with one, or one of the hub.

    The end-of-document token is `eos`, else the one in the tokenizer_config.json beside the file,
    else the first of the usual names that the tokenizer has.
    """
    if spec == ByteTokenizer.name:
        return ByteTokenizer()
    path = pathlib.Path(spec)
    if path.is_dir():
        path = path / FILE
    elif not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and path.suffix != ".json":
        path = _from_hub(spec)
    config = path.with_name(CONFIG)
    return FileTokenizer(
        path, eos or _configured(config, "eos_token"), _configured(config, "bos_token")
    )


def copy(source: pathlib.Path, directory: pathlib.Path, eos: str, bos: str | None = None) -> None:
    """Copies a tokenizer file, if it exists, and writes its eos and bos tokens beside it."""
    if (source / FILE).is_file():
        shutil.copyfile(source / FILE, directory / FILE)
        special = {"eos_token": eos} | ({"bos_token": bos} if bos else {})
        (directory / CONFIG).write_text(json.dumps(special) + "\n")


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
    """A token of a tokenizer_config.json, a string or {"content": string}."""
    try:
        token = json.loads(path.read_text())[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return token.get("content") if isinstance(token, dict) else token
