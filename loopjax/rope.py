"""Rotary position embedding (Su et al. 2021): positions as angles of pairs of features."""

import math
import re

import jax
import jax.numpy as jnp

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
LLAMA3 = re.compile(":".join(["llama3", *[_NUMBER] * 4]))


def frequencies(head_size: int, theta: float, scaling: str = "") -> jax.Array:
    """Angle per position of each pair, float32 [C/2].

    With scaling "llama3:FACTOR:LOW:HIGH:ORIGINAL" (Llama 3.1), frequencies with fewer than LOW turns
    in ORIGINAL positions are divided by FACTOR, those with more than HIGH turns are unchanged, and
    those in between are interpolated.
    """
    f_C = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if not scaling:
        return f_C
    factor, low, high, original = map(float, LLAMA3.fullmatch(scaling).groups())
    turns = original * f_C / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return f_C * (kept + (1 - kept) / factor)


def tables(positions, frequencies) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles of [..., T] positions, each float32 [..., T, 1, C/2]."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHC: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + C/2) of each head by the angles of its position, in float32."""
    cos, sin = angles
    a, b = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHC.dtype)
