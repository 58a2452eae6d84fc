"""The cost of a run before it starts: `loopjax flops` and `loopjax plan`.

Nothing is allocated or compiled, no data is opened, and the devices need not exist.
"""

import dataclasses
import math

import jax

from loopjax import devices, flops, kernels, losses, memory, run, sharding
from loopjax.depth import DepthPlan
from loopjax.loop_config import LoopConfig
from loopjax.optim import make_optimizer
from loopjax.step import abstract_state
from loopjax.text_table import aligned, quantity, span


def flops_of(config) -> dict:
    """Parameters and FLOPs of a config's curriculum, compared with the standard model's.

    The standard model has as many unique layers as `config.depth` executes, and trains at full depth
    for all steps. Keys are those of `loopjax flops --json`; FLOPs follow the formula in
    `flops.training_flops_per_token`.
    """
    outline = run.outline(config)
    config, phases, cfg = outline.config, outline.phases, outline.cfg
    plan, standard = phases[-1].plan, standard_plan(outline.plan)
    rows = [
        {
            "start": phase.start,
            "stop": phase.stop,
            "plan": str(phase.plan),
            "operator": phase.operator,
            "params_unique": flops.count_params(cfg, phase.plan.n_unique),
            "training_flops_per_step": flops.training_flops(cfg, phase.plan, config),
        }
        for phase in phases
    ]
    total, causal = _training_flops(outline), _training_flops(outline, causal=True)
    plain = dataclasses.replace(cfg, loop=LoopConfig())
    alone = config.steps * flops.training_flops(plain, standard, config)
    return {
        "plan": str(plan),
        "params_unique": flops.count_params(cfg, plan.n_unique),
        "params_effective": flops.count_params(plain, plan.n_effective),
        "inference_flops_per_token": flops.inference_flops_per_token(cfg, plan, config.seq_len),
        "steps": config.steps,
        "tokens": config.steps * config.batch_size * config.seq_len,
        "training_flops": total,
        "training_flops_causal": causal,
        "training_pflops": total / 1e15,
        "phases": rows,
        "standard": {
            "plan": str(standard),
            "params_unique": flops.count_params(plain, standard.n_unique),
            "training_flops": alone,
            "training_pflops": alone / 1e15,
        },
        "training_flops_ratio": total / alone,
    }


def _training_flops(outline: run.Outline, *, causal: bool = False) -> int:
    """Training FLOPs of all phases; with `causal`, attention to earlier tokens only."""
    return sum(
        (phase.stop - phase.start)
        * flops.training_flops(outline.cfg, phase.plan, outline.config, causal=causal)
        for phase in outline.phases
    )


def _both(cost: dict) -> str:
    """The training FLOPs with attention to all tokens, and with causal attention, in words."""
    full, causal = (quantity(cost[f"training_flops{end}"], "FLOPs") for end in ("", "_causal"))
    return f"{full} over {cost['tokens']:,} tokens ({causal} with half of the attention, which is causal)"


def standard_plan(plan: DepthPlan) -> DepthPlan:
    """The plan of the standard model: as many executed layers as `plan`, all unique."""
    return DepthPlan.of([(plan.n_effective, 1)])


