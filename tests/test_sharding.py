"""Where parameters are, and what travels between devices for them."""

import functools
import math
import re
import types

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from loopjax import config as config_lib
from loopjax import growth, optim, sharded_weights, sharding, step
from loopjax.checkpoint import Checkpoints, load_params, restore
from loopjax.config import model_config
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.run import on_mesh, plan_run
from tests.test_checkpoint import about
from tests.tiny_config import get_config

PLAN = DepthPlan.parse("1-1x2-1")  # 3 layers, 4 executed


def spec_of(names, shape, rules=None, **sizes):
    mesh = config_lib.default().mesh
    mesh.update({"data": 1, **sizes})
    mesh.rules.update(rules or {})
    devices = math.prod(mesh[axis] for axis in sharding.MESH_AXES)
    abstract = sharding.abstract_mesh(mesh, devices)
    return tuple(sharding.parameter_spec(names, shape, abstract, sharding.axis_rules(mesh)))


@pytest.mark.parametrize("tensor", [1, 8])
@pytest.mark.parametrize("fsdp", [8, 16, 64, 256])
def test_no_device_has_less_than_a_lane_tile_of_a_row(fsdp, tensor):
    config = config_lib.default()
    config.depth = "2"
    config.mesh.update(data=1, fsdp=fsdp, tensor=tensor)
    mesh = sharding.abstract_mesh(config.mesh, fsdp * tensor)
    rules, cfg = sharding.axis_rules(config.mesh), model_config(config)
    optimizer, _ = optim.make_optimizer(config)
    state = step.abstract_state(cfg, 2, optimizer, mesh, rules)
    for path, leaf in jax.tree.leaves_with_path(state.params):
        part = leaf.sharding.shard_shape(leaf.shape)
        assert part[-1] >= 128, path
        if not path[-1].key.endswith("norm"):
            assert math.prod(part) * fsdp * tensor == leaf.size, path


def test_the_devices_of_the_batch_shard_the_rows_of_every_matrix():
    assert spec_of(("embed", "heads"), (64, 32), fsdp=4, tensor=2) == ("fsdp", "tensor")
    assert spec_of(("heads", "embed"), (32, 64), fsdp=4, tensor=2) == (("tensor", "fsdp"), None)
    stacked = spec_of(("layers", "mlp", "embed"), (3, 64, 32), fsdp=4, tensor=2)
    assert stacked == (None, ("tensor", "fsdp"), None)
    assert spec_of(("norm",), (32,), fsdp=4) == (None,)
    assert spec_of(("layers", "heads"), (3, 32), fsdp=4, tensor=2) == (None, "tensor")
    # The axes that stay come first whatever the order in the rule, else gathered parts were not one.
    both = spec_of(
        ("embed", "mlp"), (64, 32), {"embed": "fsdp,tensor", "mlp": ""}, fsdp=4, tensor=2
    )
    assert both == (("tensor", "fsdp"), None)


def test_rows_that_are_not_divisible_stay_whole():
    assert spec_of(("vocab", "embed"), (50, 64), fsdp=4, tensor=2) == ("tensor", "fsdp")


# --- what travels ------------------------------------------------------------------------------


