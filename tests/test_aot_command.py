"""`loopjax compile` up to the compilers; tests/aot runs these."""

import importlib.util
import json
import os
import types

import jax
import pytest

from loopjax import cost, devices, run
from loopjax.aot import compile as aot
from loopjax.aot import roofline, text, topologies
from loopjax.aot.collectives import Collective
from loopjax.aot.program import Program
from loopjax.cli import main as cli
from loopjax.errors import UserError
from tests.tiny_config import get_config

TINY = "tests/tiny_config.py"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5p", "must be CHIP:SHAPE"),
        ("v9:2x2", "chips are v4, v5e, v5p, v6e"),
        ("v5p:3x4x4", "slices of v5p are 2x2x1"),
        ("v5p:8x4x4", "in ascending order"),
        ("v5p:16x16x32", "up to 16x16x24"),
        ("v5e:3x3", "slices of v5e are 1x1, 2x2"),
        ("v5e:2x2,slices=0", "slices must be at least 1"),
        ("h100:8", "h100:HOSTSxGPUS"),
        ("h100:1x16", "1 to 8 GPUs"),
        ("h100:1x8,slices=2", "h100:HOSTSxGPUS"),
    ],
)
def test_a_topology_that_does_not_exist_is_one_sentence(name, said, capsys):
    assert cli.main(["compile", f"--config={TINY}", f"--topology={name}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"loopjax compile: --topology={name}") and line.count("\n") == 1
    assert said in line


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("v5p:4x4x4", "libtpu", "aot"), ("h100:1x8", "jax_cuda13_plugin", "gpu")],
)
def test_without_a_compiler_the_extra_is_named(name, package, extra, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))  # restored
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    assert cli.main(["compile", f"--config={TINY}", f"--topology={name}"]) == 2
    assert f"--topology={name} needs pip install 'loopjax[{extra}]'" in capsys.readouterr().err


def here(chip="v5e") -> topologies.Topology:
    """The 8 fake CPU devices as a topology."""
    return topologies.Topology("8 CPU devices", devices.CHIPS[chip], jax.devices(), "jax")


def growing():
    config = get_config()
    config.update({"steps": 20, "depth": "4", "batch_size": 8, "seq_len": 32, "eval_batches": 1})
    config.growth.update({"operator": "lidas", "block": 2})
    config.mesh.update({"data": 2, "fsdp": 4, "tensor": 1})
    config.cooldown.update({"steps": 4, "depth": "1-1x2-2"})
    return config


@pytest.fixture(scope="module")
def result():
    return aot.compile_run(growing(), here())


@pytest.mark.slow
def test_every_program_of_every_phase_is_compiled(result):
    found = [(row["start"], row["plan"], row["program"]) for row in result["programs"]]
    (first, second, third) = (phase.start for phase in run.outline(growing()).phases)
    assert found == [
        (first, "2", "update"),
        (first, "2", "evaluation"),
        (second, "4", "growth"),
        (second, "4", "update"),
        (second, "4", "evaluation"),
        (third, "1-1x2-2", "update"),
        (third, "1-1x2-2", "evaluation"),
    ]
    assert not any(row["unknown_loops"] for row in result["programs"])
    json.dumps(result)


def test_the_estimate_beside_the_peak_is_that_of_the_plan(result):
    plan = cost.plan_of(growing(), cost.Machine.of("v5e", 8, 0.4))
    updates = [row for row in result["programs"] if row["program"] == "update"]
    assert [row["estimate"] for row in updates] == [row["peak"] for row in plan["phases"]]


def test_the_compiled_update_is_that_of_the_run(result):
    """Its arguments are the state and the batch of the run; its FLOPs those of the formula."""
    placed = run.place(run.outline(growing()))
    row = next(row for row in result["programs"] if row["program"] == "update")
    state = aot._state(placed, placed.phases[0])
    tokens = 2 * 4 * 8 * 32 // 8  # inputs and targets, rows over data and fsdp
    assert row["arguments"] == aot.shard_bytes(state) + tokens
    assert row["flops"] == placed.flops_per_step(placed.phases[0])
    # The CPU computes attention in chunks of queries, here one, and no layer twice.
    assert row["product_flops"] == pytest.approx(row["flops"] / 8, rel=0.01)


