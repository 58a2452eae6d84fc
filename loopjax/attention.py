"""Causal grouped-query attention: the implementations, and which of them a platform runs.

    chunks   chunks of queries, each with the keys up to its last position
    xla      all queries at once (`jax.nn.dot_product_attention`); packed rows run as "chunks"
    splash   TPU: the Pallas kernel of JAX, which stores no logits
    cudnn    NVIDIA GPU: cuDNN's flash attention, which stores no logits either

All scale the logits by 1/sqrt(C), and none makes a mask [B, T, T].
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.sharding import AxisType, PartitionSpec

from loopjax import kernels

IMPLEMENTATIONS = ("auto", "xla", "chunks", "splash", "cudnn")
# Splash attention gives this name to its output and to the log-sum-exp of each query, which its
# backward pass needs besides its inputs (see `is_saved`).
SAVED_NAME = "attention"
_CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"  # JAX's primitive

# Queries per chunk: enough for large matrix products, few enough that skipping the keys after a
# chunk (masked for all its queries) saves time.
_CHUNK = 64
_MAX_CHUNKS = 8

_LANES = 128  # of a TPU's vector registers: blocks of splash attention are multiples of it
_MAX_BLOCK = 512
_FLASH = {"tpu": "splash", "gpu": "cudnn"}


def requirement(
    name: str, platform: str, *, T: int, head_size: int, dtype, packed: bool, seq_parts: int
) -> str:
    """What an implementation requires and does not have here, as a phrase; "" if it can run.

    Args:
      name: one of `IMPLEMENTATIONS`; "auto", "xla" and "chunks" run everywhere.
      dtype: compute type.
      packed: whether rows have segments.
      seq_parts: number of devices that a sequence is sharded over.
    """
    if name not in _FLASH.values():
        return ""
    if _FLASH.get(platform) != name:
        return f"{'a TPU' if name == 'splash' else 'a GPU'} (the platform is {platform})"
    if seq_parts > 1:
        return f"whole sequences on each device, but config.mesh.rules.seq cuts them in {seq_parts}"
    if name == "splash":
        return "" if T % _LANES == 0 else f"config.seq_len to be a multiple of {_LANES}, not {T}"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"model.dtype='bfloat16', not {jnp.dtype(dtype).name!r}"
    if head_size > 128 or head_size % 8:
        return f"heads of at most 128 features in steps of 8, not {head_size}"
    if T % 2:
        return f"config.seq_len to be even, not {T}"
    return "rows that are not packed (JAX has no public call with segments)" if packed else ""


def chosen(platform: str, *, packed: bool, **inputs) -> tuple[str, str]:
    """(the implementation that "auto" stands for, why it is not the platform's flash attention).

    Arguments are those of `requirement`. The second is a sentence, or "" if flash attention is chosen
    or, as on a CPU, there is none.
    """
    if platform not in _FLASH:
        return "chunks", ""
    flash = _FLASH[platform]
    missing = requirement(flash, platform, packed=packed, **inputs)
    if not missing:
        return flash, ""
    return ("chunks" if packed else "xla"), f"{flash} attention requires {missing}"


def causal(
    q_BTHC, k_BTKC, v_BTKC, segments_BT=None, *, shared_context=False, implementation="auto"
):
    """Causal grouped-query attention, [B, T, H, C], scaled by 1/sqrt(C).

    Args:
      segments_BT: integers; a token attends only to its own segment.
      shared_context: whether every token attends to segment 0 too; computed as "chunks".
      implementation: one of `IMPLEMENTATIONS`; "auto" is what `chosen` says. On a CPU "splash" is
        interpreted, which is for tests.
    """
    name, packed = implementation, segments_BT is not None
    _, T, _, C = q_BTHC.shape
    inputs = {
        "T": T, "head_size": C, "dtype": q_BTHC.dtype, "packed": packed,
        "seq_parts": _parts(nn.logical_to_mesh_axes(("seq",))[0]),
    }  # fmt: skip
    if name == "auto":
        name, _ = chosen(kernels.platform(), **inputs)
    if name == "chunks" or shared_context or (name == "xla" and packed):
        return _chunked(q_BTHC, k_BTKC, v_BTKC, segments_BT, shared_context)
    if name == "xla":
        return jax.nn.dot_product_attention(q_BTHC, k_BTKC, v_BTKC, is_causal=True)
    own = next(platform for platform, flash in _FLASH.items() if flash == name)
    if missing := requirement(name, own, **inputs):
        raise ValueError(f"{name} attention requires {missing}")
    if name == "cudnn":
        return _cudnn(q_BTHC, k_BTKC, v_BTKC)
    return _on_each_device(_splash, q_BTHC, k_BTKC, v_BTKC, segments_BT)


def cached(q_BTHC, k_BKSC, v_BKSC, mask_BTS):
    """Grouped-query attention to the unmasked ones of S cached keys, [B, T, H, C].

    With few queries and many keys, reading the cache dominates the cost, so the cache has the
    layout that the products need.
    """
    return _ungrouped(_attend(_grouped(q_BTHC, k_BKSC.shape[1]), k_BKSC, v_BKSC, mask_BTS))


def is_saved(primitive, *_, **params) -> bool:
    """Checkpoint policy that saves the results of cuDNN's forward kernel.

    These, and the values named SAVED_NAME, are as large as one product with weights. Without them the
    backward pass would run the forward kernel again, and write them again.
    """
    return primitive.name == _CUDNN_FORWARD


def _grouped(q_BTHC, n_kv_heads: int):
    """[B, T, H, C] -> [B, K, G, T, C]: queries by the key/value head that they share."""
    B, T, _, C = q_BTHC.shape
    return q_BTHC.reshape(B, T, n_kv_heads, -1, C).transpose(0, 2, 3, 1, 4)


def _ungrouped(x_BKGTC):
    """The inverse of `_grouped`."""
    B, _, _, T, C = x_BKGTC.shape
    return x_BKGTC.transpose(0, 3, 1, 2, 4).reshape(B, T, -1, C)


def _attend(q_BKGTC, k_BKSC, v_BKSC, mask_BTS):
    """Attention with logits and softmax in float32; [B, K, G, T, C]."""
    logits_BKGTS = jnp.einsum(
        "BKGTC,BKSC->BKGTS", q_BKGTC, k_BKSC, preferred_element_type=jnp.float32
    )
    logits_BKGTS = logits_BKGTS / q_BKGTC.shape[-1] ** 0.5
    logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, -jnp.inf)
    weights_BKGTS = jax.nn.softmax(logits_BKGTS).astype(v_BKSC.dtype)
    return jnp.einsum("BKGTS,BKSC->BKGTC", weights_BKGTS, v_BKSC)


def _chunked(q_BTHC, k_BTKC, v_BTKC, segments_BT, shared_context):
    T, K = k_BTKC.shape[1:3]
    q_BKGTC = _grouped(q_BTHC, K)
    k_BKTC, v_BKTC = k_BTKC.swapaxes(1, 2), v_BTKC.swapaxes(1, 2)
    chunk = max(_CHUNK, -(-T // _MAX_CHUNKS))
    outs = []
    for start in range(0, T, chunk):
        stop = min(start + chunk, T)
        mask = (jnp.arange(stop)[None, :] <= jnp.arange(start, stop)[:, None])[None]
        if segments_BT is not None:
            own, key = segments_BT[:, start:stop, None], segments_BT[:, None, :stop]
            seen = (key == own) | (key == 0) if shared_context else key == own
            mask = mask & seen
        queries = q_BKGTC[:, :, :, start:stop]
        outs.append(_attend(queries, k_BKTC[:, :, :stop], v_BKTC[:, :, :stop], mask))
    return _ungrouped(jnp.concatenate(outs, axis=3))


def _parts(mesh_axes) -> int:
    """Number of parts that mesh axes (None, a name, or names) of the mesh in context cut into."""
    sizes = jax.sharding.get_abstract_mesh().shape
    names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
    return math.prod(sizes.get(name, 1) for name in names)


def _on_each_device(attend, q_BTHC, k_BTKC, v_BTKC, segments_BT):
    """`attend` of the rows and heads that each device of the mesh in context has.

    XLA cannot partition a Pallas kernel. A dimension that the devices do not divide is not sharded,
    and keys and values are repeated for each query head where they are not sharded like them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
            if kind != AxisType.Manual}  # fmt: skip
    if math.prod(mesh.shape[a] for a in free) == 1:
        return attend(q_BTHC, k_BTKC, v_BTKC, segments_BT)

    def axes(logical, size):
        found = nn.logical_to_mesh_axes((logical,))[0]
        names = (found,) if isinstance(found, str) else found or ()
        names = tuple(name for name in names if name in free)
        return names if size % _parts(names) == 0 else ()

    B, _, H, _ = q_BTHC.shape
    K = k_BTKC.shape[2]
    rows, heads = axes("batch", B), axes("heads", H)
    if axes("kv_heads", K) != heads:
        k_BTKC, v_BTKC = (jnp.repeat(x, H // K, axis=2) for x in (k_BTKC, v_BTKC))
    spec = PartitionSpec(rows, None, heads, None)
    # The kernel's outputs do not say which mesh axes they vary over (`check_vma`).
    local = jax.shard_map(
        attend, in_specs=(spec, spec, spec, PartitionSpec(rows)), out_specs=spec,
        axis_names=free, check_vma=False,
    )  # fmt: skip
    return local(q_BTHC, k_BTKC, v_BTKC, segments_BT)


def _splash(q_BTHC, k_BTKC, v_BTKC, segments_BT):
    """Splash attention on one device (`jax.experimental.pallas.ops.tpu.splash_attention`)."""
    # Imported here: it takes a quarter of a second, and other platforms do not need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, T, H, C = q_BTHC.shape
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * H)
    kernel = splash.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, block_sizes=_block_sizes(T, C, splash),
        residual_checkpoint_name=SAVED_NAME, interpret=kernels.platform() == "cpu",
    )  # fmt: skip
    q_BTHC = (q_BTHC.astype(jnp.float32) / C**0.5).astype(q_BTHC.dtype)
    heads_first = [x.swapaxes(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC)]
    ids = None if segments_BT is None else splash.SegmentIds(segments_BT, segments_BT)
    return jax.vmap(kernel)(*heads_first, ids).swapaxes(1, 2)