def collectives(jaxpr, times=1):
    """(primitive, dtype, bytes of the whole array, executions) of each collective in a jaxpr."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("all_gather", "reduce_scatter", "psum", "all_to_all", "ppermute"):
            whole = eqn.outvars if name == "all_gather" else eqn.invars
            for aval in (var.aval for var in whole):
                yield name, str(aval.dtype), aval.size * aval.dtype.itemsize, times
        inside = times * eqn.params.get("length", 1) if name == "scan" else times
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from collectives(getattr(sub, "jaxpr", sub), inside)


def traffic(config, plan) -> dict:
    """Bytes of an update by (primitive, dtype), traced for devices that need not exist."""
    n = math.prod(config.mesh[axis] for axis in sharding.MESH_AXES)
    mesh, rules = sharding.abstract_mesh(config.mesh, n), sharding.axis_rules(config.mesh)
    optimizer, schedule = optim.make_optimizer(config)
    cfg = model_config(config)
    state = step.abstract_state(cfg, plan.n_unique, optimizer, mesh, rules)
    update = functools.partial(
        step.train_step, cfg=cfg, plan=plan, optimizer=optimizer, schedule=schedule,
        microbatches=config.microbatches,
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.seq_len), "int32")
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules):
        traced = jax.make_jaxpr(update)(state, {"inputs": tokens, "targets": tokens})
    total = {}
    for name, dtype, size, times in collectives(traced.jaxpr):
        total[name, dtype] = total.get((name, dtype), 0) + size * times
    return total


def matrix_sizes(cfg, plan) -> tuple[int, int]:
    """Numbers in the matrices of all executed layers, and in the embedding."""
    D, F, HC, KC = (
        cfg.d_model,
        cfg.d_ff,
        cfg.n_heads * cfg.head_size,
        cfg.n_kv_heads * cfg.head_size,
    )
    return plan.n_effective * (2 * D * HC + 2 * D * KC + 3 * D * F), cfg.vocab_size * D


def head_sums(tokens: int, d_model: int, tensor: int) -> dict:
    """Bytes of the head's sums over the devices that share a vocabulary, of a device's tokens.

    Of each token the sum of exponentials and the target's logit, and the gradient of its input.
    """
    if tensor == 1:
        return {}
    return {("psum", "float32"): 2 * 4 * tokens, ("psum", "bfloat16"): 2 * d_model * tokens}


@pytest.mark.parametrize(
    "mesh, remat",
    [
        ((1, 8, 1), "dots"),
        ((1, 16, 1), "none"),
        ((1, 64, 1), "dots"),
        ((1, 256, 1), "dots"),
        ((4, 16, 4), "dots"),
    ],
    ids=str,
)
def test_what_travels_is_what_zero_3_needs(mesh, remat):
    """Per use of a matrix: 2 bytes a number forward, 2 backward, 4 for the sum of its gradient."""
    config, plan = config_lib.default(), PLAN
    data, fsdp, tensor = mesh
    config.mesh.update(data=data, fsdp=fsdp, tensor=tensor)
    config.model.update(remat=remat)
    config.batch_size, config.seq_len = 256, 128
    found = traffic(config, plan)
    layers, table = (n // tensor for n in matrix_sizes(model_config(config), plan))
    # The table is used twice, as embedding and as head, each time gathered once.
    assert found.pop(("all_gather", "bfloat16")) == 2 * (2 * layers + 2 * table)
    assert found.pop(("reduce_scatter", "float32")) == 4 * (layers + 2 * table)
    # Over `data`, each device sums its own part only.
    parts = 4 * (layers + 2 * table) // fsdp if data > 1 else 0
    tokens = config.batch_size * config.seq_len // (data * fsdp)
    of_head = head_sums(tokens, config.model.d_model, tensor)
    loss = 4
    assert found.pop(("psum", "float32")) == parts + of_head.pop(("psum", "float32"), 0) + loss
    assert found == of_head


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64, 128, 256, 512])
def test_on_tpus_the_same_bytes_travel_in_groups_that_the_compiler_keeps(n):
    steps = sharded_weights.device_groups(n, "tpu")
    assert sharded_weights.device_groups(n, "gpu") == [None]
    sizes = [n if groups is None else len(groups[0]) for groups in steps]
    assert math.prod(sizes) == n and len(sizes) == (2 if n >= 8 else 1)
    for groups in filter(None, steps):
        assert sorted(device for group in groups for device in group) == list(range(n))
    # Of an array of n numbers, n - 1 are sent in all steps together.
    sent = [(size - 1) * n // math.prod(sizes[: i + 1]) for i, size in enumerate(sizes)]
    assert sum(sent) == n - 1


def test_a_gather_in_steps_is_the_array_and_a_scatter_in_steps_is_its_inverse(monkeypatch):
    """Eight devices as a grid of 4 x 2, as a TPU's compiler would get 64 as 8 x 8."""
    columns, rows = [[0, 2, 4, 6], [1, 3, 5, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]
    monkeypatch.setattr(sharded_weights, "device_groups", lambda n, platform: [columns, rows])
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    where = sharded_weights.Layout(PartitionSpec("fsdp"), PartitionSpec(None), (("fsdp",), ()))
    x = jax.random.normal(jax.random.key(0), (16, 3))

    def there_and_back(part):
        whole = where.gather(part)
        return whole[None], where.sum(whole)

    with jax.set_mesh(mesh):
        spec = PartitionSpec("fsdp")
        mapped = jax.shard_map(there_and_back, in_specs=spec, out_specs=spec, check_vma=False)
        copies, summed = jax.jit(mapped)(x)
    np.testing.assert_array_equal(copies, np.broadcast_to(x, (8, 16, 3)))
    np.testing.assert_array_equal(summed, 8 * x)


def test_each_microbatch_gathers_and_sums_once():
    config, plan = config_lib.default(), DepthPlan.parse("2")
    config.mesh.update(data=1, fsdp=8)
    config.batch_size, config.seq_len = 64, 128
    once = traffic(config, plan)
    config.microbatches = 4
    assert traffic(config, plan) == {key: 4 * size for key, size in once.items()}


def test_one_device_and_a_mesh_of_tensor_alone_have_no_collectives_of_weights():
    config, plan = config_lib.default(), DepthPlan.parse("2")
    config.batch_size, config.seq_len = 8, 128
    for tensor in (1, 8):
        config.mesh.update(data=1, fsdp=1, tensor=tensor)
        assert traffic(config, plan) == head_sums(8 * 128, config.model.d_model, tensor)


def test_the_compiled_program_gathers_and_scatters_and_sums_no_whole_matrix():
    config = get_config()
    config.mesh.update(data=1, fsdp=8)
    run = plan_run(config)
    with on_mesh(run):
        state = step.abstract_state(run.cfg, 3, run.optimizer, run.mesh, run.rules)
        tokens = jax.ShapeDtypeStruct((8, 9), "int32", sharding=run.batch_sharding)
        update = run.jitted_update(PLAN, state)
        text = update.lower(state, {"inputs": tokens, "targets": tokens}).compile().as_text()
    shapes = {
        kind: re.findall(rf"= \(?f32\[([0-9,]*)\]\S* {kind}(?:-start)?\(", text)
        for kind in ("all-gather", "reduce-scatter", "all-reduce")
    }
    # D 16, H*C 16, K*C 8, F 24 and V 40, in parts of an eighth of the rows
    assert {"16,16", "16,8", "16,24", "24,16", "40,16"} <= {*shapes["all-gather"]}
    assert {"2,16", "2,8", "2,24", "3,16", "5,16"} <= {*shapes["reduce-scatter"]}
    assert not {"16,8", "16,24", "24,16"} & {*shapes["all-reduce"]}


@pytest.mark.parametrize(
    "mesh", [{"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str
)
def test_gradients_in_bfloat16_are_summed_in_float32(mesh):
    """Each device's part is one product in float32, so the sum differs little from the exact one."""
    config = config_lib.default()
    config.mesh.update({"tensor": 1, **mesh})
    device_mesh, rules = sharding.make_mesh(config.mesh), sharding.axis_rules(config.mesh)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (8, 64, 16), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (16, 32))
    weights = jax.random.normal(keys[2], (8, 64, 32), jnp.bfloat16)

    def loss(kernel, x):
        y = sharded_weights.matmul(x, kernel, ("embed", "mlp"))
        return jnp.sum(y.astype(jnp.float32) * weights.astype(jnp.float32))

    def gradients(kernel, x):
        with jax.set_mesh(device_mesh), nn.logical_axis_rules(rules):
            return jax.jit(jax.grad(loss, argnums=(0, 1)))(kernel, x)

    d_kernel, dx = gradients(kernel, x)
    exact = np.einsum("bti,bto->io", *(np.asarray(a, np.float64) for a in (x, weights)))
    np.testing.assert_allclose(d_kernel, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    one, dx = (np.asarray(a, np.float32) for a in (jax.grad(loss, argnums=1)(kernel, x), dx))
    # Over `tensor`, two products in bfloat16 are added.
    np.testing.assert_allclose(dx, one, rtol=0, atol=2**-7 * np.abs(one).max())


@pytest.mark.parametrize("size", [(40, 16), (42, 16)], ids=["rows", "columns"])
def test_the_gradient_of_a_lookup_is_that_of_one_device(size):
    config = config_lib.default()
    config.mesh.update(data=2, fsdp=2, tensor=2)
    mesh, rules = sharding.make_mesh(config.mesh), sharding.axis_rules(config.mesh)
    table = jax.random.normal(jax.random.key(0), size)
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, size[0])
    weights = jax.random.normal(jax.random.key(2), (8, 12, 16))

    def loss(table):
        rows = sharded_weights.lookup(table, tokens, ("vocab", "embed"), jnp.float32)
        return jnp.sum(rows * weights)

    alone = jax.value_and_grad(loss)(table)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        sharded = jax.jit(jax.value_and_grad(loss))(table)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), alone, sharded
    )