def flops_text(cost: dict) -> str:
    """The table of `loopjax flops`."""
    head = ["steps", "plan", "operator", "parameters", "per token", "training"]
    per_step = cost["tokens"] // cost["steps"]
    rows = [
        [
            f"{row['start']:,}..{row['stop']:,}",
            row["plan"],
            row["operator"],
            f"{row['params_unique']:,}",
            quantity(row["training_flops_per_step"] / per_step, "FLOPs"),
            quantity((row["stop"] - row["start"]) * row["training_flops_per_step"], "FLOPs"),
        ]
        for row in cost["phases"]
    ]
    standard = cost["standard"]
    lines = [
        *aligned([head, *rows], left=3),
        "",
        f"training      {_both(cost)}",
        f"inference     {quantity(cost['inference_flops_per_token'], 'FLOPs')} per token",
        f"parameters    {cost['params_unique']:,} unique, {cost['params_effective']:,} executed",
        f"standard {standard['plan']:<4} {quantity(standard['training_flops'], 'FLOPs')}, "
        f"{standard['params_unique']:,} parameters: this run takes "
        f"{cost['training_flops_ratio']:.2%} of the FLOPs and "
        f"{cost['params_unique'] / standard['params_unique']:.2%} of the parameters",
    ]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to plan for.

    Attributes:
      devices: number of devices.
      device: name of the chip, in `devices.CHIPS` or free.
      memory: bytes per device; 0 to skip the check.
      peak_flops: FLOP/s per device.
      mfu: model FLOPs utilization: the fraction of the peak that training reaches.
      platform: "gpu", "tpu" or "cpu", which differ in the implementation of attention.
    """

    devices: int
    device: str
    memory: int
    peak_flops: float
    mfu: float
    platform: str

    @classmethod
    def of(cls, device: str, n: int, mfu: float) -> "Machine":
        """`n` devices of a name in `devices.CHIPS`; raises UserError for another name."""
        chip = devices.named(device)
        return cls(n, device.lower(), chip.memory, chip.peak_flops, mfu, chip.platform)


def plan_of(config, machine: Machine, *, causal: bool = False) -> dict:
    """Sharding, bytes per device and time of a config on a machine, phase by phase.

    Args:
      causal: whether the FLOPs that take the time are those with causal attention, half of that to
        all tokens; `machine.mfu` has to be of the same convention.
    """
    outline = run.outline(config)
    config, phases, cfg = outline.config, outline.phases, outline.cfg
    mesh = sharding.abstract_mesh(config.mesh, machine.devices)
    rules, optimizer = sharding.axis_rules(config.mesh), make_optimizer(config)[0]
    batch = config.batch_size // config.microbatches
    sharding.check_divisible(cfg, batch, mesh, rules, config.seq_len)
    with kernels.traced_for(machine.platform):
        run.attention_note(outline, mesh, rules)
    speed = machine.devices * machine.peak_flops * machine.mfu

    def size_of(plan: DepthPlan, microbatches: int) -> memory.StepMemory:
        shape = config.batch_size // microbatches, config.seq_len
        with kernels.traced_for(machine.platform):
            parts = cfg, plan, shape, microbatches, optimizer, mesh, rules
            return memory.step_memory(*parts, ema=config.ema > 0, added=losses.of(config))

    def cost(plan: DepthPlan, steps: int) -> dict:
        size = size_of(plan, config.microbatches)
        seconds = flops.training_flops(cfg, plan, config, causal=causal) / speed
        row = {"plan": str(plan), "steps": steps, **dataclasses.asdict(size)}
        return {**row, "step_s": seconds, "hours": steps * seconds / 3600}

    rows = [{"start": p.start, **cost(p.plan, p.stop - p.start)} for p in phases]
    largest = max(rows, key=lambda row: row["peak"])
    params = abstract_state(cfg, phases[-1].plan.n_unique, optimizer, mesh, rules).params
    batch_devices = math.prod(mesh.shape[axis] for axis in dict(rules)["batch"] or ())
    return {
        **dataclasses.asdict(machine),
        "mesh": dict(mesh.shape),
        "sequences_per_device": config.batch_size // batch_devices,
        "seq_len": config.seq_len,
        "microbatches": config.microbatches,
        "remat": cfg.remat,
        "shardings": [_sharding(path, leaf) for path, leaf in jax.tree.leaves_with_path(params)],
        "phases": rows,
        "peak": largest["peak"],
        "microbatches_that_fit": machine.memory
        and next(
            (
                m
                for m in _finer(config.microbatches, config.batch_size // batch_devices)
                if size_of(DepthPlan.parse(largest["plan"]), m).peak <= machine.memory
            ),
            None,
        ),
        "training_flops": _training_flops(outline),
        "training_flops_causal": _training_flops(outline, causal=True),
        "causal": causal,
        "hours": sum(row["hours"] for row in rows),
        "tokens": config.steps * config.batch_size * config.seq_len,
        "standard": cost(standard_plan(outline.plan), config.steps),
    }


def _finer(microbatches: int, sequences: int):
    """`microbatches` and its doublings, as long as they divide the sequences per device."""
    while sequences % microbatches == 0:
        yield microbatches
        microbatches *= 2


def _sharding(path, leaf) -> dict:
    spec = [list(axes) if isinstance(axes, tuple) else axes for axes in leaf.sharding.spec]
    return {
        "path": jax.tree_util.keystr(path, simple=True, separator="/"),
        "shape": list(leaf.shape),
        "dtype": leaf.dtype.name,
        "axes": spec + [None] * (len(leaf.shape) - len(spec)),
        "shape_per_device": list(leaf.sharding.shard_shape(leaf.shape)),
    }


def plan_text(plan: dict) -> str:
    """The tables of `loopjax plan`."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    lines = [
        f"{plan['devices']} x {plan['device']} ({mesh}); per step and device {plan['sequences_per_device']} "
        f"sequence{'s' * (plan['sequences_per_device'] > 1)} of {plan['seq_len']:,} tokens in {plan['microbatches']} microbatch"
        f"{'es' * (plan['microbatches'] > 1)}, remat={plan['remat']}",
        "",
    ]
    rows = [["parameter", "dtype", "shape", "axes", "per device"]]
    for leaf in plan["shardings"]:
        axes = ", ".join("+".join(a) if isinstance(a, list) else a or "-" for a in leaf["axes"])
        shapes = (" x ".join(map(str, leaf[key])) for key in ("shape", "shape_per_device"))
        shape, per_device = shapes
        rows.append([leaf["path"], leaf["dtype"], shape, axes, per_device])
    lines += [*aligned(rows, left=5), "", "memory per device:"]
    parts = ("parameters", "optimizer", "gradients", "activations", "peak")
    rows = [["from step", "plan", *parts, "per step", "total"]]
    for row in [*plan["phases"], {**plan["standard"], "start": "standard"}]:
        start = row["start"] if isinstance(row["start"], str) else f"{row['start']:,}"
        sizes = [quantity(row[part], "B") for part in parts]
        rows.append([start, row["plan"], *sizes, span(row["step_s"]), span(3600 * row["hours"])])
    lines += aligned(rows, left=2)
    standard = plan["standard"]
    lines += [
        "",
        f"{span(3600 * plan['hours'])} for {plan['tokens']:,} tokens, at {plan['mfu']:.0%} of "
        f"{quantity(plan['peak_flops'], 'FLOP/s')} per device: {plan['hours'] / standard['hours']:.1%} "
        f"of the standard model's time, {plan['peak'] / standard['peak']:.1%} of its memory",
        f"{_both(plan)}; the time is by the {'second' if plan['causal'] else 'first'}",
    ]
    if plan["memory"]:
        peak = f"the peak is {quantity(plan['peak'], 'B')} of {quantity(plan['memory'], 'B')}"
        fits = plan["peak"] <= plan["memory"]
        lines.append(f"fits: {peak}" if fits else f"does NOT fit: {peak}; {_more_room(plan)}")
    return "\n".join(lines)


def _more_room(plan: dict) -> str:
    """Changes that may make the run fit."""
    if plan["microbatches_that_fit"]:
        return f"config.microbatches={plan['microbatches_that_fit']} fits"
    ways = ["config.model.remat=full"] if plan["remat"] != "full" else []
    ways += ["a larger config.mesh.fsdp"] if plan["mesh"]["data"] > 1 else []
    return "no number of microbatches fits; try " + ", ".join([*ways, "more devices"])
