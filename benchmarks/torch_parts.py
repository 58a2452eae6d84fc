"""The parts of an update, compared with PyTorch's: products with weights, attention, SwiGLU, RMSNorm.

    pip install torch
    python benchmarks/torch_parts.py [--size laptop] [--rounds 9]

Forward and backward pass of each part alone, in float32 on the CPU. Shows where the difference in
`benchmarks/torch_llama.py` comes from: products are made by XLA's and PyTorch's libraries.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import SIZES, alternate, emit, parser, ratio, spread

from loopjax import attention, block

CALLS = 20


def parts(size: str):
    """{name: (function of JAX arrays, the same of PyTorch tensors, their inputs)}."""
    import torch

    D, F, H, K, V, B, T, _ = SIZES[size]
    if H != K:
        raise SystemExit(f"--size {size} has fewer key than query heads; use laptop or 1.7b")
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    def rms_norm(x, scale):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * scale

    def product(n, m):
        return jnp.matmul, torch.matmul, (normal(B * T, n), normal(n, m))

    def theirs(q, k, v):
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)

    def ours(q, k, v):
        return attention.causal(q, k, v, None, implementation="auto")

    qkv = [normal(B, T, H, D // H) for _ in range(3)]
    hidden = [normal(B * T, F) for _ in range(2)]
    silu = torch.nn.functional.silu
    return {
        "product D x D": product(D, D),
        "product D x F": product(D, F),
        "product F x D": product(F, D),
        "product D x V": product(D, V),
        "attention": (ours, theirs, qkv),
        "SwiGLU": (lambda a, b: jax.nn.silu(a) * b, lambda a, b: silu(a) * b, hidden),
        "RMSNorm": (
            lambda x, s: block.rms_norm(x, s, 1e-5), rms_norm, (normal(B * T, D), normal(D)),
        ),
    }  # fmt: skip


def compared(ours, theirs, inputs, rounds: int) -> dict:
    """Seconds and ratio of the forward and backward pass of a part in both libraries."""
    import torch

    gradient = jax.jit(
        jax.grad(lambda *args: jnp.sum(ours(*args) ** 2), argnums=range(len(inputs)))
    )
    arrays = [jnp.array(x) for x in inputs]
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]

    def in_jax():
        return jax.block_until_ready(gradient(*arrays))

    def in_torch():
        return torch.autograd.grad((theirs(*tensors) ** 2).sum(), tensors)

    for mine, other in zip(in_jax(), in_torch(), strict=True):
        scale = float(other.abs().max())
        np.testing.assert_allclose(mine / scale, other / scale, atol=1e-4)
    # Many calls in a row, since the threads of one library are still awake when the other begins.
    seconds = alternate({"loopjax": in_jax, "torch": in_torch}, rounds, CALLS)
    times = {name: spread(values) for name, values in seconds.items()}
    return times | {"loopjax_to_torch": ratio(seconds["loopjax"], seconds["torch"])}


def main():
    args = parser(__doc__).parse_args()
    figures = {name: compared(*part, args.rounds) for name, part in parts(args.size).items()}
    emit("torch_parts", args, parts=figures)


if __name__ == "__main__":
    main()