# --- growth, checkpoints -----------------------------------------------------------------------


@pytest.fixture
def state(tiny_config):
    """(run, state) of three layers on 2 x 2 x 2 devices."""
    tiny_config.mesh.update(data=2, fsdp=2, tensor=2)
    run = plan_run(tiny_config)
    abstract = step.abstract_state(run.cfg, 3, run.optimizer, run.mesh, run.rules)
    return run, step.sharded_init(run.cfg, abstract, 3, run.optimizer, 0)


def assert_placed(state, abstract):
    pairs = zip(jax.tree.leaves_with_path(state), jax.tree.leaves(abstract), strict=True)
    for (path, leaf), expected in pairs:
        assert leaf.shape == expected.shape, path
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim), path


def test_growth_keeps_the_layout(state):
    run, state = state
    phase = types.SimpleNamespace(
        order=(0, 1, 1, 2), transform="zero_output", moments="reset", noise=0.0, start=1
    )
    grown = growth.grow(state, phase, run.optimizer, 0, run.cfg)
    assert_placed(grown, step.abstract_state(run.cfg, 4, run.optimizer, run.mesh, run.rules))
    down = grown.params["layers"]["down"].sharding
    assert down.spec == PartitionSpec(None, ("tensor", "fsdp"), None)


def test_a_checkpoint_with_another_layout_is_restored_in_this_one(state, tmp_path):
    """The layout of earlier versions: the width of every matrix over `fsdp`."""
    run, state = state

    def earlier(path, leaf):
        spec = leaf.sharding.spec
        if path[-1].key in ("output", "down", "embed"):
            spec = PartitionSpec(*(None,) * (leaf.ndim - 2), "tensor", "fsdp")
        return jax.device_put(leaf, NamedSharding(run.mesh, spec))

    params = jax.tree_util.tree_map_with_path(earlier, state.params)
    old = state.replace(params=params)
    assert old.params["embed"].sharding != state.params["embed"].sharding
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, old, about(1))
    checkpoints.wait()
    checkpoints.close()
    abstract = step.abstract_state(run.cfg, 3, run.optimizer, run.mesh, run.rules)
    read = restore(tmp_path / "checkpoints", 1, abstract)
    assert_placed(read, abstract)
    jax.tree.map(np.testing.assert_array_equal, read, state)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    params, _ = load_params(tmp_path / "checkpoints", 1, shardings)
    assert_placed(params, abstract.params)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