def _block_sizes(T: int, C: int, splash):
    """Blocks of queries and keys: the largest multiple of 128, up to 512, that divides T.

    A TPU pads the last dimension of an array to 128. Keys of smaller heads are therefore stored with
    T last, which is also the order that the product with the queries needs.
    """
    block = max(b for b in range(_LANES, _MAX_BLOCK + 1, _LANES) if T % b == 0)
    names = (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
        "block_kv_dkv_compute", "block_q_dq", "block_kv_dq",
    )  # fmt: skip
    layout = splash.QKVLayout
    k_layout = layout.SEQ_MINOR if C < _LANES else layout.HEAD_DIM_MINOR
    return splash.BlockSizes(**dict.fromkeys(names, block), k_layout=k_layout)


def _cudnn(q_BTHC, k_BTKC, v_BTKC):
    if nn.logical_to_mesh_axes(("heads",)) != nn.logical_to_mesh_axes(("kv_heads",)):
        # cuDNN's partitioning requires that they are sharded alike.
        groups = q_BTHC.shape[2] // k_BTKC.shape[2]
        k_BTKC, v_BTKC = (jnp.repeat(x, groups, axis=2) for x in (k_BTKC, v_BTKC))
    try:
        return jax.nn.dot_product_attention(
            q_BTHC, k_BTKC, v_BTKC, is_causal=True, implementation="cudnn"
        )
    except RuntimeError:  # cuDNN is not installed, and nothing is going to be compiled
        if kernels.platform() == jax.default_backend():
            raise
        return _shapes_of_cudnn(q_BTHC, k_BTKC, v_BTKC)


