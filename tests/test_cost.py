import argparse
import dataclasses
import functools
import json
import pathlib
import types

import jax
import pytest

from loopjax import (
    cost,
    devices,
    flops,
    kernels,
    losses,
    memory,
    run,
    sharding,
    step,
    step_metrics,
)
from loopjax.cli import arguments
from loopjax.cli import main as cli
from loopjax.config_flags import parse
from loopjax.depth import DepthPlan
from loopjax.loop_config import LoopConfig
from loopjax.optim import make_optimizer

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
SMOLLM = str(CONFIGS / "smollm.py")


def load(variant, *flags):
    return parse("flops", "", [f"--config={SMOLLM}:{variant}", *flags])[0]


# --- FLOPs -------------------------------------------------------------------------------------


def test_the_flops_are_those_of_table_7():
    standard, grown = (cost.flops_of(load(f"1.7b,{row}")) for row in ("baseline", "lidas"))
    assert round(standard["training_pflops"], 3) == 4813222.102
    assert grown["training_pflops"] == pytest.approx(3736608.182, rel=1e-4)
    assert 1 / grown["training_flops_ratio"] == pytest.approx(1.288, abs=5e-4)
    small = cost.flops_of(load("360m,midas"))
    assert 1 / small["training_flops_ratio"] == pytest.approx(1.289, abs=5e-4)


def test_a_loop_costs_the_flops_of_its_effective_depth_and_the_parameters_of_its_layers():
    loop, short = (cost.flops_of(load(f"1.7b,{row}")) for row in ("loop-4x6", "standard-4"))
    assert loop["training_flops_ratio"] == 1.0 == short["training_flops_ratio"]
    assert loop["params_unique"] == short["params_unique"]
    assert loop["params_effective"] == loop["standard"]["params_unique"] > 4 * loop["params_unique"]
    assert loop["inference_flops_per_token"] > 4 * short["inference_flops_per_token"]


def test_a_retrofit_is_counted_at_its_own_depth_from_the_cooldown_on():
    plain, looped = (
        cost.flops_of(load(f"1.7b,lidas,nemotron{plan}")) for plan in ("", ",8-4x2-12")
    )
    assert [row["plan"] for row in looped["phases"]] == [
        "4",
        "8",
        "12",
        "16",
        "20",
        "24",
        "8-4x2-12",
    ]
    per_step = [c["phases"][-1]["training_flops_per_step"] for c in (plain, looped)]
    extra = 30_000 * (per_step[1] - per_step[0])
    assert looped["training_flops"] - plain["training_flops"] == extra > 0


