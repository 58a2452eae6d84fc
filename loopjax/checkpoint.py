"""Checkpoints: Orbax underneath, one atomic directory per step.

    <directory>/<step>/params       canonical parameters
    <directory>/<step>/optimizer    step counter and optimizer state; missing in imported models
    <directory>/<step>/ema          moving average of the parameters, only with config.ema
    <directory>/<step>/meta         JSON: plan, lineage, phases, data position, config, checksums

`meta` holds everything needed to read a checkpoint without its config, and has a hash of its own.
Orbax writes; reading needs only the files (`checkpoint_files.py`) and TensorStore
(`checkpoint_arrays.py`).
"""

import contextlib
import errno
import functools
import logging
import os
import pathlib
import sys
from importlib import metadata

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from loopjax import paths
from loopjax.checkpoint_arrays import agreed, checksums, name_of, read_arrays, verify
from loopjax.checkpoint_files import (
    FORMAT,
    Damaged,
    array,
    digest,
    item_of,
    locate,
    open_arrays,
    read_meta,
    reading,
    steps_in,
)
from loopjax.data import tokenizers
from loopjax.errors import UserError, first_line
from loopjax.files import write_json
from loopjax.host import COMMITTED, last_good
from loopjax.step_grid import KEEP_ALL, Kept

# Arrays are stored in pieces of this many bytes, so that a reader never holds a whole array.
PIECE = 2**26
# Orbax measures its time limits by a clock that may be set while it saves.
NEVER_S = 10 * 365 * 86_400


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    names = ("loopjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {name: metadata.version(name) for name in names}


def _signed(step: int, meta: dict, sums: dict[str, int]) -> dict:
    """The content of the `meta` file: with format, step, checksums and its own hash."""
    meta = {"format": FORMAT, "step": step, **meta, "checksums": sums}
    return {**meta, "sha256": digest(meta)}


def _items(state) -> dict:
    items = {"params": state.params, "optimizer": {"step": state.step, "state": state.opt_state}}
    return items if state.ema is None else items | {"ema": state.ema}


class Checkpoints:
    """The checkpoints of a run: saves them, looks at each once it is written, restores the newest.

    Beside the directory of checkpoints are `<directory>.json`, which names the newest checkpoint
    that was found whole after it was written, and `<directory>.damaged`, for checkpoints set aside.

    Args:
      directory: parent of the step directories; created.
      kept: which checkpoints to keep; all by default.

    Attributes:
      saved_step: step of the newest checkpoint saved or restored here; None before that.
    """

    def __init__(self, directory, kept: Kept = KEEP_ALL):
        self.directory = paths.of(directory).absolute()
        if paths.is_remote(self.directory):
            _check_bucket(self.directory)
        self.options = ocp.CheckpointManagerOptions(
            preservation_policy=kept,
            cleanup_tmp_directories=True,
            create=True,
            save_interval_steps=1,
            async_options=ocp.options.AsyncOptions(timeout_secs=NEVER_S),
        )
        _ignore_closed_loops()
        self.manager = self._open()
        self.saved_step: int | None = None
        self._unseen: int | None = None  # step of a save that was not looked at yet

    def _open(self) -> ocp.CheckpointManager:
        # Orbax logs every save, and logs what it raises with the whole stack trace.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        # Only asyncio reports a write that fails after another one; the first one is enough.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        return ocp.CheckpointManager(
            _for_orbax(self.directory),
            options=self.options,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "ema": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state, meta: dict) -> None:
        """Starts an asynchronous save, unless this step is saved; atomic, complete after `wait`.

        Raises UserError when this save or the one before it failed.
        """
        if step == self.saved_step:
            return
        self.wait()
        items = _items(state)
        meta = _signed(step, meta, checksums(items))
        pieces = ocp.SaveArgs(chunk_byte_size=PIECE)
        args = {
            name: ocp.args.StandardSave(item, save_args=jax.tree.map(lambda _: pieces, item))
            for name, item in items.items()
        }
        with self._saving(step):
            self.manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)))
        self.saved_step = self._unseen = step

    @contextlib.contextmanager
    def _saving(self, step: int):
        """Turns an error of a save into a sentence."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if os.strerror(errno.ENOSPC) in str(error):
                raise  # host.disk_errors_explained
            good = [s for s in steps_in(self.directory) if s != step]
            raise UserError(
                f"checkpoint {self.directory}/{step} could not be saved "
                f"({first_line(error)[:200]}); {last_good(good)}; rerun the same command to resume"
            ) from error

    def restore_latest(self, accept, report=print):
        """The newest checkpoint that is not damaged, as (state, meta); None without checkpoints.

        `accept(meta)` returns the abstract state to restore into, or raises UserError when the
        checkpoint belongs to a different run. A checkpoint that is proven to be damaged is reported
        and moved to `<directory>.damaged`, and the one before it is used. One that cannot be read
        for another reason is a UserError, and nothing is moved.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.directory / str(step)
            try:
                with agreed(path):
                    meta = read_meta(self.directory, step)
                    abstract = accept(meta)
                    items = read_arrays(path, meta, _items(abstract))
                with agreed(path):  # all have seen the damage before one sets the files aside
                    verify(path, items, meta["checksums"])
            except Damaged as error:
                report(str(error))
                self._set_aside(step)
                continue
            self.saved_step = step
            self._note(step)
            return _state(abstract, items), meta
        if steps:
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read: {steps}; they are in "
                f"{self._aside()} now; use another --workdir to start anew"
            )
        return None

    def _aside(self) -> pathlib.Path:
        return self.directory.with_name(self.directory.name + ".damaged")

    def _set_aside(self, step: int) -> None:
        self.manager.close()
        if jax.process_index() == 0:
            aside, path = self._aside(), self.directory / str(step)
            aside.mkdir(exist_ok=True)
            number = sum(1 for _ in aside.iterdir()) if aside.is_dir() else 0
            if paths.is_remote(path):
                # Its objects are moved one by one: what a kill leaves here is no checkpoint.
                (path / COMMITTED).unlink(missing_ok=True)
            path.rename(aside / f"{step}.{number}")
        multihost_utils.sync_global_devices("checkpoint set aside")
        self.manager = self._open()

    def wait(self) -> None:
        """Blocks until the last save is complete, and looks at it.

        Raises UserError when the save failed or cannot be read back.
        """
        if self._unseen is None:
            self.manager.wait_until_finished()
            return
        step, self._unseen = self._unseen, None
        with self._saving(step):
            self.manager.wait_until_finished()
        if jax.process_index() == 0:
            try:
                path = self.directory / str(step)
                meta = read_meta(self.directory, step)
                with reading(path):
                    open_arrays(path, meta)
            except UserError as error:
                raise UserError(f"{error}, directly after it was written") from error
            self._note(step)

    def _note(self, step: int) -> None:
        if jax.process_index() == 0:
            write_json(newest_note(self.directory), {"newest": step})

    def close(self) -> None:
        self.manager.close()