# Without cuDNN, JAX does not even trace its attention (`fused_attention_stablehlo` asks for the
# version of the library). Estimates of memory need the shapes of what is saved only: this primitive
# has those of cuDNN's, and no lowering, so that no program can be compiled with it.
_absent_cudnn = Primitive(_CUDNN_FORWARD)
_absent_cudnn.multiple_results = True


@_absent_cudnn.def_abstract_eval
def _(q, k, v):
    B, T, H, _ = q.shape
    return [jax.core.ShapedArray(q.shape, q.dtype), jax.core.ShapedArray((B, H, T), jnp.float32)]


@jax.custom_vjp
def _shapes_of_cudnn(q_BTHC, k_BTKC, v_BTKC):
    return _absent_cudnn.bind(q_BTHC, k_BTKC, v_BTKC)[0]


def _shapes_of_cudnn_fwd(q_BTHC, k_BTKC, v_BTKC):
    out_BTHC, log_sum_BHT = _absent_cudnn.bind(q_BTHC, k_BTKC, v_BTKC)
    return out_BTHC, (q_BTHC, k_BTKC, v_BTKC, out_BTHC, log_sum_BHT)


def _shapes_of_cudnn_bwd(residuals, d_out_BTHC):
    q_BTHC, k_BTKC, v_BTKC, _, _ = residuals
    return q_BTHC, k_BTKC, v_BTKC  # shapes only


_shapes_of_cudnn.defvjp(_shapes_of_cudnn_fwd, _shapes_of_cudnn_bwd)