def test_one_phase_and_one_program_can_be_chosen():
    rows = aot.compile_run(growing(), here(), ("evaluation",), "last")["programs"]
    assert [(row["plan"], row["program"]) for row in rows] == [("1-1x2-2", "evaluation")]
    with pytest.raises(UserError, match="--phase=3 must be all, last, or a number from 0 to 2"):
        aot.compile_run(growing(), here(), phase="3")
    with pytest.raises(UserError, match="--phase=0 has no program of --programs=growth"):
        aot.compile_run(growing(), here(), ("growth",), "0")


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_compiled():
    config = growing()
    config.mesh.fsdp = 3
    with pytest.raises(UserError, match=r"data=2, fsdp=3.*multiplies to 6, but 8 devices"):
        aot.compile_run(config, here(), began=pytest.fail)


def test_the_tables_name_what_does_not_fit(result):
    shown = text.text(result)
    assert "fits: the peak is" in shown and "update of plan 4, per step and device:" in shown
    rows = [*result["programs"][:1], {**result["programs"][1], "fits": False}]
    assert "does NOT fit in 16.0 GB: evaluation of plan 2, peak" in text.text(
        {**result, "programs": rows}
    )
    failed = {"start": 0, "plan": "2", "program": "update", "fits": False, "error": "too large"}
    shown = text.text({**result, "programs": [failed]})
    assert "does NOT fit in 16.0 GB: update of plan 2, too large" in shown


def collective(kind="all-gather", devices=16, domains=2, size=16_000_000_000):
    return Collective(kind, "bf16", ("fsdp",), devices, domains, size, 1, False, "")


def test_the_roofline_names_the_resource_that_takes_longest():
    """16 GPUs on 2 hosts gather 16 GB: each sends 14 GB by NVLink and 1 GB by the network."""
    program = Program([collective()], {}, 335_000_000_000, 0, set(), [])
    chip = devices.CHIPS["h100"]
    line = roofline.roofline(program, chip, 98.9e12)
    assert line.interconnect == pytest.approx(14 / 450)
    assert line.network == pytest.approx(1 / 50)
    assert (line.compute, line.hbm) == pytest.approx((0.1, 0.1))
    assert line.mfu_bound == pytest.approx(1.0)
    slow = roofline.roofline(program, devices.CHIPS["a100"], 98.9e12)
    assert slow.binds == "compute"
    reduced = Program([collective("all-reduce", size=32 * 10**9)], {}, 0, 0, set(), [])
    twice = roofline.roofline(reduced, chip, 1e12)
    assert twice.interconnect == pytest.approx(56 / 450) and twice.binds == "interconnect"
    assert twice.mfu_bound == pytest.approx(1e12 / 989e12 / (56 / 450))


def test_recomputed_products_take_time_but_are_no_model_flops():
    program = Program([], {}, 0, 200 * 10**12, set(), [])
    line = roofline.roofline(program, devices.CHIPS["v5e"], 150e12)
    assert line.compute == pytest.approx(200 / 197)
    assert line.mfu_bound == pytest.approx(0.75)


def test_domains_are_hosts_of_gpus_and_slices_of_tpus():
    device = types.SimpleNamespace(process_index=3, slice_index=1)
    assert topologies.Topology("", devices.CHIPS["h100"], [device], "").domain(device) == 3
    assert topologies.Topology("", devices.CHIPS["v5p"], [device], "").domain(device) == 1


def test_a_command_line_without_a_topology_asks_for_one(capsys):
    assert cli.main(["compile", f"--config={TINY}"]) == 2
    assert "--topology is missing" in capsys.readouterr().err