def newest_note(directory: pathlib.Path) -> pathlib.Path:
    """The file that says that a directory has had a whole checkpoint."""
    return directory.with_name(directory.name + ".json")


def restore(directory: pathlib.Path, step: int, abstract):
    """The state at a step, with the shapes and shardings of `abstract`, verified bit by bit.

    Raises Damaged when it is not what was saved, UserError when it cannot be read.
    """
    path, meta = directory / str(step), read_meta(directory, step)
    items = read_arrays(path, meta, _items(abstract))
    verify(path, items, meta["checksums"])
    return _state(abstract, items)


def _state(abstract, items):
    optimizer = items["optimizer"]
    return type(abstract)(optimizer["step"], items["params"], optimizer["state"], items.get("ema"))


class _Literal(type(epath.Path())):
    """A path whose own characters are no pattern: Orbax searches for files below it with `glob`,
    which would take runs/[1] for runs/1."""

    def glob(self, pattern: str):
        return (type(self)(path) for path in pathlib.Path(self).glob(pattern))


def _for_orbax(path: pathlib.Path) -> epath.Path:
    return epath.Path(path) if paths.is_remote(path) else _Literal(path)


def _check_bucket(directory: pathlib.Path) -> None:
    """Raises UserError where Orbax may not ask for the kind of the bucket: it does to delete."""
    from google.cloud import storage

    try:
        storage.Client().get_bucket(directory.bucket)
    except Exception as error:  # of credentials, of the project, of the request
        raise UserError(
            f"{directory}: its bucket cannot be looked at, which deleting old checkpoints needs "
            f"(permission storage.buckets.get): {first_line(error)}"
        ) from error


