"""Terms that are added to the training loss: `config.losses`. Each is off by default.

    block_cosine                  blocks of an untied model alike (a function of the parameters)
    jacobian                      a repetition that contracts (`jacobian.py`)
    per_repetition, exit_gate     losses of the exits after every repetition (`exit_losses.py`)

Shape letters are those of `model.py`; N is the layers of a stack, k those of a block.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from loopjax.errors import UserError
from loopjax.loop_config import LoopConfig

PER_REPETITION = ("", "mean", "random")
EXIT_GATE = ("", "joint", "gate")


@dataclasses.dataclass(frozen=True)
class Losses:
    """The fields of `config.losses`.

    Attributes:
      block_cosine: weight of `block_cosine`; 0 for none.
      block: its layers per block, k.
      per_repetition: exits that have a loss: "mean", "random"; "" for the last alone.
      exit_gate: how the gate is trained: "joint" with the model, "gate" alone; "" for no gate.
      exit_entropy: weight of the entropy of the exits with "joint", beta.
      jacobian: weight of the penalty on the spectral norm of a repetition's Jacobian; 0 for none.
      jacobian_most: spectral norm without a penalty.
      jacobian_steps: power iterations.
    """

    block_cosine: float = 0.0
    block: int = 4
    per_repetition: str = ""
    exit_gate: str = ""
    exit_entropy: float = 0.1
    jacobian: float = 0.0
    jacobian_most: float = 1.0
    jacobian_steps: int = 2

    def of_exits(self, plan) -> bool:
        """Whether states after repetitions of a plan have losses."""
        return plan.is_looped and bool(self.per_repetition or self.exit_gate or self.jacobian)


NONE = Losses()


def of(config) -> Losses:
    """The losses of a config; raises UserError for invalid values."""
    losses = Losses(**config.losses.to_dict())
    for name, allowed in (("per_repetition", PER_REPETITION), ("exit_gate", EXIT_GATE)):
        if getattr(losses, name) not in allowed:
            raise UserError(
                f"config.losses.{name}={getattr(losses, name)!r} must be one of "
                f"{', '.join(map(repr, allowed))}"
            )
    if losses.per_repetition and losses.exit_gate:
        raise UserError(
            f"config.losses.per_repetition={losses.per_repetition!r} must be empty with "
            f"config.losses.exit_gate={losses.exit_gate!r}, which weights the loss of every repetition"
        )
    if losses.jacobian and losses.exit_gate == "gate":
        raise UserError(
            f"config.losses.jacobian={losses.jacobian} must be 0 with config.losses.exit_gate='gate', "
            "which trains nothing but the gate"
        )
    for name in ("block_cosine", "exit_entropy", "jacobian", "jacobian_most"):
        if not 0 <= getattr(losses, name) < math.inf:
            raise UserError(
                f"config.losses.{name}={getattr(losses, name)} must be at least 0 and finite"
            )
    return losses


def check_plans(losses: Losses, plans, loop: LoopConfig) -> None:
    """Raises UserError where a loss does not fit the plans of the phases of a run, in order, or `loop`."""
    options = loop.of_repetitions()
    if losses.jacobian and options:
        raise UserError(
            f"config.losses.jacobian={losses.jacobian} is of a loop whose repetitions are its layers "
            f"alone; it does not apply with config.{options[0]}"
        )
    if losses.exit_gate == "gate" and loop.options(("repeats", "backprop")):
        raise UserError(
            "config.losses.exit_gate='gate' trains no layer: config.loop.repeats must be empty and "
            "config.loop.backprop 0"
        )
    if losses.block_cosine:
        _check_blocks(losses, plans)
    for name in ("per_repetition", "exit_gate", "jacobian"):
        if value := getattr(losses, name):
            _check_loops(f"config.losses.{name}={value!r}", plans, value == "gate")


def check_gate(config, has_gate: bool) -> None:
    """Raises UserError if a run cannot have the gate of the checkpoint that it begins with."""
    if bool(config.losses.exit_gate) != has_gate and (has_gate or config.init == "moments"):
        raise UserError(
            f"config.losses.exit_gate={config.losses.exit_gate!r}, but config.init_from="
            f"{config.init_from!r} has {'an' if has_gate else 'no'} exit gate, which only "
            "config.init='weights' may add"
        )


def _check_loops(what: str, plans, everywhere: bool) -> None:
    for plan in plans:
        if sum(s.repeats > 1 for s in plan.segments) > 1:
            raise UserError(f"{what} requires a plan with one loop, but plan {plan} has several")
    looped = [plan.is_looped for plan in plans]
    if not any(looped) or (everywhere and not all(looped)):
        plan = plans[looped.index(False)]
        raise UserError(f"{what} requires a plan with a loop, like '4x6', but plan {plan} has none")


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