def test_flops_on_the_command_line(capsys):
    assert cli.main(["flops", f"--config={SMOLLM}:1.7b,lidas", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert {"params_unique", "params_effective", "inference_flops_per_token", "training_flops",
            "training_pflops", "phases"} <= set(out)  # fmt: skip
    assert cli.main(["flops", f"--config={SMOLLM}:1.7b,lidas"]) == 0
    text = capsys.readouterr().out
    assert "8,095..24,286" in text and "77.63% of the FLOPs and 100.00% of the parameters" in text


def test_costs_of_a_small_run_are_in_units_that_fit(capsys):
    tiny = [f"--config={CONFIGS / 'tiny.py'}:loop", "--config.steps=10"]
    assert cli.main(["flops", *tiny]) == 0
    text = capsys.readouterr().out
    assert "GFLOPs over" in text and "MFLOPs per token" in text and " 0.0" not in text
    assert cli.main(["plan", *tiny]) == 0
    memory = capsys.readouterr().out.partition("memory per device:")[2]
    assert " MB" in memory and " 0.0 " not in memory


def test_the_utilization_is_given_with_attention_counted_whole_and_half():
    """From the products of a step: matrices, and attention to all tokens or to those before."""
    planned = run.outline(load("360m,loop-4x8"))
    config, cfg, plan = planned.config, planned.cfg, planned.phases[-1].plan
    D, T, tokens = cfg.n_heads * cfg.head_size, config.seq_len, config.batch_size * config.seq_len
    matrices = 2 * (32 * flops.layer_params(cfg) + cfg.vocab_size * cfg.d_model)
    attention = 32 * 2 * 2 * D * T  # scores and their product with the values, to T keys
    found = step_metrics.utilization(
        devices.CHIPS["h100"], 3.0, functools.partial(flops.training_flops, cfg, plan, config)
    )
    peak = 989e12 * jax.device_count() * 3.0
    assert found == {
        "mfu": pytest.approx(3 * (matrices + attention) * tokens / peak),
        "mfu_causal": pytest.approx(3 * (matrices + attention / 2) * tokens / peak),
    }
    assert step_metrics.utilization(None, 3.0, None) == {}


# --- memory ------------------------------------------------------------------------------------

SMALL = {"vocab_size": 1024, "d_model": 128, "d_ff": 512, "n_heads": 4, "n_kv_heads": 4}


ADAPTED = {"loop": {"inject": "concat", "norm": True}}


def compiled_bytes(config) -> int:
    """State and temporaries of one update on each device, as XLA reports them."""
    planned = run.plan_run(config)
    plan = planned.phases[-1].plan
    with run.on_mesh(planned):
        parts = (planned.cfg, plan.n_unique, planned.optimizer, planned.mesh, planned.rules)
        state = step.abstract_state(*parts)
        shape = (config.batch_size, config.seq_len)
        tokens = jax.ShapeDtypeStruct(shape, "int32", sharding=planned.batch_sharding)
        jitted = planned.jitted_update(plan, state)
        # Buffers are assigned after optimization, which the other tests switch off.
        options = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
        lowered = jitted.lower(state, {"inputs": tokens, "targets": tokens})
        sizes = lowered.compile(compiler_options=options).memory_analysis()
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "mesh", "settings", "model"),
    [
        ("8", {"data": 1, "fsdp": 8}, {}, {}),
        ("8", {"data": 2, "fsdp": 2, "tensor": 2}, {}, {"remat": "none", "n_kv_heads": 2}),
        ("2-2x3-2", {"data": 8}, {"microbatches": 2}, {"remat": "dots", "vocab_size": 4096}),
        ("1-1x4-1", {"data": 8}, {"losses": {"per_repetition": "mean"}}, {}),
        ("1-1x4-1", {"data": 8}, ADAPTED | {"losses": {"exit_gate": "joint"}}, {}),
        ("1-2x6-1", {"data": 8}, {"losses": {"jacobian": 1.0}}, {}),
    ],
)
def test_the_memory_estimate_is_within_15_percent_of_what_xla_reports(depth, mesh, settings, model):
    config = load("1.7b,baseline")
    config.mesh.update(mesh)
    config.model.update(SMALL | {"dtype": "float32", "remat": "full"} | model)
    config.update({"depth": depth, "batch_size": 32, "seq_len": 256, "eval_batches": 0} | settings)
    config.mixture = {"stdlib": 1.0}
    plan = cost.plan_of(config, cost.Machine(8, "any", 0, 1e12, 0.4, "cpu"))
    assert plan["peak"] == pytest.approx(compiled_bytes(config), rel=0.15)


@pytest.mark.parametrize("plan", ["5", "2x3"])
def test_what_is_saved_grows_by_the_same_for_every_layer_executed(plan):
    config = load("1.7b,baseline")
    cfg = dataclasses.replace(run.outline(config).cfg, **SMALL)
    outside, per_layer = memory.saved_bytes(cfg, (2, 64), "gpu")
    with kernels.traced_for("gpu"):
        whole = memory._saved(cfg, DepthPlan.parse(plan), (2, 64))
    n = DepthPlan.parse(plan).n_effective
    assert whole == pytest.approx(outside + n * per_layer, rel=0.01)


@pytest.mark.parametrize(
    ("remat", "widths"), [("dots", 5 + 2 * 4), ("attention", 5), ("full", 1), ("offload", 0)]
)
def test_a_layer_saves_what_its_remat_policy_says(remat, widths):
    """Numbers per token, in widths; the FFN is four widths."""
    cfg = dataclasses.replace(run.outline(load("1.7b,baseline")).cfg, **SMALL, remat=remat)
    per_layer = memory.saved_bytes(cfg, (2, 64), "tpu")[1]
    assert per_layer == 2 * 64 * widths * cfg.d_model * 2  # bytes of bfloat16


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({"norm": True}, 2),  # its input in float32, two widths of bfloat16
        ({"final_norm": "between"}, 4),  # and what its scale multiplies
        ({"inject": "concat"}, 2),
        ({"inject": "add", "residual": "scaled", "own": 9}, 1),  # sums save nothing
        ({"norm": True, "repeats": "uniform:1:9", "backprop": 4}, 0),  # not of the number drawn
    ],
)
def test_a_repetition_saves_what_is_between_repetitions(options, widths):
    """Numbers per token, in widths, besides those of its layers."""
    cfg = dataclasses.replace(run.outline(load("1.7b,baseline")).cfg, **SMALL, remat="full")
    cfg = dataclasses.replace(cfg, loop=LoopConfig(**options))
    four, five = (
        memory.added_bytes(cfg, DepthPlan.parse(f"1-2x{n}-1"), (2, 64), "tpu", losses.NONE)
        for n in (4, 5)
    )
    assert five - four == pytest.approx(2 * 64 * widths * cfg.d_model * 2, rel=0.02)


