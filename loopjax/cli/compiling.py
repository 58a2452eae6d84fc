"""Command line of `loopjax compile`."""

import json
import pathlib
import re

from absl import flags

from loopjax import outputs, paths
from loopjax.aot import topologies
from loopjax.cli.arguments import say
from loopjax.errors import UserError

PROGRAMS = ("update", "evaluation", "growth")
_TOPOLOGY = "--topology"


def compile_(argv: list[str]) -> int:
    """Compile the programs of a config for TPUs or GPUs that need not be present.

    The compilers run on any machine; nothing is allocated, and no data is read. A program takes a
    minute or two. Printed are memory, collectives, kernels, and the least time that the chip allows.
    Topologies are TPU slices (v5p:4x4x4, v5e:16x16, v6e:8x8, several as v5p:4x4x4,slices=2) and GPUs,
    hosts x GPUs of each (h100:1x8, h200:2x8).

    Example:
      loopjax compile --config=configs/smollm.py:1.7b,lidas --topology=v5p:4x4x4 --phase=last
    """
    name = _given(argv)
    if name is not None:
        topologies.set_environment(name)  # before JAX is imported
    from loopjax.config_flags import parse

    def define(values):
        one = {"flag_values": values}
        flags.DEFINE_string("topology", None, "TPU slice, or hosts x GPUs", **one)
        flags.DEFINE_string(
            "phase", "all", "phases to compile: all, last, or a number from 0", **one
        )
        flags.DEFINE_string("programs", ",".join(PROGRAMS), "programs to compile", **one)
        flags.DEFINE_string(
            "json", None, "file for the result as JSON; - for standard output", **one
        )
        flags.DEFINE_string("dump", None, "directory for the texts of the programs (HLO)", **one)

    config, values = parse("compile", compile_.__doc__, argv, define, required=["topology"])
    _check(values)
    topologies.require_compiler(name)
    topology = topologies.topology(name)  # before what `run.py` imports
    from loopjax.aot import compile as aot
    from loopjax.aot.text import text

    def dump(name: str, program: str) -> None:
        if values.dump is not None:
            outputs.write_text(pathlib.Path(values.dump) / f"{name}.hlo.txt", program)

    def began(name: str) -> None:
        say(f"compiling {name} for {topology.name}")

    programs = tuple(values.programs.split(","))
    result = aot.compile_run(config, topology, programs, values.phase, began, dump)
    if values.json == "-":
        print(json.dumps(result))
    else:
        if values.json is not None:
            outputs.write_json(values.json, result)
        print(text(result))
    return 0


def _check(values) -> None:
    """Raises UserError for what can be seen to be wrong before anything is compiled."""
    if not set(values.programs.split(",")) <= set(PROGRAMS):
        raise UserError(
            f"--programs={values.programs} must be some of {', '.join(PROGRAMS)}, with commas between"
        )
    if not re.fullmatch(r"all|last|\d+", values.phase):
        raise UserError(f"--phase={values.phase} must be all, last, or a number from 0")
    if values.json not in (None, "-"):
        outputs.check_file(paths.local(values.json, "--json"), "--json")
    if values.dump is not None:
        outputs.check_directory(paths.local(values.dump, "--dump"), "--dump")


def _given(argv: list[str]) -> topologies.Name | None:
    """The topology of a command line; None if it names none, or asks for help."""
    if any(arg in ("-h", "--help") or arg.startswith("--help") for arg in argv):
        return None
    for arg, after in zip(argv, [*argv[1:], ""], strict=True):
        if arg == _TOPOLOGY:
            return topologies.read(after)
        if arg.startswith(_TOPOLOGY + "="):
            return topologies.read(arg.partition("=")[2])
    return None
