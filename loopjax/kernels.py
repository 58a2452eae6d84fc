"""Matrix products and attention: the one place where the platform decides how they are computed."""

import functools

import jax
import jax.numpy as jnp

ATTENTION = ("auto", "xla", "cudnn")

# Queries of one chunk on the CPU: long enough to keep the matrix products large, short enough
# that the keys after a chunk (which its queries must not see) are worth not touching.
_CPU_CHUNK = 64
_CPU_MAX_CHUNKS = 8


def matmul(x, kernel, dtype=None):
    """[..., in] x [in, out] -> [..., out] of `dtype`, by default that of x."""
    dtype = jnp.dtype(dtype or x.dtype)
    if jax.default_backend() == "cpu":
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
    """Causal grouped-query attention, [B, T, H, C], scaled by 1/sqrt(C)."""
    if implementation == "auto" and jax.default_backend() == "cpu":
        return _chunked_attention(q_BTHC, k_BTKC, v_BTKC)
    return jax.nn.dot_product_attention(
        q_BTHC,
        k_BTKC,
        v_BTKC,
        is_causal=True,
        implementation=None if implementation == "auto" else implementation,
    )


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
