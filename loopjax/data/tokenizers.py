"""Text to token ids: bytes, or any tokenizer file of the Hugging Face `tokenizers` library."""

import hashlib
import pathlib

from loopjax.errors import UserError

EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[EOS]")


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, and 256 for the end of a document."""

    name = "bytes"
    vocab_size = 257
    eos_id = 256

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        # Text from outside may hold lone surrogates, which UTF-8 cannot encode.
        return [list(text.encode("utf-8", errors="replace")) for text in texts]

    def decode(self, ids) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class FileTokenizer:
    """A `tokenizer.json`; its name is the hash of the file, so equal files are equal."""

    def __init__(self, path, eos: str | None = None):
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                "reading a tokenizer file needs the package tokenizers: pip install 'loopjax[data]'"
            ) from None
        path = pathlib.Path(path)
        if not path.is_file():
            raise UserError(f"tokenizer {str(path)!r} is not a file (or write: bytes)")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise UserError(f"tokenizer {str(path)!r} is not readable: {error}") from None
        self.name = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        self.vocab_size = self.tokenizer.get_vocab_size()
        names = (eos,) if eos else EOS_NAMES
        ids = [self.tokenizer.token_to_id(name) for name in names]
        self.eos_id = next((i for i in ids if i is not None), None)
        if self.eos_id is None:
            raise UserError(
                f"tokenizer {str(path)!r} has none of the tokens {', '.join(names)} to end a "
                "document with: name one by --eos"
            )

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def load(spec: str, eos: str | None = None):
    """The tokenizer "bytes" or a path to a tokenizer file."""
    return ByteTokenizer() if spec == "bytes" else FileTokenizer(spec, eos)
