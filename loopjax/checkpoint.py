"""Checkpoints: Orbax underneath, one atomic directory per step.

    <directory>/<step>/params       canonical parameters
    <directory>/<step>/optimizer    step counter and optimizer state; missing in imported models
    <directory>/<step>/meta         JSON: plan, lineage, phases, data position, config, checksums

`meta` holds everything needed to read a checkpoint without its config. The checksum of a leaf is
the sum of its bits as unsigned integers: it does not depend on the mesh, and a restored leaf with
another sum is not the leaf that was saved. `meta` has a hash of its own.
"""

import contextlib
import functools
import hashlib
import json
import logging
import pathlib
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.experimental import multihost_utils

from loopjax.data import tokenizers
from loopjax.depth import DepthPlan
from loopjax.errors import UserError

FORMAT = 1
# Arrays are stored in pieces of this many bytes, so that a reader never holds a whole array.
PIECE = 2**26


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    names = ("loopjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {name: metadata.version(name) for name in names}


@jax.jit
def _bit_sums(tree):
    def bit_sum(leaf):
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width)
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return jax.tree.map(bit_sum, tree)


def checksums(tree) -> dict[str, int]:
    """Checksum of every leaf by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(_bit_sums(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(leaf) for path, leaf in leaves
    }


def _digest(meta: dict) -> str:
    """Hash of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def weights_digest(meta: dict) -> str:
    """Hash that identifies the parameters of a checkpoint, from their checksums."""
    return _digest({k: v for k, v in meta["checksums"].items() if k.startswith("params/")})


def _signed(step: int, meta: dict, sums: dict[str, int]) -> dict:
    """The content of the `meta` file: with format, step, checksums and its own hash."""
    meta = {"format": FORMAT, "step": step, **meta, "checksums": sums}
    return {**meta, "sha256": _digest(meta)}


def _items(state) -> dict:
    return {"params": state.params, "optimizer": {"step": state.step, "state": state.opt_state}}


class Checkpoints:
    """The checkpoints of a run.

    Args:
      directory: parent of the step directories; created unless `read_only`.
      keep_last: number of newest checkpoints to keep; 0 keeps all.
      keep_every: checkpoints at multiples of this step are kept permanently; 0 for none.
      read_only: for reading a run that may still be training; nothing is cleaned up.

    Attributes:
      saved_step: step of the newest checkpoint saved or restored here; None before that.
    """

    def __init__(
        self, directory, keep_last: int = 0, keep_every: int = 0, *, read_only: bool = False
    ):
        self.directory = pathlib.Path(directory).absolute()
        self.options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last or None,
            keep_period=keep_every or None,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
        )
        self.manager = self._open()
        self.saved_step: int | None = None

    def _open(self) -> ocp.CheckpointManager:
        # Orbax logs every save, and logs what it raises with the whole stack trace.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        return ocp.CheckpointManager(
            self.directory,
            options=self.options,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state, meta: dict) -> None:
        """Starts an asynchronous save, unless this step is saved; atomic, complete after `wait`."""
        if step == self.saved_step:
            return
        items = _items(state)
        meta = _signed(step, meta, checksums(items))
        pieces = ocp.SaveArgs(chunk_byte_size=PIECE)
        args = {
            name: ocp.args.StandardSave(item, save_args=jax.tree.map(lambda _: pieces, item))
            for name, item in items.items()
        }
        self.manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)))
        self.saved_step = step

    def meta(self, step: int) -> dict:
        """`meta` of a checkpoint, verified; raises ValueError when it is damaged."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self.manager.restore(step, args=args)["meta"]
        if meta.pop("sha256", None) != _digest(meta):
            raise ValueError("the content of meta is not what was saved")
        if meta.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {self.directory}/{step} has format {meta.get('format')}; this "
                f"version reads format {FORMAT}"
            )
        return meta

    def restore(self, step: int, abstract):
        """The state at a step, with the shapes and shardings of `abstract`, verified bit by bit."""
        abstract_items = _items(abstract)
        args = {name: ocp.args.StandardRestore(item) for name, item in abstract_items.items()}
        items = self.manager.restore(step, args=ocp.args.Composite(**args))
        items = {name: items[name] for name in abstract_items}
        verify(items, self.meta(step)["checksums"])
        optimizer = items["optimizer"]
        return type(abstract)(optimizer["step"], items["params"], optimizer["state"])

    def restore_latest(self, accept, report=print):
        """The newest readable checkpoint, as (state, meta); None if there are no checkpoints.

        `accept(meta)` returns the abstract state to restore into, or raises UserError when the
        checkpoint belongs to a different run. A damaged checkpoint is reported and moved to
        `<directory>.damaged`, and the one before it is used.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                meta = self.meta(step)
                state = self.restore(step, accept(meta))
                self.saved_step = step
                return state, meta
            except UserError:
                raise
            except Exception as error:
                report(f"checkpoint {self.directory}/{step} is damaged ({_reason(error)})")
                self._set_aside(step)
        if steps:
            raise UserError(f"none of the checkpoints in {self.directory} can be read: {steps}")
        return None

    def _set_aside(self, step: int) -> None:
        self.manager.close()
        if jax.process_index() == 0:
            aside = self.directory.with_name(self.directory.name + ".damaged")
            aside.mkdir(exist_ok=True)
            number = sum(1 for _ in aside.iterdir())
            (self.directory / str(step)).rename(aside / f"{step}.{number}")
        multihost_utils.sync_global_devices("checkpoint set aside")
        self.manager = self._open()

    def wait(self) -> None:
        """Blocks until the last save is complete; raises the error of a failed save."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


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
    tree: dict = {}
    for name, shape in shapes.items():
        *above, last = name.split("/")
        branch = functools.reduce(lambda node, key: node.setdefault(key, {}), above, tree)
        branch[last] = np.broadcast_to(np.float32(0), shape).view(_Held)
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), tree)
    save = ocp.args.StandardSave(tree, save_args=pieces)
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        checkpoints.manager.save(step, args=ocp.args.Composite(params=save))
        checkpoints.wait()
    path, sums = pathlib.Path(directory) / str(step), {}
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
        checkpointer.save(path / "meta", args=ocp.args.JsonSave(meta))
    return meta


def array(path: pathlib.Path, name: str, *, write: bool = False):
    """Future of the TensorStore array of a checkpoint, e.g. "params/layers/query"."""
    item, _, key = name.partition("/")
    files = {"driver": "file", "path": f"{path / item}/"}
    database = {"driver": "ocdbt", "base": files, "path": f"{key.replace('/', '.')}/"}
    return ts.open({"driver": "auto", "kvstore": database}, read=True, write=write)


def verify(items, saved: dict[str, int]) -> None:
    """Raises ValueError when the checksum of a leaf differs from the saved one."""
    for path, value in checksums(items).items():
        if saved.get(path) != value:
            raise ValueError(f"the content of {path} is not what was saved")


def _reason(error: Exception) -> str:
    line = (str(error).strip() or repr(error)).splitlines()[0]
    return line.split(" [tensorstore_spec=")[0][:200]


@contextlib.contextmanager
def reading(path):
    """Turns any error while reading a checkpoint into a UserError: the checkpoint is damaged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"checkpoint {path} is damaged ({_reason(error)})") from error


