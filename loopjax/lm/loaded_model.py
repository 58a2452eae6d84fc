"""A model loaded for evaluation: checkpoint, depth plan, tokenizer and mesh."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from loopjax import config as config_lib
from loopjax import exits, model, sharding, surgery
from loopjax.checkpoint import (
    load_params,
    locate,
    read_meta,
    run_directory,
    tokenizer_of,
)
from loopjax.checkpoint_files import chosen_plan, context_of, weights_digest
from loopjax.data import tokenizers
from loopjax.depth import DepthPlan, window
from loopjax.errors import UserError
from loopjax.passes import Passes

MOST_TOKENS = 2**24  # positions are exact in float32


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A loaded model, to be scored, decoded and evaluated.

    Attributes:
      params: canonical parameters on the mesh; matrices in the compute type, norms in float32.
      cfg, plan: architecture, and order in which its layers run.
      tokenizer: conversion of text to token ids and back.
      context: longest sequence, in tokens.
      mesh, rules: devices, and mesh axes of each logical axis.
      meta: metadata of the checkpoint.
      path: directory of the checkpoint.
      ema: whether the parameters are the moving average of those of the training.
      order: executed layers set by `with_order`, as indices into the plan that the model was opened
        with; None for all layers in turn.
      exit: rule by which tokens leave the loop early, set by `with_exit`; None for full depth.
    """

    params: Any
    cfg: model.ModelConfig
    plan: DepthPlan
    tokenizer: Any
    context: int
    mesh: Mesh
    rules: tuple
    meta: dict
    path: pathlib.Path
    ema: bool = False
    order: tuple[int, ...] | None = None
    exit: exits.Rule | None = None
    _cut: list = dataclasses.field(default_factory=list, repr=False)  # shared by all plans

    @property
    def layers(self) -> list:
        """Parameters of each unique layer as separate arrays, created on first use."""
        if not self._cut:
            cut = jax.jit(lambda stack, i: jax.tree.map(lambda leaf: leaf[i], stack))
            self._cut.extend(cut(self.params["layers"], i) for i in range(self.plan.n_unique))
        return self._cut

    @property
    def digest(self) -> str:
        """Hash that identifies the weights."""
        return weights_digest(self.meta, self.ema)

    @contextlib.contextmanager
    def on_mesh(self):
        """The context in which functions of the model are traced and executed."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
            yield

    @functools.cached_property
    def batch_parts(self) -> int:
        """Number of parts that a batch is sharded into; batch sizes must be multiples of it."""
        return math.prod(self.mesh.shape[axis] for axis in dict(self.rules)["batch"] or ())

    def put(self, batch: dict) -> dict:
        """Host arrays [B, ...] on the mesh, sharded along the batch."""
        rows = jax.sharding.PartitionSpec(dict(self.rules)["batch"])
        place = jax.sharding.NamedSharding(self.mesh, rows)
        return jax.device_put(batch, place)

    def with_plan(self, depth: str) -> "LanguageModel":
        """The same weights run by another plan; raises UserError when it does not fit them."""
        if self.order is not None:
            raise ValueError("the plan of a model with a layer order cannot be changed")
        return dataclasses.replace(self, plan=chosen_plan(self.meta, depth))

    def with_order(self, order: Sequence[int]) -> "LanguageModel":
        """The model with its executed layers in another order; layers may be left out or repeated.

        The layers are copied into an untied stack in the order of execution, so that orders of the
        same length share a compiled program; other parameters are shared. The order applies at all
        positions and in all decoding steps; a layer that runs twice has two caches.

        Args:
          order: indices of the executed layers 0..E-1 of the current plan, at least one.

        Raises UserError for a loop with options of `config.loop`.
        """
        if self.plan.windows:
            raise ValueError(f"plan {self.plan} has a window; its layers cannot be reordered")
        if self.plan.is_looped and (active := self.cfg.loop.of_repetitions()):
            raise UserError(
                f"{active[0]} of the checkpoint says what happens between repetitions, which another "
                "order of its layers does not have"
            )
        order = tuple(map(int, order))
        executed = self.plan.order
        if not order or not all(0 <= e < len(executed) for e in order):
            raise ValueError(f"order {order} must name executed layers 0..{len(executed) - 1}")
        before = self.order or range(len(executed))
        return dataclasses.replace(
            self, params=surgery.grow(self.params, [executed[e] for e in order]),
            plan=DepthPlan.of([(len(order), 1)]), order=tuple(before[e] for e in order), _cut=[],
        )  # fmt: skip

    def with_window(self, start: int, size: int, repeats: int, passes: Passes) -> "LanguageModel":
        """The model with `size` executed layers from `start` run `repeats` times, as `passes` say.

        Only the layers of a plan with loops are copied, to an untied stack (`with_order`).
        """
        E = self.plan.n_effective
        lm = self.with_order(range(E)) if self.plan.is_looped else self
        return dataclasses.replace(lm, plan=window(E, start, size, repeats, passes))

    def with_exit(self, rule: exits.Rule | None, most: int | None = None) -> "LanguageModel":
        """The model whose tokens leave the loop of its plan early; raises UserError without one loop.

        Scoring, decoding and `nll` use the rule; diagnostics do not.

        Args:
          most: repetitions of the loop at most (default: the plan's).
        """
        if rule and rule.name == "gate" and not self.cfg.exit_gate:
            raise UserError(
                f"--exit {rule} requires a model with an exit gate (config.losses.exit_gate)"
            )
        if most is None:
            plan = self.plan
            exits.loop_of(plan)
        else:
            plan = exits.repeated(self.plan, most)
        return dataclasses.replace(self, plan=plan, exit=rule)

    def describe(self) -> dict:
        """The description of the model that is saved with results."""
        return {
            "checkpoint": str(self.path),
            "step": self.meta["step"],
            **({"ema": True} if self.ema else {}),
            "depth": str(self.plan),
            "order": self.order,
            **({"exit": str(self.exit)} if self.exit else {}),
            "trained_depth": self.meta["plan"],
            "unique_layers": self.plan.n_unique,
            "effective_layers": self.plan.n_effective,
            "lineage": self.meta["lineage"],
            "model": dataclasses.asdict(self.cfg),
            "context": self.context,
            "tokenizer": self.tokenizer.name if self.tokenizer else None,
            "config": self.meta["config"],
            "source": self.meta.get("source"),
            "trained_with": self.meta["versions"],
            "devices": f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind}",
        }


def open_model(
    checkpoint,
    depth: str | None = None,
    *,
    dtype: str | None = None,
    context: int | None = None,
    tokenizer: str | None = None,
    mesh: str = "",
    devices=None,
    text: bool = True,
    ema: bool = False,
) -> LanguageModel:
    """Loads a checkpoint (DIR or DIR@STEP) for evaluation.

    Args:
      depth: depth plan (default: as in training).
      dtype: compute type, "float32" or "bfloat16" (default: as in training).
      context: longest sequence in tokens (default: as in training).
      tokenizer: argument of `tokenizers.load` (default: the tokenizer in the run directory).
      mesh: sizes of mesh axes, "fsdp=4,tensor=2"; "data" gets the remaining devices.
      devices: devices of the mesh (default: all).
      text: whether a tokenizer is required; if not, `tokenizer` of the result may be None.
      ema: whether to load the moving average of the parameters (config.ema) in their place.

    Raises UserError if a file is missing or damaged, or if an argument does not fit the checkpoint.
    """
    directory, step = locate(checkpoint)
    mesh_text, mesh = mesh, _mesh(mesh, devices)
    rules = sharding.axis_rules(config_lib.default().mesh)
    meta = read_meta(directory, step)
    trained = model.ModelConfig(**meta["model"])
    # Training may have named attention that these devices or lengths do not have.
    free = {"attention": "auto", "remat": "none"}
    cfg = dataclasses.replace(trained, dtype=dtype or trained.dtype, **free)
    plan = chosen_plan(meta, depth)
    codec = _tokenizer(tokenizer, directory, meta, needed=text)
    context = context_of(meta) if context is None else context
    if not 2 <= context <= MOST_TOKENS:
        raise UserError(f"--max-length {context} must lie within 2..{MOST_TOKENS}")
    try:
        sharding.check_divisible(cfg, mesh.size, mesh, rules)
    except UserError as error:
        problem = str(error).replace("config.model.", "the model's ")
        raise UserError(f"--mesh {mesh_text!r}: {problem}") from None
    init = functools.partial(model.init_params, cfg, plan.n_unique, jax.random.key(0))
    shardings = sharding.tree_sharding(jax.eval_shape(init), mesh, rules)
    params, _ = load_params(directory, step, shardings, ema=ema)
    return LanguageModel(
        params=_cast(params, cfg.dtype),
        cfg=cfg,
        plan=plan,
        tokenizer=codec,
        context=context,
        mesh=mesh,
        rules=rules,
        meta=meta,
        path=directory / str(step),
        ema=ema,
    )


def _cast(params, dtype):
    """Matrices, embeddings and biases in the compute type, to which the model casts them anyway."""
    if dtype == "float32":
        return params

    def cast(path, leaf):
        if str(path[-1].key).endswith("norm"):
            return leaf
        return jax.jit(lambda x: x.astype(dtype), donate_argnums=0)(leaf)

    return jax.tree_util.tree_map_with_path(cast, params)


def _mesh(text: str, devices) -> Mesh:
    sizes = {axis: 1 for axis in sharding.MESH_AXES} | {"data": -1}
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.removeprefix("-").isdecimal():
            raise UserError(f"--mesh {text!r} must be like data=2,fsdp=4,tensor=1")
        if text.count(f"{axis}=") > 1:
            raise UserError(f"--mesh {text!r} sets {axis} twice")
        sizes[axis] = int(size)
    devices = jax.devices() if devices is None else devices
    try:
        shape = sharding.mesh_shape(sizes, len(devices))
    except UserError as error:
        raise UserError(str(error).replace("config.mesh", "--mesh")) from None
    return Mesh(np.array(devices).reshape(shape), sharding.MESH_AXES)


def _tokenizer(spec: str | None, directory: pathlib.Path, meta: dict, *, needed: bool):
    """The given tokenizer, else the one beside the checkpoints, else bytes.

    If none applies: None, or UserError if it is `needed`.
    """
    spec = spec or tokenizer_of(directory)
    if spec:
        codec = tokenizers.load(spec, add_bos=meta.get("add_bos"))
    else:
        name = meta.get("tokenizer") or "an unknown tokenizer"
        if name != tokenizers.ByteTokenizer.name and not needed:
            return None
        if name != tokenizers.ByteTokenizer.name:
            raise UserError(
                f"{run_directory(directory)} has no {tokenizers.FILE}, and the checkpoint was "
                f"trained with {name}; pass its tokenizer with --tokenizer"
            )
        codec = tokenizers.ByteTokenizer()
    tokenizers.limit(codec, meta["model"]["vocab_size"])
    return codec
