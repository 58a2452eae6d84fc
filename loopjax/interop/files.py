"""Model directories: locating one, the files beside its weights, and writing a new one."""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import shutil
import tempfile

from loopjax import files
from loopjax.data import tokenizers
from loopjax.errors import UserError, first_line, require

# Files beside the weights and config.json; copied if they exist.
TOKENIZER = (tokenizers.FILE, tokenizers.CONFIG, "special_tokens_map.json", "chat_template.jinja")
GENERATION = "generation_config.json"
LARGEST_JSON = 32 * 10**6  # bytes of a config.json or an index
LARGEST_TOKENIZER = 256 * 10**6


def find(source: str, revision: str | None = None) -> pathlib.Path:
    """A directory, or the local copy of a repository of the Hugging Face hub."""
    if source and os.path.isdir(source):  # unlike `pathlib`, never an error
        return pathlib.Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or os.path.exists(source):
        shown = source if len(source) <= 80 else repr(source)[:80]
        raise UserError(f"{shown} is neither a directory nor an ID of the Hugging Face hub")
    hub = require("huggingface_hub", "hf", f"{source} is not a directory, and downloading it")
    patterns = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    try:
        copy = hub.snapshot_download(
            source, revision=revision, allow_patterns=[*patterns, *TOKENIZER, GENERATION]
        )
    except Exception as error:  # any error of the network or the hub
        raise UserError(
            f"{source} is not a directory, and the Hugging Face hub does not have it: "
            f"{first_line(error)}"
        ) from None
    return pathlib.Path(copy)


def read_json(path: pathlib.Path, most: int = LARGEST_JSON) -> dict:
    """The object in a JSON file; raises UserError if it is missing, damaged or not an object."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}")
    if path.stat().st_size > most:
        raise UserError(
            f"{path} has {path.stat().st_size / 1e6:,.0f} MB; it can have at most {most / 1e6:.0f} MB"
        )
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must contain a JSON object")
    return value


def check_tokenizer(directory: pathlib.Path) -> None:
    """Raises UserError if the tokenizer files of a directory are not such files."""
    path = directory / tokenizers.FILE
    if not isinstance(read_json(path, LARGEST_TOKENIZER).get("model"), dict):
        raise UserError(f"{path} is not a tokenizer: it has no model")
    if (directory / tokenizers.CONFIG).is_file():
        read_json(directory / tokenizers.CONFIG)


def sha256(path: pathlib.Path, progress=None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**24):
            digest.update(block)
            if progress:
                progress.update(len(block))
    return digest.hexdigest()


def copy(names, source: pathlib.Path, directory: pathlib.Path) -> None:
    """Copies the files that exist."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def token_ids(directory: pathlib.Path, names) -> dict[str, int | None]:
    """{"eos_token_id": 2, ...} from the tokenizer files in a directory; None for a missing one."""
    if not all((directory / name).is_file() for name in (tokenizers.CONFIG, tokenizers.FILE)):
        return dict.fromkeys(names)
    config = read_json(directory / tokenizers.CONFIG)
    path = directory / tokenizers.FILE
    try:
        added = read_json(path, LARGEST_TOKENIZER).get("added_tokens") or []
        ids = {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError):
        raise UserError(f"{path} has added_tokens without content and id") from None
    tokens = {name: config.get(name.removesuffix("_id")) for name in names}
    contents = {k: t.get("content") if isinstance(t, dict) else t for k, t in tokens.items()}
    return {
        name: ids.get(text) if isinstance(text, str) else None for name, text in contents.items()
    }


def new_path(directory) -> pathlib.Path:
    """The resolved path of a directory to make; UserError if it is not empty or cannot be one."""
    try:
        path = pathlib.Path(directory).resolve()
        taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    except OSError as error:  # too long, no permission
        raise UserError(
            f"{str(directory)!r:.80} cannot be a directory: {first_line(error)}"
        ) from None
    if taken:
        raise UserError(f"{path} is not empty; choose a new directory")
    return path


@contextlib.contextmanager
def new(directory: pathlib.Path):
    """A temporary directory to fill, renamed to `directory` at the end; removed if that fails."""
    try:
        if not directory.parent.exists():
            directory.parent.mkdir(parents=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-", dir=directory.parent
        ) as scratch:
            temporary = pathlib.Path(scratch) / "new"
            temporary.mkdir()
            yield temporary
            os.replace(temporary, directory)
    except UserError:
        raise
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if full in str(error):
            raise UserError(f"{directory} cannot be written: {full}") from error
        if isinstance(error, OSError):
            raise UserError(f"{directory} cannot be written: {error.strerror}") from None
        raise
