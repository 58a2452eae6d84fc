"""The cross-entropy of the head and its gradients, compared with those of whole logits.

    python benchmarks/head.py [--size laptop|360m|1.7b]

Time, ratio and temporary bytes (as XLA assigns them) of loss and gradients with respect to the input
and the tied embeddings, on one device.
"""

import jax
import jax.numpy as jnp
import optax
from common import SIZES, alternate, emit, parser, ratio, spread

from loopjax import head, kernels

AXES = ("vocab", "embed")


def whole_logits(x_BTD, table_VD, targets_BT, weights_BT):
    logits_BTV = kernels.matmul(x_BTD, table_VD.astype(x_BTD.dtype).T, dtype=jnp.float32)
    nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
    return jnp.sum(weights_BT * nll_BT)


def chunks(*args):
    return head.weighted_loss(*args, AXES)[0]


def main():
    args = parser(__doc__).parse_args()
    D, _, _, _, V, B, T, dtype = SIZES[args.size]
    keys = jax.random.split(jax.random.key(0), 3)
    x_BTD = jax.random.normal(keys[0], (B, T, D), dtype)
    table_VD = jax.random.normal(keys[1], (V, D)) * D**-0.5
    targets_BT = jax.random.randint(keys[2], (B, T), 0, V)
    inputs = x_BTD, table_VD, targets_BT, jnp.full((B, T), 1 / (B * T))
    compiled = {
        name: jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs).compile()
        for name, loss in (("chunks", chunks), ("whole_logits", whole_logits))
    }
    steps = {
        name: lambda step=step: jax.block_until_ready(step(*inputs))
        for name, step in compiled.items()
    }
    seconds = alternate(steps, args.rounds)
    emit(
        "head",
        args,
        temporary_bytes={n: c.memory_analysis().temp_size_in_bytes for n, c in compiled.items()},
        seconds={name: spread(times) for name, times in seconds.items()},
        chunks_to_whole_logits=ratio(seconds["chunks"], seconds["whole_logits"]),
    )


if __name__ == "__main__":
    main()
