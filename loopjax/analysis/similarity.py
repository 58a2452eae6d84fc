"""How alike blocks of layers are in weights (Kapl et al. 2025, Fig. 7a)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.errors import UserError
from loopjax.lm.loaded_model import LanguageModel

FEED_FORWARD = ("gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Cosines of blocks of unique layers, each all its feed-forward matrices as one vector.

    Attributes:
      matrix: [U / b, U / b].
      block: b layers.
      asymmetry: mean of |S[i, j] - S[n-1-j, n-1-i]| over i < j, which is near 0 where a stack was
        grown around its middle (LIDAS).
    """

    matrix: np.ndarray
    block: int
    asymmetry: float


def block_similarity(lm: LanguageModel, block: int = 4) -> Similarity:
    """The similarity of the unique layers in blocks of `block`; raises UserError if it does not fit."""
    U = lm.plan.n_unique
    if block < 1 or U % block:
        raise UserError(f"--block {block} does not divide the {U} unique layers")
    gram_UU = sum(_gram(lm.params["layers"][name]) for name in FEED_FORWARD)
    n = U // block
    # Layer k of one block meets layer k of the other: the diagonals of the blocks of the Gram matrix.
    dots = np.einsum("ikjk->ij", np.asarray(gram_UU, np.float64).reshape(n, block, n, block))
    norms = np.sqrt(np.diag(dots))
    matrix = dots / np.outer(norms, norms)
    i, j = np.triu_indices(n, 1)
    apart = np.abs(matrix[i, j] - matrix[n - 1 - j, n - 1 - i])
    return Similarity(matrix, block, float(apart.mean()) if len(apart) else 0.0)


@jax.jit
def _gram(leaf_UIO):
    """Inner products of the layers of a stacked matrix, float32 [U, U]."""
    leaf_UIO = leaf_UIO.astype(jnp.float32)
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("uio,vio->uv", leaf_UIO, leaf_UIO, precision=precision)