# --- slices ------------------------------------------------------------------------------------


class Chip:
    """What the placement of devices reads of a TPU."""

    platform, device_kind, process_index, core_on_chip = "tpu", "TPU v5 lite", 0, 0

    def __init__(self, index, slices):
        self.id, self.slice_index = index, index // (8 // slices)
        self.coords = ((index % (8 // slices)) // 2, index % 2, 0)

    def __repr__(self):
        return f"{self.slice_index}/{self.coords}"


def placed(monkeypatch, slices, **sizes):
    """The slice of each device of the mesh of 8 chips, by mesh axes."""
    monkeypatch.setattr(sharding, "Mesh", lambda devices, *_, **__: devices)
    config = config_lib.default()
    config.mesh.update(sizes)
    chips = [Chip(i, slices) for i in range(8)]
    return np.vectorize(lambda chip: chip.slice_index)(sharding.make_mesh(config.mesh, chips))


def test_one_axis_crosses_between_slices_and_the_others_stay_within(monkeypatch):
    slices = placed(monkeypatch, 2, data=4, fsdp=2)
    assert slices.tolist() == [[[0], [0]], [[0], [0]], [[1], [1]], [[1], [1]]]
    slices = placed(monkeypatch, 4, data=1, fsdp=8, slice_axis="fsdp")
    assert slices.ravel().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_mesh_that_does_not_fit_the_slices_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"config.mesh.data=1 is not divisible by the 2 slices"):
        placed(monkeypatch, 2, data=1, fsdp=8)
    config = config_lib.default()
    config.mesh.slice_axis = "tensor"
    with pytest.raises(UserError, match="slice_axis='tensor' must be one of data, fsdp"):
        sharding.axis_rules(config.mesh)


def test_a_mesh_that_leaves_a_device_without_a_part_is_refused(tiny_config):
    tiny_config.mesh.update(data=1, fsdp=32)
    mesh, rules = (
        sharding.abstract_mesh(tiny_config.mesh, 32),
        sharding.axis_rules(tiny_config.mesh),
    )
    with pytest.raises(UserError, match="model.d_model=16 is not divisible by 32"):
        sharding.check_divisible(model_config(tiny_config), 32, mesh, rules)
