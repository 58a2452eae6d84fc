"""Checkpoints as other programs write them: with Orbax, and nothing of loopjax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def random(*shape, dtype="float32", spec=None):
    """Normal numbers; sharded over 2 x 4 devices, with `spec`."""
    values = np.random.default_rng(sum(shape)).standard_normal(shape)
    array = jnp.asarray(values, dtype)
    if spec is not None:
        mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
        array = jax.device_put(array, NamedSharding(mesh, spec))
    return array


def params():
    """Three scanned layers, keys with dots and slashes, bfloat16."""
    return {
        "embed": random(8, 4, spec=P("model", None)),
        "layers": {
            "attn.query": random(3, 4, 8, spec=P(None, "data", "model")),
            "mlp/up": random(3, 4, 4, dtype="bfloat16"),
            "scale": random(3, 4),
        },
    }


def manager(directory):
    """A CheckpointManager with a tree, JSON and an array, at steps 10 and 20."""
    state = {"params": params(), "opt_state": optax.adamw(1e-3).init(params())}
    options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda m: m["loss"])
    with ocp.CheckpointManager(directory, options=options, metadata={"project": "x"}) as saver:
        for step in (10, 20):
            saver.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave({**state, "step": step}),
                    metadata=ocp.args.JsonSave({"tokenizer": "spm", "vocab": 8}),
                    table=ocp.args.ArraySave(np.arange(6)),
                ),
                custom_metadata={"learning_rate": 0.5},
                metrics={"loss": 2.5},
            )


def standard(directory, tree=None):
    """Parameters alone, by StandardCheckpointer."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, params() if tree is None else tree, custom_metadata={"q": 1})


def pytree(directory, **how):
    """PyTreeCheckpointer: with `use_ocdbt` and `use_zarr3` as given, and every kind of leaf."""
    tree = {
        "params": params(),
        "step": 7,
        "name": "text",
        "list": [1.5, np.arange(3)],
        "nothing": None,
        "empty": {},
        "float8": jnp.array([1.0, 2.0], jnp.float8_e4m3fn),
        "int8": jnp.array([-1, 2], jnp.int8),
        "int4": jnp.array([-1, 2], jnp.int4),
        "bool": jnp.array([True, False]),
        "key": jax.random.key(3),
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**how)) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(tree))
    return tree


def train_state(directory, step=5):
    """A TrainState of Flax, as a manager's only item, under its default name."""
    state = TrainState.create(apply_fn=None, params=params(), tx=optax.adamw(1e-3))
    with ocp.CheckpointManager(directory) as saver:
        saver.save(step, args=ocp.args.StandardSave(state.replace(step=step)))


def nnx_state(directory):
    """The state of an NNX module."""
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    standard(directory, nnx.state(model))
    return model


def linen(directory):
    """Parameters of a linen module whose layers have a name each."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.Dense(4)(x)
            return x

    tree = Model().init(jax.random.key(0), jnp.ones(4))
    standard(directory, tree)
    return tree
