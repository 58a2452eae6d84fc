"""`loopjax COMMAND ...`: finds the function of a command, and reports its errors."""

import contextlib
import dataclasses
import difflib
import importlib
import os
import select
import sys

from loopjax import ahead, paths
from loopjax.errors import UserError, first_line
from loopjax.progress import print_line

# Exit codes by the convention of shells, 128 + signal.
INTERRUPTED = 130  # of a command that Ctrl-C stopped
READER_GONE = 141  # of a command whose output nobody reads any more


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `loopjax`.

    Attributes:
      function: "module:function" below `loopjax.cli`; takes the arguments, returns the exit code.
      phrase: one line for `loopjax --help`.
    """

    function: str
    phrase: str

    def run(self, argv: list[str]) -> int:
        # Imported here: `loopjax --help` takes milliseconds, and JAX must not be initialized
        # before the processes of a run have met.
        module, _, function = self.function.partition(":")
        return getattr(importlib.import_module(f"loopjax.cli.{module}"), function)(argv)


GROUPS = {
    "Train": {
        "train": Command("training:train", "train a model, or resume a stopped run"),
        "finetune": Command("training:finetune", "fine-tune a checkpoint on prompts and answers"),
        "sweep": Command("sweep:sweep", "train every run of a sweep, locally or on a cluster"),
        "results": Command("results:results", "collect runs in a table and plot trade-offs"),
        "scaling": Command("scaling:scaling", "fit scaling laws: worth of loops, of compute"),
    },
    "Plan": {
        "flops": Command("planning:flops", "count parameters and FLOPs of a config"),
        "plan": Command("planning:plan", "estimate sharding, memory and time of a config"),
        "compile": Command("compiling:compile_", "compile a config for TPUs or GPUs not present"),
    },
    "Data": {
        "prepare": Command("data:prepare", "tokenize text into shards"),
        "data": Command("data:data", "show prepared data: counts and samples"),
    },
    "Evaluate": {
        "eval": Command("evals:evaluate", "run tasks of lm-evaluation-harness"),
        "icl": Command("evals:icl", "measure accuracy against the number of shots"),
        "nll": Command("evals:nll", "measure held-out negative log-likelihood"),
        "generate": Command("evals:generate", "generate text from a prompt"),
    },
    "Analyze": {
        "analyze": Command("analysis:analyze", "run diagnostics of depth: norms, effects, ..."),
        "intervene": Command("analysis:intervene", "swap, skip, reverse or repeat layers"),
        "inspect": Command("weights:inspect", "show the weights of a checkpoint, or compare two"),
        "report": Command("report:report", "compare models in one HTML page"),
    },
    "Convert": {
        "import-hf": Command("interop:import_hf", "convert a Hugging Face model to a checkpoint"),
        "import-orbax": Command(
            "interop:import_orbax", "convert another program's Orbax checkpoint to a checkpoint"
        ),
        "export-hf": Command("interop:export_hf", "convert a checkpoint to a Hugging Face model"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns 0 on success, 2 for a mistake of the user, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    name = argv[0]
    try:
        return _command(name).run(argv[1:])
    except UserError as error:
        print_line(f"loopjax {name}: {error}")
        return INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else 2
    except MemoryError as error:
        print_line(f"loopjax {name}: this machine has too little memory: {first_line(error)}")
        return 2
    except BrokenPipeError:
        if _stdout_is_read():
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return READER_GONE
    except OSError as error:
        if not str(error.filename).startswith(paths.BUCKETS):
            raise
        print_line(f"loopjax {name}: {error.filename} cannot be read or written: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        print_line(f"loopjax {name}: interrupted; files already written are kept")
        return INTERRUPTED


def _stdout_is_read() -> bool:
    """Whether somebody still reads standard output: not after `loopjax results DIR | head -1`."""
    poll = select.poll()
    poll.register(1, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def _command(name: str) -> Command:
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    return COMMANDS[name]


def usage() -> str:
    """The text of `loopjax --help`: commands by group, phrases in one column."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: loopjax COMMAND [OPTIONS]"]
    for title, commands in GROUPS.items():
        lines += ["", title]
        lines += [f"  {name:<{width}}{command.phrase}" for name, command in commands.items()]
    return "\n".join([*lines, "", "Run `loopjax COMMAND --help` for the options of a command."])


def run() -> None:
    """The entry point of the console script `loopjax`."""
    _open_standard_streams()
    code = main()
    if code or ahead.in_progress():
        # An interpreter that ends while XLA compiles in another thread waits for it or crashes, and
        # one that has lost the other processes of its run waits for them.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(0)


def _open_standard_streams() -> None:
    """Opens closed standard streams (`2>&-`): else a file of the run would get their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            setattr(sys, name, open(file, "w" if number else "r"))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
