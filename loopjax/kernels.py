"""The platform that programs are traced for, and matrix products as it computes them best."""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp

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
    return matmul_gradients(x, kernel, dy, kernel.dtype)


_cpu_matmul.defvjp(_cpu_matmul_fwd, _cpu_matmul_bwd)


def matmul_gradients(x, kernel, dy, dtype):
    """The gradients of `matmul`: that of x, and that of the kernel in `dtype`.

    Args:
      dy: gradient of the product, which is rounded to the type of x.
    """
    dy = dy.astype(x.dtype)
    if platform() == "cpu":
        dy = jax.lax.optimization_barrier(dy)
    return dy @ kernel.T, weight_gradient(x, dy, dtype)


def weight_gradient(x, dy, dtype=None):
    """x^T dy over all leading axes, [..., in] and [..., out] -> [in, out] of `dtype`."""
    flat_x = x.reshape(-1, x.shape[-1])
    flat_dy = dy.reshape(-1, dy.shape[-1])
    return jnp.matmul(flat_x.T, flat_dy, preferred_element_type=dtype)