@pytest.mark.parametrize(
    ("fields", "coda", "per_exit"),
    [
        (
            {"per_repetition": "mean"},
            0,
            3,
        ),  # the exit, what the final norm saves of it, its gradient
        ({"per_repetition": "mean"}, 2, 5),  # and the input of each layer after the loop
        ({"per_repetition": "random"}, 2, 0),  # one exit more, whatever the repetitions
    ],
)
def test_an_exit_saves_streams_and_the_layers_after_the_loop(fields, coda, per_exit):
    cfg = run.outline(load("1.7b,baseline")).cfg
    cfg = dataclasses.replace(cfg, **SMALL, remat="full", dtype="float32")
    end = f"-{coda}" if coda else ""
    four, five = (
        memory.added_bytes(
            cfg, DepthPlan.parse(f"1-2x{n}{end}"), (2, 64), "tpu", losses.Losses(**fields)
        )
        for n in (4, 5)
    )
    assert five - four == pytest.approx(2 * 64 * per_exit * cfg.d_model * 4, rel=0.02)


def test_one_repetition_with_a_gradient_is_counted_too():
    cfg = dataclasses.replace(run.outline(load("1.7b,baseline")).cfg, **SMALL, remat="full")
    found = []
    for backprop in (1, 2, 3):
        loop = LoopConfig(inject="concat", backprop=backprop)
        here = dataclasses.replace(cfg, loop=loop)
        found.append(
            memory.added_bytes(here, DepthPlan.parse("1-2x6"), (2, 64), "tpu", losses.NONE)
        )
    assert found[1] - found[0] == found[2] - found[1] > 0


def test_a_gate_alone_saves_little_and_block_cosine_a_gradient_more():
    config = load("1.7b,baseline")
    config.model.update(SMALL | {"remat": "full"})
    config.update({"depth": "2-2x6", "batch_size": 8, "seq_len": 256})
    machine = cost.Machine(8, "any", 0, 1e12, 0.4, "tpu")
    plain = cost.plan_of(config, machine)["phases"][0]
    config.losses.exit_gate = "gate"
    gate = cost.plan_of(config, machine)["phases"][0]
    assert gate["activations"] < plain["activations"] / 2
    # Hardly any tokens, so that the gradients are what there is.
    config.losses.exit_gate = ""
    config.update({"depth": "24", "seq_len": 8})
    plain = cost.plan_of(config, machine)["phases"][0]
    config.losses.block_cosine = 1.0
    found = cost.plan_of(config, machine)["phases"][0]
    state = sum(found[part] for part in ("parameters", "optimizer", "gradients"))
    assert found["peak"] > state + 0.9 * found["parameters"] > plain["peak"]


def test_what_the_plan_says_of_each_parameter_is_what_the_run_does():
    flags = ["--config.mesh.fsdp=2", "--config.mesh.tensor=4", "--config.depth=4-4x4-4"]
    config = load("1.7b,baseline", *flags)
    plan = cost.plan_of(config, cost.Machine.of("h100", 8, 0.4))
    outline = run.outline(config)
    config, cfg = outline.config, outline.cfg
    mesh, rules = sharding.make_mesh(config.mesh), sharding.axis_rules(config.mesh)
    real = step.abstract_state(cfg, 12, make_optimizer(config)[0], mesh, rules).params
    for leaf, row in zip(jax.tree.leaves(real), plan["shardings"], strict=True):
        assert list(leaf.sharding.shard_shape(leaf.shape)) == row["shape_per_device"]
    assert plan["phases"][0]["parameters"] == memory.shard_bytes(real)


@pytest.mark.parametrize("n", [8, 256])
def test_time_is_flops_over_what_the_devices_reach(n):
    config = load("1.7b,lidas")
    plan = cost.plan_of(config, cost.Machine(n, "any", 0, 990e12, 0.4, "gpu"))
    seconds = cost.flops_of(config)["training_flops"] / (n * 990e12 * 0.4)
    assert plan["hours"] == pytest.approx(seconds / 3600)
    assert plan["hours"] / plan["standard"]["hours"] == pytest.approx(0.7763, abs=1e-4)