@functools.cache
def _ignore_closed_loops() -> None:
    """Silences what TensorStore's threads say, once in this process, when one of several writes fails.

    Orbax closes its event loop then, and raises; each of the other writes complains about the loop.
    """
    hook = sys.unraisablehook

    def unraisable(event):
        error = event.exc_value
        if not (isinstance(error, RuntimeError) and "Event loop is closed" in str(error)):
            hook(event)

    sys.unraisablehook = unraisable


class _Held(np.ndarray):
    """An array that Orbax writes without copying the whole of it first."""

    def __deepcopy__(self, memo):
        return self


def save_params(directory, step: int, shapes: dict, blocks, meta: dict) -> dict:
    """Writes a checkpoint with parameters only, a block at a time, and returns its meta.

    Not atomic: write to a temporary directory and rename it.

    Args:
      directory: new directory of checkpoints.
      shapes: {"layers/query": (U, D, H*C), ...}; all are float32.
      blocks: function of a name and its stored piece shape that yields (slices, array) pairs
        covering the array.
      meta: as for `Checkpoints.save`.
    """
    # The layout is Orbax's, and Orbax writes whole trees only: it writes zeros, which cost no
    # memory, and the blocks then replace them.
    zeros = {
        name: np.broadcast_to(np.float32(0), shape).view(_Held) for name, shape in shapes.items()
    }
    tree = _nested(zeros)
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), tree)
    save = ocp.args.StandardSave(tree, save_args=pieces)
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        checkpoints.manager.save(step, args=ocp.args.Composite(params=save))
        checkpoints.wait()
    path, sums = paths.of(directory) / str(step), {}
    for name in shapes:
        store, bits, writing = array(path, f"params/{name}", write=True).result(), 0, None
        for where, block in blocks(name, store.chunk_layout.read_chunk.shape):
            bits += int(np.sum(block.view(np.uint32), dtype=np.uint64))
            if writing:  # the previous block was written while this one was computed
                writing.result()
            writing = store[where].write(block)
        writing.result()
        sums[f"params/{name}"] = bits % 2**32
    meta = _signed(step, meta, sums)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(_for_orbax(path / "meta"), args=ocp.args.JsonSave(meta))
    return meta


def run_directory(directory: pathlib.Path) -> pathlib.Path:
    """The directory of the run with these checkpoints."""
    return directory.parent if directory.name == "checkpoints" else directory


def tokenizer_of(directory: pathlib.Path) -> str:
    """Path of the tokenizer file beside checkpoints; "" if the run used none (bytes, tasks)."""
    file = run_directory(directory) / tokenizers.FILE
    return str(file) if file.is_file() else ""


def load_params(directory, step: int | None = None, shardings=None, *, ema: bool = False):
    """(params, meta) of a checkpoint, without its config, mesh and optimizer state.

    Args:
      directory: directory of checkpoints, or of a run; DIR@STEP too.
      step: step of the checkpoint; the newest by default.
      shardings: tree with the sharding of each parameter; one device by default.
      ema: whether to load the moving average of the parameters in their place; UserError if the
        checkpoint has none.
    """
    directory, step = locate(directory, step)
    path, meta = directory / str(step), read_meta(directory, step)
    item = item_of(path, meta, ema)
    with reading(path):
        stores = open_arrays(path, meta, (item,))
    # The arrays that were saved, not those of a formula: a changed layer may have others.
    saved = _nested({name.removeprefix(f"{item}/"): store for name, store in stores.items()})
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, saved)
    _check_same_parameters(path, saved, shardings)
    abstract = jax.tree.map(
        lambda store, where: jax.ShapeDtypeStruct(
            store.shape, store.dtype.numpy_dtype, sharding=where
        ),
        saved,
        shardings,
    )
    items = read_arrays(path, meta, {item: abstract})
    verify(path, items, meta["checksums"])
    return items[item], meta


def _check_same_parameters(path: pathlib.Path, saved, model) -> None:
    """Raises UserError when a checkpoint has not the parameters of the model that is to be run."""
    theirs, ours = (
        {name_of(key) for key, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (saved, model)
    )
    for names, has in ((theirs - ours, "has"), (ours - theirs, "lacks")):
        if names:
            raise UserError(
                f"checkpoint {path} {has} {', '.join(sorted(names))}, unlike the model of this "
                "version of the code"
            )


def _nested(flat: dict) -> dict:
    """{"layers/query": x} -> {"layers": {"query": x}}."""
    tree: dict = {}
    for name, value in flat.items():
        *above, last = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), above, tree)[last] = value
    return tree
