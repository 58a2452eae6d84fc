"""What a training step does on each kind of mesh, compared with what it did."""

import json
import pathlib

import pytest

from tests.aot.steps import compiled_step

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = {
    "v5e-data": ("v5e:2x2", {"mesh__data": 4, "mesh__fsdp": 1}),
    "v5e-fsdp": ("v5e:2x2", {"mesh__fsdp": 4}),
    "v5p-tensor": ("v5p:2x2x1", {"mesh__fsdp": 1, "mesh__tensor": 4}),
    "v5p-combined": ("v5p:2x2x2", {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}),
    "v5e-slices": ("v5e:2x2,slices=2", {"batch_size": 16, "mesh__data": 2, "mesh__fsdp": 4}),
    "h100-fsdp": ("h100:1x4", {"mesh__fsdp": 4}),
}
NOISE = 1.02  # of bytes that a new version of a compiler may need more


def summary(result: dict) -> dict:
    """What is deterministic of a compiled step."""
    (row,) = result["programs"]
    traffic: dict[str, dict] = {}
    for found in row["collectives"]:
        name = f"{found['kind']} {found['dtype']} {'+'.join(found['axes'])}"
        sums = traffic.setdefault(name, {"executions": 0, "bytes": 0})
        sums["executions"] += found["count"]
        sums["bytes"] += found["bytes"]
    return {
        "compiler": result["compiler"],
        "sent": round(sum(found["sent"] for found in row["collectives"])),
        "collectives": dict(sorted(traffic.items())),
        "kernels": row["kernels"],
        "hbm_bytes": row["hbm_bytes"],
        "peak": row["peak"],
        "attention_buffers": row["attention_buffers"],
        "logit_buffers": row["logit_buffers"],
    }


def worse(new: dict, old: dict) -> list[str]:
    """In what a summary is worse than another; empty if in nothing."""
    found = [
        f"{key}: {new[key]:,} bytes, were {old[key]:,}"
        for key in ("sent", "hbm_bytes", "peak")
        if new[key] > NOISE * old[key]
    ]
    found += [
        f"{key}: {', '.join(new[key])}, were {', '.join(old[key]) or 'none'}"
        for key in ("attention_buffers", "logit_buffers")
        if len(new[key]) > len(old[key])
    ]
    found += [f"the kernel {name} is gone" for name in old["kernels"] if name not in new["kernels"]]
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_does_what_its_golden_summary_says(case, tmp_path, request):
    topology, fields = CASES[case]
    result = compiled_step(topology, tmp_path, **fields)
    new, file = summary(result), GOLDEN / f"{case}.json"
    if request.config.getoption("--update-golden"):
        file.write_text(json.dumps(new, indent=2) + "\n")
    old = json.loads(file.read_text())
    assert not worse(new, old)
    assert not new["attention_buffers"] and not new["logit_buffers"]
    if new["compiler"] == old["compiler"]:
        assert new == old, "the program is another one, and not worse: rerun with --update-golden"


@pytest.mark.parametrize("case", CASES)
def test_a_step_has_the_collectives_of_its_mesh_alone(case):
    """From the golden summary, which the test above compares with the program."""
    sizes = {key.removeprefix("mesh__"): n for key, n in CASES[case][1].items() if "mesh__" in key}
    axes = {axis for axis, size in sizes.items() if size > 1}
    old = json.loads((GOLDEN / f"{case}.json").read_text())
    along = {axis for name in old["collectives"] for axis in name.split()[-1].split("+")}
    assert along == axes
    weights = [name for name in old["collectives"] if name.startswith("all-gather bf16")]
    assert bool(weights) == ("fsdp" in axes)


def test_a_summary_that_is_worse_says_in_what():
    old = {
        "sent": 100, "hbm_bytes": 100, "peak": 100, "kernels": {"tpu_custom_call": 4},
        "attention_buffers": [], "logit_buffers": ["f32[8,384,6144]"],
    }  # fmt: skip
    assert worse(old, old) == []
    better = {**old, "sent": 90, "logit_buffers": []}
    assert worse(better, old) == []
    bad = {**old, "peak": 110, "kernels": {}, "attention_buffers": ["f32[2,8,384,384]"]}
    assert worse(bad, old) == [
        "peak: 110 bytes, were 100",
        "attention_buffers: f32[2,8,384,384], were none",
        "the kernel tpu_custom_call is gone",
    ]
