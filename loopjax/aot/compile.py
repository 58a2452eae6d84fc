"""The programs of a run, compiled for devices that are not there: `loopjax compile`.

Nothing is allocated, and no data is opened. Each program is the one that the run executes; what it
does is read from its text (`program.py`).
"""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable

import jax

from loopjax import flops, kernels, losses, run, surgery
from loopjax.aot.program import Program
from loopjax.aot.roofline import roofline
from loopjax.aot.topologies import Topology
from loopjax.curriculum import Phase
from loopjax.errors import UserError
from loopjax.memory import shard_bytes, step_memory
from loopjax.run import Placed
from loopjax.step import abstract_state, eval_step


def compile_run(
    config,
    topology: Topology,
    programs: tuple[str, ...] = ("update", "evaluation", "growth"),
    phase: str = "all",
    began: Callable[[str], None] = lambda name: None,
    dump: Callable[[str, str], None] = lambda name, text: None,
) -> dict:
    """Compiles the programs of a config; the result is the output of `loopjax compile --json`.

    Args:
      config: a config as of `config.default`.
      topology: the devices.
      programs: some of the three. Growth is that to a phase, from the one before it.
      phase: "all", or the number of a phase, from 0; "last" for the last one.
      began: called with the name of a program before it is compiled.
      dump: called with the name of a program and its text.

    Raises UserError for a config that is invalid or does not fit the topology.
    """
    with kernels.traced_for(topology.chip.platform):
        placed = run.place(run.outline(config), topology.devices)
    jobs = _jobs(placed, _chosen(placed.phases, phase), programs)
    if not jobs:
        raise UserError(f"--phase={phase} has no program of --programs={','.join(programs)}")
    result = _describe(placed, topology)
    for (start, plan, program), job in jobs.items():
        began(f"{program} of plan {plan}")
        row = {"start": start, "plan": str(plan), "program": program}
        try:
            row |= job(topology, functools.partial(dump, f"{start}-{program}"))
        except _DoesNotFit as error:
            row |= {"fits": False, "error": str(error)}
        result["programs"].append(row)
    return result


def _jobs(placed: Placed, numbers: list[int], programs: tuple[str, ...]) -> dict:
    """{(start of the phase, plan, program): function that compiles it}, each program once."""
    jobs, known = {}, set()
    for number in numbers:
        phase = placed.phases[number]
        of_phase = {}
        if phase.order is not None:
            of_phase["growth"] = functools.partial(
                _growth, placed, placed.phases[number - 1], phase
            )
        of_phase["update"] = functools.partial(_update, placed, phase)
        if placed.config.eval_batches:
            of_phase["evaluation"] = functools.partial(_evaluation, placed, phase)
        for program, job in of_phase.items():
            key = (program, phase.plan, phase.order if program == "growth" else None)
            if program in programs and key not in known:
                known.add(key)
                jobs[phase.start, phase.plan, program] = job
    return jobs


def _chosen(phases: list[Phase], wanted: str) -> list[int]:
    """The numbers of the phases that `--phase` names."""
    last = len(phases) - 1
    if wanted in ("all", "last"):
        return list(range(last + 1)) if wanted == "all" else [last]
    if not wanted.isdecimal() or int(wanted) > last:
        raise UserError(f"--phase={wanted} must be all, last, or a number from 0 to {last}")
    return [int(wanted)]


def _describe(placed: Placed, topology: Topology) -> dict:
    config, chip = placed.config, topology.chip
    batch = math.prod(placed.mesh.shape[axis] for axis in dict(placed.rules)["batch"] or ())
    return {
        "topology": topology.name,
        "devices": len(topology.devices),
        "mesh": dict(placed.mesh.shape),
        "chip": {key: value for key, value in dataclasses.asdict(chip).items() if key != "kinds"},
        "batch_size": config.batch_size,
        "sequences_per_device": config.batch_size / batch,
        "seq_len": config.seq_len,
        "microbatches": config.microbatches,
        "remat": placed.cfg.remat,
        "dtype": placed.cfg.dtype,
        "compiler": topology.compiler,
        "programs": [],
    }


class _DoesNotFit(Exception):
    """The compiler needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A compiled program: bytes per device, seconds, and what it does."""

    peak: int
    temporary: int
    arguments: int
    seconds: float
    program: Program


def _update(placed: Placed, phase: Phase, topology: Topology, dump) -> dict:
    """One update."""
    state = _state(placed, phase)
    jitted = placed.jitted_update(phase.plan, state)
    lower = functools.partial(jitted.lower, state, _batch(placed))
    compiled = _compile(placed, topology, lower, dump)
    row = _row(placed, topology, compiled, placed.flops_per_step(phase))
    return {"estimate": _estimate(placed, phase, topology), **row}


def _estimate(placed: Placed, phase: Phase, topology: Topology) -> int:
    """The peak of an update that `loopjax plan` estimates without compiling."""
    config = placed.config
    shape = config.batch_size // config.microbatches, config.seq_len
    parts = (config.microbatches, placed.optimizer, placed.mesh, placed.rules)
    with kernels.traced_for(topology.chip.platform):
        more = {"ema": config.ema > 0, "added": losses.of(config)}
        return step_memory(placed.cfg, phase.plan, shape, *parts, **more).peak


