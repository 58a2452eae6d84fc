"""Similarity of blocks of layers in their weights (Kapl et al. 2025, Fig. 7a)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.errors import UserError
from loopjax.lm.loaded_model import LanguageModel

FEED_FORWARD = ("gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Cosines of blocks of unique layers; a block is the vector of all its feed-forward matrices.

    Attributes:
      matrix: cosines, [U / b, U / b].
      block: b, the number of layers of a block.
      asymmetry: mean of |S[i, j] - S[n-1-j, n-1-i]| over i < j; near 0 if the stack was grown
        around its middle (LIDAS).
    """

    matrix: np.ndarray
    block: int
    asymmetry: float


def run(lm, cases, options, each) -> Similarity:
    """`loopjax analyze --what similarity`."""
    return block_similarity(lm, options["block"])


def block_similarity(lm: LanguageModel, block: int = 4) -> Similarity:
    """Similarity of the unique layers in blocks of `block`; UserError if `block` does not divide U."""
    U = lm.plan.n_unique
    if block < 1 or U % block:
        raise UserError(f"--block {block} does not divide the {U} unique layers")
    gram_UU = sum(_gram(lm.params["layers"][name]) for name in FEED_FORWARD)
    n = U // block
    # Layer k of one block pairs with layer k of the other: diagonals of the Gram matrix's blocks.
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
