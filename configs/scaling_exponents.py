"""Ladders of "How Model Growth, Recursion, and Boundary Operators Influence Scaling Exponents"
(Chen et al. 2026, arXiv 2609.19107; facts from the authors' code, qlabs-eng/scaling-exponents).

    loopjax train --config=configs/scaling_exponents.py:loop-grow,d6 --workdir=runs/loop-grow-d6
    loopjax plan --config=configs/scaling_exponents.py:untied-grow,d18 --devices=8 --causal

The variant is ARM[,RUNG].
ARM   vanilla      d layers
      loop         prelude, core, coda; the core runs twice (2-2x2-2)
      loop-grow    the same, and four times from a late step on (2-2x4-2)
      untied-grow  two cores of their own; from a late step on four, the new ones copies of the two,
                   without their momentum
RUNG  d6, d8, ..., d18; vanilla d20 too: layers outside of repetitions, width 128 d, d heads

The number of steps follows from the parameters N: TPP tokens per parameter at fixed depth. A run that
grows gets as many steps as have the matrix FLOPs of such a run of its first plan. After growth the
learning rate rises anew over 40 updates.

What differs from their model. Both have RoPE, SwiGLU, normalized queries and keys, and a head of its
own; theirs also has norms without scales (of queries and keys after RoPE), a norm of the embeddings,
branches multiplied by 0.25, logits by 0.5 (vanilla), matrices that write to the stream and head
initialized to 0, and keeps the stream in float32. After each repetition of the core, and after each of the
untied cores, it normalizes the stream and adds 0.707 times the prelude's output to it; here loops do, untied
cores do not. Their Muon has row normalization, Polar
Express coefficients, a second moment, decay only where it agrees with the update, and a momentum that
rises from 0.85; embedding, head and matrices have learning rates of their own. Here one rate serves all:
the one that gives an update of a square matrix the RMS of theirs. Their decay is linear, here
it is 1 - sqrt. Without all this their losses need not be reached; depth, width, data and FLOPs are theirs.
"""

from fractions import Fraction

from loopjax.config import default
from loopjax.config_variants import parse_variant

# Tokens per parameter, exponent of the learning rate, weight decay, second beta and epsilon of AdamW.
ARMS = {
    "vanilla": (5, 0.8, 0.0707, 0.95, 1e-10),
    "loop": (6, 0.6, 0.05, 0.95, 1e-10),
    "loop-grow": (7, 0.5, 0.05, 0.95, 1e-10),
    "untied-grow": (8, 0.6, 0.0707, 0.99, 1e-8),
}
# The fraction of the steps at which a run grows, by rung.
SWITCHES = {
    "loop-grow": dict(zip(range(6, 20, 2), (75, 82, 86, 85, 86, 88, 87), strict=True)),
    "untied-grow": dict(zip(range(6, 20, 2), (60, 71, 75, 73, 76, 77, 75), strict=True)),
}
RUNGS = tuple(f"d{d}" for d in range(6, 22, 2))
VOCABULARY = 50_304  # GPT-2's 50,257, padded
TOKENS_PER_STEP = 524_288
RATE = 0.04  # of the matrices at d8


def ffn(d: int) -> int:
    """8/3 of the width, rounded up to a multiple of 256."""
    return -(-(8 * 128 * d // 3) // 256) * 256


def layer(d: int) -> int:
    """Parameters of the matrices of a layer."""
    return 4 * (128 * d) ** 2 + 3 * 128 * d * ffn(d)


def head(d: int) -> int:
    return VOCABULARY * 128 * d


def parts(d: int) -> tuple[int, int, int]:
    """Layers of prelude, core and coda: thirds; the rest goes to the core, then to the coda."""
    return d // 3, d // 3 + (d % 3 > 0), d // 3 + (d % 3 > 1)


def parameters(arm: str, d: int) -> int:
    """N at the start of a run, embedding and head included."""
    return (d + (arm == "untied-grow") * parts(d)[1]) * layer(d) + 2 * head(d)


def steps(arm: str, d: int) -> int:
    fixed = Fraction(ARMS[arm][0] * parameters(arm, d), TOKENS_PER_STEP)
    if arm not in SWITCHES:
        return round(fixed)
    core = parts(d)[1]
    before = (d + core) * layer(d) + head(d)
    after = before + 2 * core * layer(d)
    share = 1 - Fraction(SWITCHES[arm][d], 100)
    return round(fixed * before / ((1 - share) * before + share * after))


def get_config(variant: str = "loop-grow,d6"):
    given = parse_variant(
        "configs/scaling_exponents.py", variant, "ARM[,RUNG]", ARM=tuple(ARMS), RUNG=RUNGS
    )
    arm, d = given["ARM"], int((given["RUNG"] or "d6")[1:])
    _, exponent, decay, beta2, eps = ARMS[arm]
    prelude, core, coda = parts(d)
    config = default()
    config.steps = steps(arm, d)
    config.seq_len = 2048
    config.batch_size = TOKENS_PER_STEP // config.seq_len
    config.depth = {
        "vanilla": f"{d}",
        "loop": f"{prelude}-{core}x2-{coda}",
        "loop-grow": f"{prelude}-{core}x4-{coda}",
        "untied-grow": f"{prelude}-{4 * core}-{coda}",
    }[arm]
    if arm in SWITCHES:
        first = f"{core}x2" if arm == "loop-grow" else f"{2 * core}"
        config.growth.plans = f"{prelude}-{first}-{coda},{config.depth}"
        config.growth.starts = f"0.{SWITCHES[arm][d]}"
        config.growth.rewarm_steps = 40
    if arm == "untied-grow":
        config.growth.operator = "gstack"  # copies of the two cores in order
        config.growth.moments = "zero"
    if "x" in config.depth:
        config.loop.update(norm=True, inject="after", inject_scale=0.707)
    config.learning_rate = (
        RATE * (parameters(arm, 8) / parameters(arm, d)) ** exponent / (0.2 * (128 * d) ** 0.5)
    )
    config.warmup_steps = 40
    # Vanilla decays over the last 60% of its steps, the others from the end of the warm-up on.
    config.cooldown.steps = round(0.6 * config.steps) if arm == "vanilla" else config.steps - 40
    config.clip_norm = 1e9  # none
    config.optimizer.update(name="muon", weight_decay=decay, beta1=0.8, beta2=beta2, eps=eps)
    config.data_dir = "data/fineweb"
    config.mixture = {"web": 1.0}
    config.eval_every = 1000
    config.mesh.update(data=1, fsdp=-1)
    config.model.update(
        vocab_size=VOCABULARY, d_model=128 * d, d_ff=ffn(d), n_heads=d, n_kv_heads=d,
        qk_norm=True, tie_embeddings=False, remat="dots",
    )  # fmt: skip
    return config
