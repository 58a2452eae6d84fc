"""The files of a checkpoint, read without Orbax: where they are, what they say, what is damaged.

A checkpoint is *damaged* only if that is proven: a checksum differs, a piece is missing, or a piece
cannot be parsed. An error that may pass (no memory, no free file descriptors, no permission, a disk
that does not answer) says nothing about the content; it is reported as such.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import itertools
import json
import pathlib
import re

import tensorstore as ts

from loopjax import config, loop_checks, paths
from loopjax.depth import DepthPlan
from loopjax.errors import UserError, first_line
from loopjax.host import is_complete, say
from loopjax.model_config import ModelConfig

FORMAT = 1
READERS = 16  # threads that look at the checkpoints of a directory


class Damaged(UserError):
    """The content of a checkpoint is proven not to be what was saved."""


def digest(value) -> str:
    """Hash of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# What TensorStore reports of content that is missing or cannot be decoded.
_BROKEN = ("NOT_FOUND", "DATA_LOSS", "OUT_OF_RANGE", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
_MISSING = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)


def _is_damage(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _MISSING
    text = str(error)
    system = re.search(r"\[OS error (\d+)", text)
    if system and int(system[1]) not in _MISSING:
        return False
    status = re.match(r"([A-Z_]{6,}): ", text)
    if status:
        return status[1] in _BROKEN
    return isinstance(error, ValueError | RecursionError)


def brief(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    return first_line(error).split(" [tensorstore_spec=")[0].split(" [source locations=")[0][:200]


@contextlib.contextmanager
def reading(path):
    """Turns an error while reading a checkpoint into one sentence.

    Raises Damaged if the error proves that the content is not what was saved, else UserError.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, MemoryError, RecursionError, RuntimeError) as error:
        # RuntimeErrors are those of a device without memory.
        if _is_damage(error) and paths.of(path).is_dir():
            raise Damaged(f"checkpoint {path} is damaged ({brief(error)})") from error
        raise UserError(
            f"checkpoint {path} cannot be read ({brief(error)}); nothing was changed"
        ) from error


def read_meta(directory: pathlib.Path, step: int) -> dict:
    """`meta` of the checkpoint at `step`, verified.

    Raises Damaged when it is not what was saved, UserError when it cannot be read.
    """
    path = directory / str(step)
    with reading(path):
        file = path / "meta" / "metadata"
        if not file.is_file() and path.is_dir():
            raise ValueError("meta/metadata is missing")
        meta = json.loads(file.read_bytes())
        if not isinstance(meta, dict) or meta.pop("sha256", None) != digest(meta):
            raise ValueError("the content of meta is not what was saved")
        if meta.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {path} has format {meta.get('format')!r}; this version reads format "
                f"{FORMAT}"
            )
    _check_fields(meta, path)
    return meta


def weights_digest(meta: dict, ema: bool = False) -> str:
    """Hash that identifies the parameters of a checkpoint, or their average, from the checksums."""
    item = "ema/" if ema else "params/"
    return digest({k: v for k, v in meta["checksums"].items() if k.startswith(item)})


def chosen_plan(meta: dict, depth: str | None = None) -> DepthPlan:
    """The plan to run a checkpoint by: its own, or another with as many unique layers."""
    trained = DepthPlan.parse(meta["plan"])
    if not depth:
        return trained
    try:
        plan = DepthPlan.parse(depth)
    except ValueError as error:
        raise UserError(f"--depth: {error}") from None
    if plan.n_unique != trained.n_unique:
        raise UserError(
            f"--depth={depth} has {plan.n_unique} unique layers, the checkpoint has "
            f"{trained.n_unique}"
        )
    loop_checks.check_depth(depth, plan, meta)
    return plan


def context_of(meta: dict) -> int:
    """Tokens of the longest context that the model of a checkpoint was trained with.

    That of a model that was fine-tuned on shorter sequences is still that of its training before.
    """
    return max(meta.get("context", 0), meta["config"]["seq_len"])


# Fields that are read from every checkpoint, with their types.
_FIELDS = {
    "step": int, "plan": str, "lineage": list, "phases": list, "data": dict, "model": dict,
    "config": dict, "checksums": dict, "versions": dict,
}  # fmt: skip


def _check_fields(meta: dict, path: pathlib.Path) -> None:
    """Raises UserError for a field of another type than is written, or with an impossible value.

    The content is what was saved, but by another program or by another version of this one.
    """

    def unusable(what: str) -> UserError:
        return UserError(f"checkpoint {path} cannot be used: {what}")

    for name, kind in _FIELDS.items():
        if type(meta.get(name)) is not kind:
            value = str(meta.get(name))[:40]
            raise unusable(f"its meta has {name}={value!r}, which must be of type {kind.__name__}")
    if type(meta.get("context", 0)) is not int:
        raise unusable(
            f"its meta has context={str(meta['context'])[:40]!r}, not a number of tokens"
        )
    if str(meta["step"]) != path.name:
        raise Damaged(f"checkpoint {path} is damaged (its meta is that of step {meta['step']})")
    if not all(type(sum_) is int for sum_ in meta["checksums"].values()):
        raise unusable("its meta has a checksum that is not a whole number")
    if not any(name.startswith("params/") for name in meta["checksums"]):
        raise unusable("its meta lists no parameters")
    known = {"seq_len": None, **meta["config"]}  # the one that every reader needs
    if wrong := _wrong_type(known, config.default().to_dict()):
        raise unusable(f"its config has no valid {wrong}")
    if not meta["lineage"] or not all(map(_is_event, meta["lineage"])):
        raise unusable("its lineage is not a list of events")
    try:
        ModelConfig(**meta["model"])
        DepthPlan.parse(meta["plan"])
    except (TypeError, ValueError) as error:
        raise unusable(
            f"its meta describes no model of this version: {first_line(error)}"
        ) from error


def _wrong_type(saved: dict, known: dict, prefix: str = "") -> str:
    """The first field of a saved config whose type is not that of the default; "" if there is none."""
    for key in known.keys() & saved.keys():
        value, like, name = saved[key], known[key], f"{prefix}{key}"
        kinds = (int, float) if isinstance(like, float) else type(like)
        if not isinstance(value, kinds) or isinstance(value, bool) is not isinstance(like, bool):
            return name
        if isinstance(like, dict) and (wrong := _wrong_type(value, like, f"{name}.")):
            return wrong
    return ""


def _is_event(event) -> bool:
    try:
        DepthPlan.parse(event["plan"])
        order = event["order"]
        known = order is None or all(type(layer) is int for layer in order)
        return known and type(event["step"]) is int and isinstance(event["operator"], str)
    except (TypeError, KeyError, ValueError):
        return False


def array(path: pathlib.Path, name: str, *, write: bool = False):
    """Future of the TensorStore array of a checkpoint, e.g. "params/layers/query"."""
    item, _, key = name.partition("/")
    base = kvstore(path / item)
    database = {"driver": "ocdbt", "base": base, "path": f"{key.replace('/', '.')}/"}
    return ts.open({"driver": "auto", "kvstore": database}, read=True, write=write)


def kvstore(directory: pathlib.Path) -> dict:
    """TensorStore's spec of the key-value store of what is below a directory."""
    if paths.is_remote(directory):
        from loopjax import remote  # imports gcsfs

        return remote.kvstore(directory)
    return {"driver": "file", "path": f"{directory}/"}


def open_arrays(path: pathlib.Path, meta: dict, items=("params", "optimizer", "ema")) -> dict:
    """{name: TensorStore array} of the checkpoint; only what describes them is read.

    Raises ValueError when one is missing, or when a parameter has another shape than in the model
    that `meta` describes. To be called within `reading`.
    """
    names = [name for name in meta["checksums"] if name.startswith(tuple(f"{i}/" for i in items))]
    futures = {name: array(path, name) for name in names}
    stores = {name: _opened(name, future) for name, future in futures.items()}
    shapes = ModelConfig(**meta["model"]).parameter_shapes(DepthPlan.parse(meta["plan"]).n_unique)
    for item, (name, shape) in itertools.product(("params", "ema"), shapes.items()):
        store = stores.get(f"{item}/{name}")
        if store is not None and store.shape != shape:
            raise ValueError(
                f"{item}/{name} has shape {store.shape}, the model of meta has {shape}"
            )
    return stores


def item_of(path: pathlib.Path, meta: dict, ema: bool) -> str:
    """The item of a checkpoint that holds its parameters, or their average; UserError without one."""
    item = "ema" if ema else "params"
    if not any(name.startswith(f"{item}/") for name in meta["checksums"]):
        raise UserError(
            f"checkpoint {path} has no moving average of the parameters (--ema): its run had "
            f"config.ema={meta['config'].get('ema', 0.0)}"
        )
    return item


def _opened(name: str, future):
    try:
        return future.result()
    except ValueError as error:
        if str(error).startswith("NOT_FOUND") or "Failed to detect format" in str(error):
            raise ValueError(f"the array {name} is missing") from error
        raise


def steps_in(directory: pathlib.Path) -> list[int]:
    """Steps with a directory that holds a checkpoint's `meta`, ascending."""
    return sorted(int(path.name) for path in _with_meta(_numbered(directory)))


def _with_meta(found: list[pathlib.Path]) -> list[pathlib.Path]:
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:  # a request takes long
        return [path for path, has in zip(found, pool.map(_has_meta, found), strict=True) if has]


def _numbered(directory: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in directory.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name)]


def _has_meta(path: pathlib.Path) -> bool:
    return (path / "meta" / "metadata").exists() and is_complete(path)


def locate(source: str, step: int | None = None) -> tuple[pathlib.Path, int]:
    """(directory of checkpoints, step) of "DIR" or "DIR@STEP".

    DIR is the directory of a run, of its checkpoints, or of one checkpoint. The newest step by
    default; what is no complete checkpoint is passed over with a line.

    Raises UserError when the checkpoint does not exist.
    """
    with _listing(source):
        return _located(source, step)


def _located(source: str, step: int | None) -> tuple[pathlib.Path, int]:
    text, at, number = str(source).rpartition("@")
    whole = paths.location(source, "checkpoint")
    if at and number.isdecimal() and not whole.is_dir():
        source, step = text, int(number)
    directory = paths.location(source, "checkpoint").absolute()
    if _has_meta(directory):
        if not re.fullmatch("0|[1-9][0-9]*", directory.name):
            raise UserError(f"{directory} is a checkpoint, but its name is not that of its step")
        if step not in (None, int(directory.name)):
            raise UserError(f"{directory} is the checkpoint of one step, not of step {step}")
        return directory.parent, int(directory.name)
    if _has_meta(directory.parent) and directory.is_dir():
        raise UserError(
            f"{directory} is a part of a checkpoint; the checkpoint is {directory.parent}"
        )
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory of checkpoints")
    numbered = _numbered(directory)
    complete = _with_meta(numbered)
    steps = sorted(int(path.name) for path in complete)
    others = [path for path in numbered if path not in complete]
    if not steps:
        raise UserError(f"{directory} has no checkpoint")
    if step is not None and step not in steps:
        incomplete = any(int(path.name) == step for path in others)
        raise UserError(
            f"{directory} has no {'complete ' if incomplete else ''}checkpoint at step {step}; "
            f"there are {', '.join(map(str, steps))}"
        )
    if step is None:
        step = steps[-1]
        for path in others:
            if int(path.name) > step:
                say(f"{path} is not a complete checkpoint; passed over")
    return directory, step


def is_ours(source: str) -> bool:
    """Whether "DIR" or "DIR@STEP" is of loopjax: whether there is a checkpoint with its `meta`."""
    with _listing(source):
        return _is_ours(source)


def _is_ours(source: str) -> bool:
    text, at, number = str(source).rpartition("@")
    if at and number.isdecimal() and not paths.location(source, "checkpoint").is_dir():
        source = text
    directory = paths.location(source, "checkpoint").absolute()
    for path in (directory, directory.parent):
        if _has_meta(path):
            return _is_our_meta(path / "meta" / "metadata")
    for path in (directory, directory / "checkpoints"):
        if path.is_dir():
            steps = steps_in(path)
            if steps:
                return _is_our_meta(path / str(steps[-1]) / "meta" / "metadata")
    return False


def _is_our_meta(file: pathlib.Path) -> bool:
    """Whether a JSON item named "meta" is that of loopjax; other programs may name theirs so."""
    try:
        meta = json.loads(file.read_bytes())
        return isinstance(meta, dict) and not {"sha256", "lineage"}.isdisjoint(meta)
    except (OSError, ValueError, RecursionError):
        return (file.parent.parent / "params").is_dir()


@contextlib.contextmanager
def _listing(source):
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read: {error.strerror}") from error
