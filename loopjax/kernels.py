"""Matrix products and attention: the one place where the platform decides how they are computed."""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp

ATTENTION = ("auto", "xla", "cudnn")

# Queries of one chunk on the CPU: long enough to keep the matrix products large, short enough
# that the keys after a chunk (which its queries must not see) are worth not touching.
_CPU_CHUNK = 64
_CPU_MAX_CHUNKS = 8

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what programs are traced for."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(name: str):
    """Within it programs are traced, not run, for a platform that need not be here."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def matmul(x, kernel, dtype=None):
    """[..., in] x [in, out] -> [..., out] of `dtype`, by default that of x."""
    dtype = jnp.dtype(dtype or x.dtype)
    if platform() == "cpu":
        return _cpu_matmul(x, kernel, dtype)
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_matmul(x, kernel, dtype):
    """x @ kernel whose weight gradient is one flat x^T dy.

    XLA:CPU left alone contracts the batch and time axes in a slow order; the barrier keeps it
    from fusing dy's producer into the product. Whole training steps run 1.2 to 1.5x faster.
    """
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _cpu_matmul_fwd(x, kernel, dtype):
    return _cpu_matmul(x, kernel, dtype), (x, kernel)


def _cpu_matmul_bwd(dtype, residuals, dy):
    x, kernel = residuals
    dy = jax.lax.optimization_barrier(dy.astype(x.dtype))
    flat = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ kernel.T, flat[0].T @ flat[1]


_cpu_matmul.defvjp(_cpu_matmul_fwd, _cpu_matmul_bwd)


def causal_attention(q_BTHC, k_BTKC, v_BTKC, *, implementation: str = "auto"):
    """Causal grouped-query attention, [B, T, H, C], scaled by 1/sqrt(C).

    "auto": chunks of queries on a CPU; cuDNN's flash attention on a GPU where it can be had
    (bfloat16, heads of at most 128 in steps of 8, T even); else XLA's.
    """
    if implementation == "auto":
        implementation = _suited(q_BTHC)
    if implementation == "chunks":
        return _chunked_attention(q_BTHC, k_BTKC, v_BTKC)
    if implementation == "cudnn" and platform() != jax.default_backend():
        return _flash_shapes(q_BTHC, k_BTKC, v_BTKC)
    return jax.nn.dot_product_attention(
        q_BTHC, k_BTKC, v_BTKC, is_causal=True, implementation=implementation
    )


def _suited(q_BTHC) -> str:
    if platform() == "cpu":
        return "chunks"
    _, T, _, C = q_BTHC.shape
    fits = q_BTHC.dtype == jnp.bfloat16 and C <= 128 and C % 8 == 0 and T % 2 == 0
    return "cudnn" if platform() == "gpu" and fits else "xla"


def _chunked_attention(q_BTHC, k_BTKC, v_BTKC):
    """The same in chunks of queries, each against the keys up to its own last position."""
    T = q_BTHC.shape[1]
    chunk = max(_CPU_CHUNK, -(-T // _CPU_MAX_CHUNKS))
    outs = []
    for start in range(0, T, chunk):
        stop = min(start + chunk, T)
        mask = jnp.arange(stop)[None, :] <= jnp.arange(start, stop)[:, None]
        outs.append(
            jax.nn.dot_product_attention(
                q_BTHC[:, start:stop], k_BTKC[:, :stop], v_BTKC[:, :stop], mask=mask[None, None]
            )
        )
    return jnp.concatenate(outs, axis=1)


@jax.custom_vjp
def _flash_shapes(q_BTHC, k_BTKC, v_BTKC):
    """Flash attention as the memory estimate sees it where there is no GPU: shapes only."""
    return q_BTHC


def _flash_shapes_fwd(q_BTHC, k_BTKC, v_BTKC):
    B, T, H, _ = q_BTHC.shape
    out_BTHC, log_sum_BHT = q_BTHC + 0, jnp.zeros((B, H, T), jnp.float32)
    return out_BTHC, (q_BTHC, k_BTKC, v_BTKC, out_BTHC, log_sum_BHT)


def _flash_shapes_bwd(residuals, d_out_BTHC):
    raise TypeError("cuDNN's flash attention was traced where there is no GPU")


_flash_shapes.defvjp(_flash_shapes_fwd, _flash_shapes_bwd)