def _evaluation(placed: Placed, phase: Phase, topology: Topology, dump) -> dict:
    """The evaluation of one batch."""
    jitted = jax.jit(functools.partial(eval_step, cfg=placed.cfg, plan=phase.plan))
    lower = functools.partial(jitted.lower, _state(placed, phase).params, _batch(placed))
    compiled = _compile(placed, topology, lower, dump)
    forward = flops.inference_flops_per_token(placed.cfg, phase.plan, placed.config.seq_len)
    return _row(placed, topology, compiled, forward * placed.tokens_per_step)


def _growth(placed: Placed, before: Phase, phase: Phase, topology: Topology, dump) -> dict:
    """The gathers of `surgery.grow`, leaf by leaf; each old leaf is freed after its own."""
    state = _state(placed, before)
    compiled: dict = {}
    held = peak = shard_bytes(state)
    stacked = [leaf for path, leaf in jax.tree.leaves_with_path(state) if surgery.on_stack(path)]
    for leaf in stacked:
        if leaf not in compiled:
            kind = leaf.shape, leaf.dtype, leaf.sharding, len(phase.order)
            lower = functools.partial(surgery.lower_gather, *kind)
            compiled[leaf] = _compile(placed, topology, lower, dump)
        grown = shard_bytes(leaf) * len(phase.order) // leaf.shape[0]
        peak = max(peak, held + grown + compiled[leaf].temporary)
        held += grown - shard_bytes(leaf)
    whole = _Compiled(
        peak=peak,
        temporary=max(gather.temporary for gather in compiled.values()),
        arguments=shard_bytes(state),
        seconds=sum(gather.seconds for gather in compiled.values()),
        program=Program.sequence([compiled[leaf].program for leaf in stacked]),
    )
    return _row(placed, topology, whole, 0)


def _state(placed: Placed, phase: Phase):
    parts = (placed.cfg, phase.plan.n_unique, placed.optimizer, placed.mesh, placed.rules)
    return abstract_state(*parts, ema=placed.config.ema > 0)


def _batch(placed: Placed) -> dict:
    shape = (placed.config.batch_size, placed.config.seq_len)
    tokens = jax.ShapeDtypeStruct(shape, "int32", sharding=placed.batch_sharding)
    return {"inputs": tokens, "targets": tokens}


def _compile(placed: Placed, topology: Topology, lower, dump) -> _Compiled:
    """Compiles what `lower` returns; raises _DoesNotFit if the compiler finds no place for it."""
    platform = topology.chip.platform
    begun = time.perf_counter()
    with run.on_mesh(placed), kernels.traced_for(platform):
        lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _DoesNotFit(_too_large(str(error))) from None
    seconds = time.perf_counter() - begun
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    dump(text)
    domains = [topology.domain(device) for device in placed.mesh.devices.flat]
    return _Compiled(
        peak=sizes.peak_memory_in_bytes,
        temporary=sizes.temp_size_in_bytes,
        arguments=sizes.argument_size_in_bytes,
        seconds=seconds,
        program=Program.of(text, dict(placed.mesh.shape), platform, domains),
    )


def _too_large(message: str) -> str:
    """What a compiler says of a program that does not fit, shortened."""
    used = re.search(r"Used ([\d.]+\w?) of ([\d.]+\w?) hbm", message)
    if used:
        return f"the program needs {used[1]} of {used[2]} HBM"
    return message.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")[:200]


def _row(placed: Placed, topology: Topology, compiled: _Compiled, model_flops: int) -> dict:
    """What a compiled program does, as JSON; `model_flops` are those of all devices, by formula."""
    program, chip = compiled.program, topology.chip
    line = roofline(program, chip, model_flops / len(topology.devices))
    return {
        "peak": compiled.peak,
        "temporary": compiled.temporary,
        "arguments": compiled.arguments,
        "fits": compiled.peak <= chip.memory,
        "compile_s": compiled.seconds,
        "flops": model_flops,
        "product_flops": program.product_flops,
        "hbm_bytes": program.hbm_bytes,
        "collectives": program.traffic(),
        "kernels": program.kernels,
        "attention_buffers": _attention_buffers(placed, program),
        "logit_buffers": _logit_buffers(placed, program),
        "unknown_loops": program.unknown_loops,
        "roofline": {
            **dataclasses.asdict(line),
            "seconds": line.seconds,
            "binds": line.binds,
            "mfu_bound": line.mfu_bound,
        },
    }


def _attention_buffers(placed: Placed, program: Program) -> list[str] | None:
    """Buffers [..., T, T], which flash attention never has; None if T is a size of the model too."""
    cfg, T = placed.cfg, placed.config.seq_len
    if T in (cfg.d_model, cfg.d_ff, cfg.n_heads * cfg.head_size, cfg.vocab_size):
        return None
    return [str(array) for array in program.square(T)]


def _logit_buffers(placed: Placed, program: Program) -> list[str]:
    """Buffers in float32 for the logits of all tokens of a microbatch on a device."""
    parts = {
        name: math.prod(placed.mesh.shape[a] for a in axes or ()) for name, axes in placed.rules
    }
    config = placed.config
    rows = config.batch_size // config.microbatches // parts["batch"]
    tokens = rows * (config.seq_len // parts["seq"])
    vocab = placed.cfg.vocab_size // parts["vocab"]
    return [str(array) for array in program.float32_logits(tokens, vocab)]
