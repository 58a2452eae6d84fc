"""Matrix products and attention: the one place where the platform decides how they are computed."""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp

# Queries per chunk on the CPU: enough for large matrix products, few enough that skipping the keys
# after a chunk (masked for all its queries) saves time.
_CPU_CHUNK = 64
_CPU_MAX_CHUNKS = 8

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """The platform that programs are traced for: "cpu", "gpu" or "tpu"."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(name: str):
    """A context in which programs are traced, but not run, for a platform that need not exist."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def matmul(x, kernel, dtype=None):
    """[..., in] x [in, out] -> [..., out] of `dtype` (default: x.dtype)."""
    dtype = jnp.dtype(dtype or x.dtype)
    if platform() == "cpu":
        return _cpu_matmul(x, kernel, dtype)
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_matmul(x, kernel, dtype):
    """x @ kernel, with the weight gradient computed as one flat x^T dy.

    By default XLA:CPU contracts the batch and time axes in a slow order; the barrier prevents it
    from fusing the producer of dy into the product. Whole training steps are 1.2 to 1.5x faster.
    """
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _cpu_matmul_fwd(x, kernel, dtype):
    return _cpu_matmul(x, kernel, dtype), (x, kernel)


def _cpu_matmul_bwd(dtype, residuals, dy):
    x, kernel = residuals
    dy = jax.lax.optimization_barrier(dy.astype(x.dtype))
    flat_x = x.reshape(-1, x.shape[-1])
    flat_dy = dy.reshape(-1, dy.shape[-1])
    return dy @ kernel.T, flat_x.T @ flat_dy


_cpu_matmul.defvjp(_cpu_matmul_fwd, _cpu_matmul_bwd)


def causal_attention(q_BTHC, k_BTKC, v_BTKC, mask_BTT=None, *, implementation: str = "auto"):
    """Causal grouped-query attention, [B, T, H, C], scaled by 1/sqrt(C).

    A mask hides keys in addition to later ones. "auto": chunks of queries on a CPU; cuDNN's flash
    attention on a GPU if it supports the inputs (bfloat16, heads of at most 128 in steps of 8, T
    even, no mask); else XLA's.
    """
    if implementation == "auto":
        implementation = _suited(q_BTHC)
    if implementation == "chunks":
        return _chunked_attention(q_BTHC, k_BTKC, v_BTKC, mask_BTT)
    if mask_BTT is not None:
        mask = mask_BTT[:, None]
        return jax.nn.dot_product_attention(q_BTHC, k_BTKC, v_BTKC, mask=mask, is_causal=True)
    if implementation == "cudnn" and platform() != jax.default_backend():
        return _flash_shapes(q_BTHC, k_BTKC, v_BTKC)
    return jax.nn.dot_product_attention(
        q_BTHC, k_BTKC, v_BTKC, is_causal=True, implementation=implementation
    )


def cached_attention(q_BTHC, k_BKSC, v_BKSC, mask_BTS):
    """Grouped-query attention to the unmasked ones of S cached keys, [B, T, H, C].

    With few queries and many keys, reading the cache dominates the cost, so the cache has the
    layout that the products need.
    """
    return _ungrouped(_attend(_grouped(q_BTHC, k_BKSC.shape[1]), k_BKSC, v_BKSC, mask_BTS))


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


def _suited(q_BTHC) -> str:
    if platform() == "cpu":
        return "chunks"
    _, T, _, C = q_BTHC.shape
    fits = q_BTHC.dtype == jnp.bfloat16 and C <= 128 and C % 8 == 0 and T % 2 == 0
    return "cudnn" if platform() == "gpu" and fits else "xla"


def _chunked_attention(q_BTHC, k_BTKC, v_BTKC, mask_BTT):
    """Causal attention in chunks of queries, each with the keys up to its last position."""
    T, K = k_BTKC.shape[1:3]
    q_BKGTC = _grouped(q_BTHC, K)
    k_BKTC, v_BKTC = k_BTKC.swapaxes(1, 2), v_BTKC.swapaxes(1, 2)
    chunk = max(_CPU_CHUNK, -(-T // _CPU_MAX_CHUNKS))
    outs = []
    for start in range(0, T, chunk):
        stop = min(start + chunk, T)
        mask = (jnp.arange(stop)[None, :] <= jnp.arange(start, stop)[:, None])[None]
        if mask_BTT is not None:
            mask = mask & mask_BTT[:, start:stop, :stop]
        queries = q_BKGTC[:, :, :, start:stop]
        outs.append(_attend(queries, k_BKTC[:, :, :stop], v_BKTC[:, :, :stop], mask))
    return _ungrouped(jnp.concatenate(outs, axis=3))


@jax.custom_vjp
def _flash_shapes(q_BTHC, k_BTKC, v_BTKC):
    """Stand-in for flash attention in memory estimates without a GPU: shapes only."""
    return q_BTHC


def _flash_shapes_fwd(q_BTHC, k_BTKC, v_BTKC):
    B, T, H, _ = q_BTHC.shape
    out_BTHC, log_sum_BHT = q_BTHC + 0, jnp.zeros((B, H, T), jnp.float32)
    return out_BTHC, (q_BTHC, k_BTKC, v_BTKC, out_BTHC, log_sum_BHT)


def _flash_shapes_bwd(residuals, d_out_BTHC):
    raise TypeError("cuDNN's flash attention was traced without a GPU")


_flash_shapes.defvjp(_flash_shapes_fwd, _flash_shapes_bwd)
