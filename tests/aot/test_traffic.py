"""The collectives of a compiled step against those that ZeRO-3 needs."""

import pytest

from tests.aot.steps import SMALL, compiled_step

VOCABULARY = 2048
CASES = {
    "fsdp=8": ("v5p:2x2x2", {"data": 1, "fsdp": 8}),
    "fsdp=64": ("v5e:8x8", {"data": 1, "fsdp": 64}),
    "two slices": ("v5e:2x4,slices=2", {"data": 2, "fsdp": 8}),
    "with tensor": ("v5e:4x4", {"data": 1, "fsdp": 8, "tensor": 2}),
}


def numbers() -> tuple[int, int]:
    """Numbers in the matrices of the executed layers of `SMALL`, 2 run twice, and in its table."""
    D, F = SMALL["model.d_model"], SMALL["model.d_ff"]
    kv = D * SMALL["model.n_kv_heads"] // SMALL["model.n_heads"]
    return 4 * (2 * D * D + 2 * D * kv + 3 * D * F), VOCABULARY * D


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_step_sends_what_zero_3_needs(case, tmp_path):
    topology, mesh = CASES[case]
    fields = {f"mesh__{axis}": size for axis, size in mesh.items()}
    result = compiled_step(
        topology, tmp_path, model__vocab_size=VOCABULARY, model__remat="dots",
        batch_size=mesh["data"] * mesh["fsdp"], **fields,
    )  # fmt: skip
    found = [row for row in result["programs"][0]["collectives"] if "tensor" not in row["axes"]]
    of_weights = [row for row in found if row["axes"] == ["fsdp"]]
    # One gather and one sum serve both the lookup and the head.
    layers, table = (n // mesh.get("tensor", 1) for n in numbers())
    used, n = layers + table, mesh["fsdp"]
    needed = {"all-gather": 2 * (used + layers), "reduce-scatter": 4 * used}
    for kind, size in needed.items():
        sent = sum(row["sent"] for row in of_weights if row["kind"] == kind)
        assert sent == pytest.approx(size * (n - 1) / n, rel=0.1), kind
    summed = sum(row["sent"] for row in of_weights if row["kind"] == "all-reduce")
    assert summed < 0.01 * sum(needed.values())
    if case == "two slices":
        # Each device sums its own part of the gradient over `data`, and nothing else crosses.
        beyond = sum(row["sent_beyond"] for row in found)
        assert beyond == pytest.approx(4 * used / n, rel=0.1)
