"""Model directories: locating one, the files beside its weights, and writing a new one."""

import contextlib
import errno
import hashlib
import json
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


def find(source: str, revision: str | None = None) -> pathlib.Path:
    """A directory, or the local copy of a repository of the Hugging Face hub."""
    path = pathlib.Path(source)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.exists():
        raise UserError(f"{source} is neither a directory nor an ID of the Hugging Face hub")
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


def read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file; raises UserError if it is missing, damaged or not an object."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}")
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(
            f"{path} has {path.stat().st_size / 1e6:,.0f} MB; it can have at most "
            f"{LARGEST_JSON / 1e6:.0f} MB"
        )
    try:
        value = files.read_json(path)
    except RecursionError:
        raise UserError(f"{path} cannot be read: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must contain a JSON object")
    return value


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
    try:
        config = json.loads((directory / tokenizers.CONFIG).read_text())
        tokenizer = json.loads((directory / tokenizers.FILE).read_text())
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        return dict.fromkeys(names)
    tokens = {name: config.get(name.removesuffix("_id")) for name in names}
    contents = {k: t.get("content") if isinstance(t, dict) else t for k, t in tokens.items()}
    return {name: ids.get(content) for name, content in contents.items()}


def check_new(directory: pathlib.Path) -> None:
    """Raises UserError if a directory exists and is not empty."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} is not empty; choose a new directory")


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
