"""Terms that are added to the training loss: `config.losses`. Each is off by default.

    block_cosine    blocks of an untied model alike (a function of the parameters)

Shape letters are those of `model.py`; N is the layers of a stack, k those of a block.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from loopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Losses:
    """The fields of `config.losses`.

    Attributes:
      block_cosine: weight of `block_cosine`; 0 for none.
      block: its layers per block, k.
    """

    block_cosine: float = 0.0
    block: int = 4


NONE = Losses()


def of(config) -> Losses:
    """The losses of a config; raises UserError for invalid values."""
    losses = Losses(**config.losses.to_dict())
    for name in ("block_cosine",):
        if not 0 <= getattr(losses, name) < math.inf:
            raise UserError(
                f"config.losses.{name}={getattr(losses, name)} must be at least 0 and finite"
            )
    return losses


def check_plans(losses: Losses, plans) -> None:
    """Raises UserError where a loss does not fit the plans of the phases of a run, in order."""
    if losses.block_cosine:
        _check_blocks(losses, plans)


def _check_blocks(losses: Losses, plans) -> None:
    what = f"config.losses.block_cosine={losses.block_cosine}"
    for plan in plans:
        if plan.is_looped:
            raise UserError(f"{what} is for models without loops, but plan {plan} has one")
        if plan.n_unique % losses.block:
            raise UserError(
                f"{what} requires whole blocks: config.losses.block={losses.block} does not divide "
                f"the {plan.n_unique} layers of plan {plan}"
            )
    if max(plan.n_unique for plan in plans) == losses.block:
        raise UserError(
            f"{what} compares blocks: config.losses.block={losses.block} must be less than the "
            f"{losses.block} layers of the model"
        )


def block_cosine(params, block: int) -> jax.Array:
    """The mean over the matrices G of a layer of 1 - R_G(k), float32 []: 0 where all blocks point alike.

        R_G(k) = 1 / (N - k)  sum_{l < N - k}  cos(G of layer l, G of layer l + k)

    as in Saunshi et al. 2025, section 4: each layer is compared with the one at its place in the next
    block. Their formula adds lambda R_G to the loss, which would push blocks apart, while their text
    and numbers (cosines of 0.98) pull them together; the sign here is that of the text. A single
    block has no next one, and a loss of 0.

    A matrix of zeros has no direction: its cosine counts as 0, and it gets no gradient.

    Args:
      params: canonical parameters of an untied model.
      block: k, which divides N.
    """
    matrices = [leaf for leaf in jax.tree.leaves(params["layers"]) if leaf.ndim == 3]
    if matrices[0].shape[0] == block:
        return jnp.zeros(())
    return 1.0 - jnp.mean(jnp.stack([_mean_cosine(m.astype(jnp.float32), block) for m in matrices]))


def _mean_cosine(matrix_NIO, block: int):
    first, second = matrix_NIO[:-block], matrix_NIO[block:]
    inverse_N = _inverse_norm(jnp.sum(jnp.square(matrix_NIO), axis=(1, 2)))
    products = jnp.sum(first * second, axis=(1, 2))
    return jnp.mean(products * inverse_N[:-block] * inverse_N[block:])


def _inverse_norm(squares):
    """1 / sqrt of sums of squares; 0, with gradient 0, where there is nothing but zeros."""
    safe = jnp.where(squares > 0, squares, 1.0)
    return jnp.where(squares > 0, jax.lax.rsqrt(safe), 0.0)
