"""The summary of a compiled program says what is known of programs whose content is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from loopjax.aot import collectives, hlo
from loopjax.aot.program import Program

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
OPTIMIZED = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}


def mesh_of(shape=MESH):
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * 3)


def compiled(body, shape, spec_in, spec_out, dtype=jnp.float32):
    """The program of a function of one array inside `shard_map`, compiled for 8 devices."""
    mesh = mesh_of()
    mapped = jax.shard_map(body, mesh=mesh, in_specs=spec_in, out_specs=spec_out, check_vma=False)
    array = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec_in))
    text = jax.jit(mapped).lower(array).compile(compiler_options=OPTIMIZED).as_text()
    return Program.of(text, MESH, "cpu")


def only(program):
    (row,) = program.traffic()
    return {key: row[key] for key in ("kind", "axes", "devices", "count", "bytes", "sent")}


P = PartitionSpec


@pytest.mark.parametrize(
    ("body", "out", "kind", "axes", "n", "size", "sent"),
    [
        # The operand of a device is [4, 64] in float32: 1,024 bytes.
        (lambda x: jax.lax.psum(x, "fsdp"), P("data"), "all-reduce", ["fsdp"], 2, 1024, 1024),
        (lambda x: jax.lax.psum(x, ("data", "tensor")), P(), "all-reduce", ["data", "tensor"], 4,
         1024, 1536),
        (lambda x: jax.lax.all_gather(x, "tensor", tiled=True), P("data"), "all-gather",
         ["tensor"], 2, 2048, 1024),
        (lambda x: jax.lax.psum_scatter(x, ("fsdp", "tensor"), tiled=True),
         P(("data", "fsdp", "tensor")), "reduce-scatter", ["fsdp", "tensor"], 4, 1024, 768),
        (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True), P("data"), "all-to-all",
         ["fsdp"], 2, 1024, 512),
        (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), P("data"), "collective-permute",
         ["data"], 2, 1024, 1024),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_collective_is_listed_with_its_axes_and_bytes(body, out, kind, axes, n, size, sent):
    expected = {"kind": kind, "axes": axes, "devices": n, "count": 1, "bytes": size, "sent": sent}
    assert only(compiled(body, (8, 64), P("data"), out)) == expected


def test_a_collective_in_nested_loops_counts_as_often_as_it_runs():
    def body(x):
        def inner(carry, _):
            return jnp.sin(jax.lax.psum(carry, "fsdp")), None

        def outer(carry, _):
            return jax.lax.scan(inner, carry, None, length=5)[0], None

        return jax.lax.scan(outer, x, None, length=3)[0]

    program = compiled(body, (8, 64), P("data"), P("data"))
    row = only(program)
    assert (row["count"], row["bytes"], row["axes"]) == (15, 15 * 1024, ["fsdp"])
    assert program.unknown_loops == []


def test_gradients_of_a_replicated_weight_are_reduced_along_the_batch():
    mesh = mesh_of()

    def gradient(w, x):
        return jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)

    w = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "tensor")))
    x = jax.ShapeDtypeStruct(
        (16, 64), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp")))
    )
    jitted = jax.jit(gradient, out_shardings=w.sharding)
    program = Program.of(jitted.lower(w, x).compile().as_text(), MESH, "cpu")
    assert {(row["kind"], *row["axes"], row["bytes"]) for row in program.traffic()} == {
        ("all-reduce", "data", "fsdp", 64 * 16 * 4)
    }


def test_the_three_forms_of_groups_are_one():
    """Groups of 2 x 2 x 2 devices that differ in the first and the last axis."""
    mesh = {"a": 2, "b": 2, "c": 2}
    texts = [
        "replica_groups={{0,1,4,5},{2,3,6,7}}, x=1",
        "replica_groups=[2,4]<=[2,2,2]T(1,0,2), x=1",
        "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}, x=1",
        "replica_groups=mesh[a=4,c=2] {a:(1)2,c}, x=1",
        "replica_groups=mesh['u'=2,'v'=2,'w'=2], device_ids=([2,2,2]T(1,0,2)) {'v','w'}, x=1",
        "replica_groups=mesh['u'=2,'v'=4], device_ids=(0,1,4,5,2,3,6,7) {'v'}, x=1",
    ]
    for text in texts:
        instruction = hlo.Instruction("r", "f32[]", "all-reduce", (), text)
        groups = collectives._groups(instruction, mesh)
        assert sorted(map(sorted, groups)) == [[0, 1, 4, 5], [2, 3, 6, 7]], text
        assert collectives._axes(groups, mesh) == ("a", "c")


# A loop of which the compiler does not say how often it runs, as a TPU program has it: an
# all-gather that is split over three fusions, and a reduce-scatter that is a fusion.
TPU = """HloModule example, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%started (p: bf16[1,128]) -> (bf16[1,128], bf16[4,128]) {
  %p = bf16[1,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %gather.1 = bf16[4,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['x'=4] {'x'}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %start = (bf16[1,128]{1,0:S(1)}, bf16[4,128]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (q: bf16[1,128]) -> bf16[4,128] {
  %q = bf16[1,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %gather.2 = bf16[4,128]{1,0:T(8,128)(2,1)} all-gather(%q), channel_id=7, replica_groups=mesh['x'=4] {'x'}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%ended (r: bf16[1,128]) -> bf16[4,128] {
  %r = bf16[1,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %gather.3 = bf16[4,128]{1,0:T(8,128)(2,1)} all-gather(%r), channel_id=7, replica_groups=mesh['x'=4] {'x'}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %end = bf16[4,128]{1,0} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (s: f32[4,128]) -> f32[1,128] {
  %s = f32[4,128]{1,0} parameter(0)
  %reduced = f32[4,128]{1,0} all-reduce(%s), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  %zero = u32[] constant(0)
  ROOT %cut = f32[1,128]{1,0} dynamic-slice(%reduced, %id, %zero), dynamic_slice_sizes={1,128}
}

%body (state: (s32[], bf16[1,128], f32[4,128])) -> (s32[], bf16[1,128], f32[4,128]) {
  %state = (s32[]{:T(128)}, bf16[1,128]{1,0}, /*index=2*/f32[4,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %w = bf16[1,128]{1,0} get-tuple-element(%state), index=1
  %g = f32[4,128]{1,0} get-tuple-element(%state), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %f.1 = (bf16[1,128]{1,0}, bf16[4,128]{1,0}) fusion(%w), kind=kCustom, calls=%started
  %f.2 = bf16[4,128]{1,0} fusion(%w), kind=kOutput, calls=%async_collective_fusion.1
  %f.3 = bf16[4,128]{1,0} fusion(%w), kind=kCustom, calls=%ended
  %f.4 = f32[1,128]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %kernel = f32[4,128]{1,0} custom-call(%g), custom_call_target="tpu_custom_call"
  ROOT %new = (s32[]{:T(128)}, bf16[1,128]{1,0}, /*index=2*/f32[4,128]{1,0}) tuple(%next, %w, %kernel)
}

%limit (state.1: (s32[], bf16[1,128], f32[4,128])) -> pred[] {
  %state.1 = (s32[], bf16[1,128]{1,0}, f32[4,128]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %six = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(%i.1, %six), direction=LT
}

ENTRY %main (w.0: bf16[1,128], g.0: f32[4,128]) -> (s32[], bf16[1,128], f32[4,128]) {
  %w.0 = bf16[1,128]{1,0} parameter(0)
  %g.0 = f32[4,128]{1,0} parameter(1)
  %first = s32[] constant(START)
  %counter = s32[]{:T(128)} copy(%first)
  %begin = (s32[], bf16[1,128]{1,0}, f32[4,128]{1,0}) tuple(%counter, %w.0, %g.0)
  ROOT %loop = (s32[], bf16[1,128]{1,0}, f32[4,128]{1,0}) while(%begin), condition=%limit, body=%body
}
"""


@pytest.mark.parametrize(("start", "trips"), [("0", 6), ("2", 4)])
def test_what_a_tpu_program_splits_over_fusions_counts_once(start, trips):
    program = Program.of(TPU.replace("START", start), {"fsdp": 4}, "tpu")
    rows = {row["kind"]: row for row in program.traffic()}
    assert set(rows) == {"all-gather", "reduce-scatter"}
    assert rows["all-gather"]["count"] == rows["reduce-scatter"]["count"] == trips
    assert rows["all-gather"]["bytes"] == trips * 4 * 128 * 2
    assert rows["all-gather"]["asynchronous"] == 1.0
    assert rows["reduce-scatter"]["bytes"] == trips * 4 * 128 * 4
    assert rows["reduce-scatter"]["asynchronous"] == 0.0
    assert program.kernels == {"tpu_custom_call": trips}


def test_transfers_between_slices_are_the_collectives_that_they_are_part_of():
    """2 slices of 4: each device reduces its array with the one in the other slice."""
    text = """HloModule slices
ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %t = token[] after-all()
  %s = (f32[8,128]{1,0}, u32[], token[]) send(%a, %t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %r = (f32[8,128]{1,0}, u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %d = (f32[8,128]{1,0}, token[]) recv-done(%r), channel_id=1
  %e = token[] send-done(%s), channel_id=2
  ROOT %o = f32[8,128]{1,0} get-tuple-element(%d), index=0
}
"""
    mesh = {"data": 2, "fsdp": 4, "tensor": 1}
    program = Program.of(text, mesh, "tpu", domains=[0, 0, 0, 0, 1, 1, 1, 1])
    assert only(program) == {
        "kind": "all-reduce", "axes": ["data"], "devices": 2, "count": 1, "bytes": 4096, "sent": 4096,
    }  # fmt: skip
    (found,) = program.collectives
    assert (found.sent_within, found.sent_beyond) == (0, 4096)


def test_a_loop_without_a_constant_limit_is_reported():
    program = Program.of(TPU.replace("constant(6)", "parameter(1)"), {"fsdp": 4}, "tpu")
    assert program.unknown_loops == ["loop"]
    assert {row["count"] for row in program.traffic()} == {1}


def hbm(function, *shapes):
    """Bytes through memory of a function of float32 arrays: by us, and by XLA (loops once)."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    done = jax.jit(function).lower(*arrays).compile(compiler_options=OPTIMIZED)
    return Program.of(done.as_text(), {"data": 1}, "cpu").hbm_bytes, done.cost_analysis()


def test_a_product_moves_its_operands_and_its_result():
    ours, xla = hbm(jnp.matmul, (128, 256), (256, 512))
    assert ours == 4 * (128 * 256 + 256 * 512 + 128 * 512) == xla["bytes accessed"]


def test_a_scan_reads_each_layer_of_a_stack_once():
    L, D, B = 10, 128, 16

    def layers(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    ours, _ = hbm(layers, (B, D), (L, D, D))
    weights = 4 * L * D * D
    # The slice of a layer is written and read again by the product; activations are a tenth.
    assert weights <= ours <= 3.6 * weights
    per_layer = (hbm(layers, (B, D), (2 * L, D, D))[0] - ours) / L
    assert per_layer == pytest.approx(ours / L, rel=0.1)


def test_an_update_in_place_moves_the_update():
    def write(stack, row):
        return jax.lax.fori_loop(0, 100, lambda i, s: s.at[i].set(row * i), stack)

    ours, _ = hbm(write, (100, 1024), (1024,))
    rows = 4 * 100 * 1024
    assert 2 * rows <= ours <= 8 * rows  # not 100 times the stack


def test_each_part_of_a_tpu_program_moves_its_bytes_once():
    body = 256 + 1024  # the start of the all-gather reads a part and writes the whole
    body += 2048 + 512  # the reduce-scatter
    body += 2 * 2048  # the kernel
    body += 3 * 4  # the counter
    program = Program.of(TPU.replace("START", "0"), {"fsdp": 4}, "tpu")
    assert program.hbm_bytes == 6 * body + 2 * 4


def test_fast_memory_of_a_tpu_is_not_counted():
    near = "{1,0:T(8,128)S(1)}"
    text = TPU.replace("%kernel = f32[4,128]{1,0} ", f"%kernel = f32[4,128]{near} ")
    far, close = (
        Program.of(t.replace("START", "0"), {"fsdp": 4}, "tpu").hbm_bytes for t in (TPU, text)
    )
    assert far - close == 6 * 4 * 128 * 4


def test_square_buffers_and_logits_in_float32_are_found():
    B, T, V = 2, 96, 640

    def logits(x, head):
        weights = jax.nn.softmax(x @ x.swapaxes(1, 2))
        return jax.nn.logsumexp(weights @ x @ head, axis=-1)

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, T, 64), (64, V))]
    text = jax.jit(logits).lower(*arrays).compile(compiler_options=OPTIMIZED).as_text()
    program = Program.of(text, {"data": 1}, "cpu")
    assert (B, T, T) in {array.dims for array in program.square(T)}
    assert {np.prod(array.dims) for array in program.float32_logits(B * T, V)} == {B * T * V}
    assert not program.square(T - 1)
    assert not program.float32_logits(B * T + 1, V)


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.parse("HloModule empty")


def test_the_attributes_of_a_kernel_may_hold_line_breaks():
    broken = 'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n"a":"{1}"\n}}'
    text = TPU.replace("START", "0").replace('custom_call_target="tpu_custom_call"', broken)
    whole = Program.of(TPU.replace("START", "0"), {"fsdp": 4}, "tpu")
    assert broken in text and Program.of(text, {"fsdp": 4}, "tpu") == whole
    cut = text.replace("  ROOT %new", "  %new")
    with pytest.raises(ValueError, match="body has no root"):
        hlo.parse(cut)


def test_types_are_read_with_their_memory_space():
    found = hlo.arrays("(s32[]{:T(128)}, bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/pred[7])")
    assert [(a.dtype, a.dims, a.space) for a in found] == [
        ("s32", (), 0), ("bf16", (2, 3), 1), ("pred", (7,), 0),
    ]  # fmt: skip
    assert [a.bytes for a in found] == [4, 12, 7]
    assert functools.reduce(max, (hlo.item_bytes(d) for d in ("s4", "f8e4m3fn"))) == 1


def products(function, *shapes):
    """FLOPs of products of a function of float32 arrays: by us, and by XLA (loops once)."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    done = jax.jit(function).lower(*arrays).compile(compiler_options=OPTIMIZED)
    ours = Program.of(done.as_text(), {"data": 1}, "cpu").product_flops
    return ours, done.cost_analysis()["flops"]


def test_products_in_loops_count_as_often_as_they_run():
    def run(x, stack):
        def twice(x, w):
            return jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x), None

        return jax.lax.scan(twice, x, stack)[0]

    assert products(run, (16, 64), (5, 64, 64))[0] == 5 * 3 * 2 * 16 * 64 * 64


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1,), "padding": [(0, 0)]},
        {"window_strides": (2,), "padding": [(2, 1)]},
        {"window_strides": (1,), "padding": [(3, 3)], "lhs_dilation": (2,)},
        {"window_strides": (1,), "padding": [(2, 2)], "rhs_dilation": (2,)},
        {"window_strides": (1,), "padding": "SAME", "feature_group_count": 2},
    ],
)
def test_a_convolution_has_the_flops_that_xla_counts(options):
    """[N, 8, W] with [16, 8, 4] or in groups: multiplications with padding are not counted."""
    features = 8 // options.get("feature_group_count", 1)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, **options)

    ours, xla = products(convolve, (3, 8, 20), (16, features, 4))
    assert ours == xla


def test_a_batched_product_of_a_tpu_is_a_convolution_over_padding():
    """2 products of bf16 [512, 512] and [512, 256], as the compiler writes them."""
    text = """HloModule product
ENTRY %main (a: bf16[512,256,1], b: bf16[2,512,512]) -> bf16[2,512,256] {
  %a = bf16[512,256,1]{0,1,2} parameter(0)
  %b = bf16[2,512,512]{2,1,0} parameter(1)
  ROOT %c = bf16[2,512,256]{2,1,0} convolution(%a, %b), window={size=2 pad=1_1 rhs_reversal=1}, dim_labels=fb0_0oi->0fb
}
"""
    assert Program.of(text, {"data": 1}, "tpu").product_flops == 2 * 2 * 512 * 512 * 256


def test_a_product_by_cublas_counts():
    config = (
        '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    )
    text = f"""HloModule product
ENTRY %main (a: bf16[64,128], b: bf16[128,32]) -> bf16[64,32] {{
  %a = bf16[64,128]{{1,0}} parameter(0)
  %b = bf16[128,32]{{1,0}} parameter(1)
  %c = (bf16[64,32]{{1,0}}, s8[1024]{{0}}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={config}
  ROOT %d = bf16[64,32]{{1,0}} get-tuple-element(%c), index=0
}}
"""
    program = Program.of(text, {"data": 1}, "gpu")
    assert program.product_flops == 2 * 64 * 128 * 32
    assert program.kernels == {"__cublas$gemm": 1}