def read_meta(directory: pathlib.Path, step: int) -> dict:
    """`meta` of the checkpoint at `step`, verified; raises UserError when it is damaged."""
    checkpoints = Checkpoints(directory, read_only=True)
    with reading(directory / str(step)), contextlib.closing(checkpoints):
        return checkpoints.meta(step)


def locate(source: str, step: int | None = None) -> tuple[pathlib.Path, int]:
    """(directory of checkpoints, step) of "DIR" or "DIR@STEP"; DIR may be a run's directory.

    The newest step by default. Raises UserError when the checkpoint does not exist.
    """
    text, at, number = str(source).rpartition("@")
    if at and number.isdecimal():
        source, step = text, int(number)
    directory = pathlib.Path(source).absolute()
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory of checkpoints")
    steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())
    if not steps:
        raise UserError(f"{directory} has no checkpoint")
    if step is not None and step not in steps:
        raise UserError(
            f"{directory} has no checkpoint at step {step}; there are {', '.join(map(str, steps))}"
        )
    return directory, steps[-1] if step is None else step


def run_directory(directory: pathlib.Path) -> pathlib.Path:
    """The directory of the run with these checkpoints."""
    return directory.parent if directory.name == "checkpoints" else directory


def tokenizer_of(directory: pathlib.Path) -> str:
    """Path of the tokenizer file beside checkpoints; "" if the run used none (bytes, tasks)."""
    file = run_directory(directory) / tokenizers.FILE
    return str(file) if file.is_file() else ""


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
    return plan


def load_params(directory, step: int | None = None, shardings=None):
    """(params, meta) of a checkpoint, without its config, mesh and optimizer state.

    Args:
      directory: directory of checkpoints, or of a run; DIR@STEP too.
      step: step of the checkpoint; the newest by default.
      shardings: tree with the sharding of each parameter; one device by default.
    """
    directory, step = locate(directory, step)
    path = directory / str(step)
    checkpoints = Checkpoints(directory, read_only=True)
    with reading(path), contextlib.closing(checkpoints), ocp.StandardCheckpointer() as checkpointer:
        meta = checkpoints.meta(step)
        tree = checkpointer.metadata(path / "params").item_metadata.tree
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if shardings is None:
            shardings = jax.tree.map(lambda _: device, tree)
        abstract = jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
            tree,
            shardings,
        )
        params = checkpointer.restore(path / "params", abstract)
        prefix = "params/"
        saved = {k: v for k, v in meta["checksums"].items() if k.startswith(prefix)}
        verify({"params": params}, saved)
    return params, meta
