"""The text of a compiled program, parsed: computations, instructions, and how often each runs.

`compiled.as_text()` is the program of one device in XLA's HLO text, after partitioning, fusion and
scheduling. A scan is a `while` loop, whose body is printed once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<= ]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([^ ]+) \(.*\) -> .* \{$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([^ ]+) = ")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^, ]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")  # of a scalar


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a type: "bf16[2,128]{1,0:S(1)}" has the dims (2, 128) and is in memory space 1."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def bytes(self) -> int:
        return math.ceil(math.prod(self.dims) * item_bytes(self.dtype))


def item_bytes(dtype: str) -> float:
    """Bytes of one element: "bf16" 2, "f8e4m3fn" 1, "s4" 0.5."""
    if dtype in BYTES:
        return BYTES[dtype]
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: "name = type opcode(operands), attributes"."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Arrays of the result, those of a tuple in order."""
        return arrays(self.type)

    @property
    def called(self) -> str | None:
        """The computation of a fusion, call or asynchronous start; the body of a loop."""
        names = dict(re.findall(r"\b(calls|to_apply|body)=%?([\w.\-]+)", self.attributes))
        return names.get("calls") or names.get("body") or names.get("to_apply")

    def attribute(self, name: str) -> str:
        """The text of an attribute such as channel_id; "" if there is none."""
        found = re.search(rf"\b{name}=([^, ]+)", self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: instructions by name, in the order in which they are printed."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def types(self, names) -> list[Array]:
        """All arrays of the results of some instructions."""
        return [a for name in names for a in self.instructions[name].arrays]

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """The parameters, by number."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.operands[0]))

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that have an instruction as an operand."""
        users = {}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: by name.
      entry: name of the one that runs.
    """

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def executions(self) -> dict[str, int]:
        """How often each computation runs, except those inside fusions and reductions.

        The body of a loop counts as often as the loop repeats. Each branch of a conditional counts
        as if it were taken.
        """
        counts: dict[str, int] = {}
        self._run(self.entry, 1, counts)
        return counts

    def _run(self, name: str, times: int, counts: dict[str, int]) -> None:
        counts[name] = counts.get(name, 0) + times
        for instruction in self.computations[name].instructions.values():
            if instruction.opcode == "while":
                trips = self.trip_count(instruction, self.computations[name])
                self._run(instruction.called, times * (1 if trips is None else trips), counts)
            elif instruction.opcode == "call":
                self._run(instruction.called, times, counts)
            elif instruction.opcode == "conditional":
                for branches, one in _BRANCHES.findall(instruction.attributes):
                    for branch in (branches or one).split(","):
                        self._run(branch.strip().lstrip("%"), times, counts)

    def all_instructions(self, name: str) -> Iterator[tuple[Computation, Instruction]]:
        """The instructions of a computation with theirs, those inside of its fusions too."""
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield computation, instruction
            # An asynchronous operation names its computation when it starts, updates and ends.
            if instruction.opcode in ("fusion", "async-start") and instruction.called:
                yield from self.all_instructions(instruction.called)

    @functools.cached_property
    def unknown_loops(self) -> list[str]:
        """Loops whose number of repetitions is not in the program; they count once."""
        return [
            instruction.name
            for name in self.executions
            for instruction in self.computations[name].instructions.values()
            if instruction.opcode == "while"
            and self.trip_count(instruction, self.computations[name]) is None
        ]

    def trip_count(self, loop: Instruction, inside: Computation) -> int | None:
        """Repetitions of a loop, as the compiler states them or as its condition says; else None.

        A condition is read if it compares one counter of the loop, which starts at a constant (0 if
        that is not in sight, as in every scan of JAX) and grows by one, with a constant.
        """
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)
        compared = self._compared(self.computations[condition[1]])
        if compared is None:
            return None
        index, limit = compared
        start = self._constant(inside, loop.operands[0], index) or 0
        return max(limit - start, 0)

    def _compared(self, condition: Computation) -> tuple[int, int] | None:
        """(index of the counter in the state of the loop, first value that ends it)."""
        root = condition.instructions[condition.root]
        sides, compare = [condition.instructions[name] for name in root.operands], root
        if root.opcode == "fusion":
            fused = self.computations[root.called]
            compare = fused.instructions[fused.root]
            outside = dict(zip((p.name for p in fused.parameters), sides, strict=True))
            inside = [fused.instructions[name] for name in compare.operands]
            sides = [outside.get(side.name, side) for side in inside]
        if compare.opcode != "compare":
            return None
        direction = compare.attribute("direction")
        first, second = sides
        if first.opcode == "constant":
            first, second = second, first
            direction = {"GT": "LT", "GE": "LE"}.get(direction, direction)
        if first.opcode != "get-tuple-element" or second.opcode != "constant":
            return None
        limit = int(second.operands[0])
        return {
            "LT": (int(first.attribute("index")), limit),
            "NE": (int(first.attribute("index")), limit),
            "LE": (int(first.attribute("index")), limit + 1),
        }.get(direction)

    def _constant(self, inside: Computation, name: str, index: int | None = None) -> int | None:
        """The value of a scalar, or of an element of a tuple, if it is a constant in sight."""
        instruction = inside.instructions[name]
        while instruction.opcode in _SAME:
            instruction = inside.instructions[instruction.operands[0]]
        if index is not None:
            if instruction.opcode != "tuple":
                return None
            return self._constant(inside, instruction.operands[index])
        if instruction.opcode == "constant":
            return int(instruction.operands[0])
        return None


def arrays(type_text: str) -> tuple[Array, ...]:
    """The arrays of a type, those of a tuple in order."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(type_text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d.strip().removeprefix("<=")) for d in dims.split(",") if d.strip())
        found.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def parse(text: str) -> Module:
    """The program of `compiled.as_text()`; raises ValueError if the text is no program."""
    computations, entry = {}, ""
    name, lines = "", []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif _END.match(line) and name:
            computations[name] = _computation(name, lines)
            name = ""
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif name and lines:
            lines[-1] += line  # the attributes of a kernel may hold line breaks
    if not entry:
        raise ValueError("the text has no entry computation")
    return Module(computations, entry)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        start = _INSTRUCTION.match(line)
        instruction = _instruction(start[2], line[start.end() :])
        instructions[instruction.name] = instruction
        root = instruction.name if start[1] else root
    if not root:
        raise ValueError(f"the computation {name} has no root")
    return Computation(name, instructions, root)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    type_text, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    opcode, inside = rest[:opening], rest[opening + 1 : closing]
    operands = re.findall(r"%([^ ,()]+)", inside)
    if not operands:  # the number of a parameter, the value of a constant, names without "%"
        bare = (part.split()[-1] for part in re.sub(r"/\*.*?\*/", "", inside).split(",") if part)
        operands = [inside] if opcode in ("parameter", "constant") else list(bare)
    return Instruction(name, type_text, opcode, tuple(operands), rest[closing + 1 :].lstrip(", "))


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