def test_a_chip_is_planned_with_its_own_peak_memory_and_platform(capsys):
    command = ["plan", f"--config={SMOLLM}:1.7b,lidas", "--devices=32"]
    assert cli.main([*command, "--device=v5p", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["peak_flops"], plan["memory"], plan["platform"]) == (459e12, 95 * 10**9, "tpu")
    seconds = cost.flops_of(load("1.7b,lidas"))["training_flops"] / (32 * 459e12 * 0.4)
    assert plan["hours"] == pytest.approx(seconds / 3600)
    assert cli.main([*command, "--device=v5p", "--peak-tflops=100", "--memory=1TB"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("32 x v5p (") and "40% of 100 TFLOP/s per device" in text
    assert "of 1.00 TB" in text


def test_an_unknown_chip_is_answered_with_those_known(capsys):
    assert cli.main(["plan", f"--config={SMOLLM}:1.7b,lidas", "--device=v7"]) == 2
    said = capsys.readouterr().err
    assert said == f"loopjax plan: --device=v7 must be one of {', '.join(devices.CHIPS)}\n"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
    ],
)
def test_a_device_of_jax_is_found_by_its_kind(kind, name):
    assert devices.of(types.SimpleNamespace(device_kind=kind)) is devices.CHIPS[name]
    assert devices.of(types.SimpleNamespace(device_kind="cpu")) is None


@pytest.mark.slow
def test_the_plan_names_the_microbatches_that_fit(capsys):
    command = ["plan", f"--config={SMOLLM}:1.7b,standard-4", "--devices=8", "--memory=40GB"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "does NOT fit" in out
    number = out.rpartition("config.microbatches=")[2].split()[0]
    assert cli.main([*command, f"--config.microbatches={number}"]) == 0
    assert "\nfits: the peak is" in capsys.readouterr().out
    half = int(number) // 2
    assert cli.main([*command, f"--config.microbatches={half}"]) == 0
    assert "does NOT fit" in capsys.readouterr().out


def test_sizes_are_read_with_their_unit():
    assert [arguments.size(t) for t in ("80GB", "1.5TB", "2GiB")] == [
        80 * 10**9,
        15 * 10**11,
        2**31,
    ]
    for text in ("80", "GB", "-1GB", "nanGB"):
        with pytest.raises(argparse.ArgumentTypeError, match="invalid size .*80GB"):
            arguments.size(text)


# --- The ladders of 2609.19107 -------------------------------------------------------------------

# Steps, and FLOPs with causal attention, of the authors' runs d6, d8, ...
LADDERS = {
    "vanilla": (
        (1142, 1962, 3166, 4714, 6926, 9805, 13146, 17581),
        (3.2527e17, 1.0558e18, 2.9258e18, 6.7438e18, 1.4978e19, 3.0605e19, 5.5724e19, 1.0064e20),
    ),
    "loop": (
        (1370, 2355, 3799, 5656, 8311, 11766, 15775),
        (4.6478e17, 1.5993e18, 4.6074e18, 1.0330e19, 2.3550e19, 4.9068e19, 8.7240e19),
    ),
    "loop-grow": (
        (1488, 2563, 4160, 6202, 9098, 12950, 17355),
        (5.4530e17, 1.8709e18, 5.3817e18, 1.2065e19, 2.7490e19, 5.7266e19, 1.0181e20),
    ),
    "untied-grow": (
        (1826, 3341, 5647, 8311, 12633, 18289, 24068),
        (6.9905e17, 2.5422e18, 7.6637e18, 1.6956e19, 3.9867e19, 8.5097e19, 1.4864e20),
    ),
}  # fmt: skip


@pytest.mark.parametrize("arm", LADDERS)
def test_the_ladders_have_the_steps_and_the_flops_of_the_authors_runs(arm):
    file = CONFIGS / "scaling_exponents.py"
    for k, (steps, expected) in enumerate(zip(*LADDERS[arm], strict=True)):
        config = parse("flops", "", [f"--config={file}:{arm},d{6 + 2 * k}"])[0]
        found = cost.flops_of(config)
        assert found["steps"] == steps
        # Within a thousandth: they count T + 1 tokens of attention, here it is T.
        assert found["training_flops_causal"] == pytest.approx(expected, rel=1e-3)
        assert found["training_flops"] > 1.02 * found["training_flops_causal"]


@pytest.mark.slow
def test_both_conventions_are_printed_and_the_time_is_by_the_one_asked_for(capsys):
    line = ["plan", f"--config={CONFIGS / 'scaling_exponents.py'}:loop-grow,d6"]
    full, causal = (_json_of(capsys, [*line, "--json", *more]) for more in ([], ["--causal"]))
    assert full["training_flops"] == causal["training_flops"] > causal["training_flops_causal"]
    ratio = causal["training_flops_causal"] / causal["training_flops"]
    assert causal["hours"] / full["hours"] == pytest.approx(ratio, rel=1e-6)
    assert [row["plan"] for row in full["phases"]] == ["2-2x2-2", "2-2x4-2"]
    assert cli.main([*line, "--causal"]) == 0
    text = capsys.readouterr().out
    assert "545 PFLOPs with half of the attention" in text and "the time is by the second" in text


def _json_of(capsys, argv):
    assert cli.main(argv) == 0
    return json.loads(capsys.readouterr().out)
