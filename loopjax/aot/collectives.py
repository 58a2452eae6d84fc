"""The collectives of a compiled program: which data travels along which mesh axes, how often."""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from loopjax.aot import hlo

KINDS = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# Attribute of what a TPU program sends to its host, for a collective between slices.
_BETWEEN_SLICES = "_xla_megascale_transfer_type"
# Attribute of each part of a collective that a TPU program splits over fusions.
_SPLIT = "async_collective_fusion_config"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program, or one data type of it.

    Attributes:
      kind: one of `KINDS`.
      dtype: data type of what travels, as in HLO: "bf16".
      axes: mesh axes among whose devices it travels.
      devices: devices of a group, which exchange data with each other.
      domains: domains (see `collectives`) that a group spans.
      size: bytes of the whole array: gathered, or before it is reduced and scattered.
      count: executions in a run of the program.
      asynchronous: whether it starts and ends in two places, so that other work may run meanwhile.
      scope: where in the model it is (`op_name`).
    """

    kind: str
    dtype: str
    axes: tuple[str, ...]
    devices: int
    domains: int
    size: int
    count: int
    asynchronous: bool
    scope: str

    @property
    def bytes(self) -> int:
        """Bytes of the whole arrays in a run of the program."""
        return self.size * self.count

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a run of the program, by ring algorithms.

        (n - 1) / n of the array in an all-gather, reduce-scatter or all-to-all; twice that in an
        all-reduce (Patarasu and Yuan 2009); the array in a permutation.
        """
        return self.bytes * self._share(self.devices)

    @property
    def sent_within(self) -> float:
        """Bytes that a device sends within its domain, if data travels within domains first."""
        return self.bytes * self._share(self.devices // self.domains)

    @property
    def sent_beyond(self) -> float:
        """Bytes that a device sends beyond its domain.

        Each device of a domain exchanges its part of the array with those of the other domains.
        """
        return self.bytes * self._share(self.domains) * self.domains / self.devices

    def _share(self, n: int) -> float:
        """The share of the array that each of n members sends."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(n > 1)
        return (2 if self.kind == "all-reduce" else 1) * (n - 1) / n


def collectives(
    module: hlo.Module, mesh: dict[str, int], domains: Sequence[int] = ()
) -> list[Collective]:
    """The collectives of a program, in the order of the program.

    Args:
      mesh: devices of each mesh axis.
      domains: for each device of the flattened mesh, which domain of fast links it belongs to: the
        host of a GPU, the slice of a TPU; by default all are in one.

    A TPU program splits an asynchronous all-gather over the fusions with which it overlaps, its
    reduce-scatter is a fusion of an all-reduce and a slice, and between slices it sends to the host,
    whose runtime reduces or gathers; all of them count once, as what they do.
    """
    found = []
    for name, count in module.executions.items():
        for computation, instruction in module.all_instructions(name):
            kind, started = _kind(computation, instruction)
            if kind is None:
                continue
            groups = _groups(instruction, mesh)
            if _BETWEEN_SLICES in instruction.attributes:
                groups = _across(domains)
            axes, devices = _axes(groups, mesh), max(map(len, groups))
            spanned = max(len({domains[i] for i in group}) for group in groups) if domains else 1
            if devices < 2:
                continue
            sizes: dict[str, int] = {}
            for array in _data(computation, instruction):
                sizes[array.dtype] = sizes.get(array.dtype, 0) + array.bytes
            scope = re.search(r'op_name="([^"]*)"', instruction.attributes)
            for dtype, size in sizes.items():
                size *= devices if kind == "all-gather" else 1
                where = scope[1] if scope else ""
                found.append(
                    Collective(kind, dtype, axes, devices, spanned, size, count, started, where)
                )
    return found


def _kind(computation, instruction) -> tuple[str | None, bool]:
    """(kind of a collective, whether it is asynchronous); (None, False) for what is none."""
    between = re.search(_BETWEEN_SLICES + r'="(\w+)"', instruction.attributes)
    if between:
        kind = between[1].lower().replace("_", "-")
        if instruction.opcode != "send":
            return None, False
        return kind if kind in KINDS else "collective-permute", True
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS or continues(computation, instruction):
        return None, False
    started = (
        kind != instruction.opcode
        or "async" in computation.name
        or _SPLIT in instruction.attributes
    )
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return kind, started


def continues(computation: hlo.Computation, instruction: hlo.Instruction) -> bool:
    """Whether an instruction is the middle or the end of a collective that a fusion started."""
    if "AsyncCollectiveDone" in instruction.attributes:
        return True
    calls = (i.attributes for i in computation.instructions.values() if i.opcode == "custom-call")
    return _SPLIT in instruction.attributes and not any("AsyncCollectiveStart" in c for c in calls)


def _data(computation: hlo.Computation, instruction: hlo.Instruction) -> list[hlo.Array]:
    """The arrays of a collective on one device, before it."""
    found = computation.types(instruction.operands)
    return [array for array in found if array.dtype != "token"]


def _across(domains: Sequence[int]) -> list[tuple[int, ...]]:
    """Groups of the devices that have the same place in each domain."""
    members: dict[int, list[int]] = {}
    for position, domain in enumerate(domains):
        members.setdefault(domain, []).append(position)
    return list(zip(*members.values(), strict=True)) or [(0,)]


def _groups(instruction: hlo.Instruction, mesh: dict[str, int]) -> list[tuple[int, ...]]:
    """The groups of devices of a collective, as positions on the flattened mesh."""
    text = instruction.attributes
    pairs = re.search(r"\bsource_target_pairs=\{(.*?)\}\}", text)
    if pairs:
        return [tuple(map(int, p.split(","))) for p in re.findall(r"\{?(\d+,\d+)", pairs[1])]
    found = re.search(r"\breplica_groups=", text)
    if not found:
        return [tuple(range(math.prod(mesh.values())))]
    text = text[found.end() :]
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("["):
        parts = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
        return [
            tuple(row) for row in _iota(parts[2], parts[3]).reshape(_numbers(parts[1])).tolist()
        ]
    listed = re.match(r"\{((?:\{[\d,]*\},?)*)\}", text)[1]
    groups = [tuple(_numbers(group)) for group in re.findall(r"\{([\d,]*)\}", listed)]
    return groups or [tuple(range(math.prod(mesh.values())))]


def _mesh_groups(text: str) -> list[tuple[int, ...]]:
    """Groups of "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b','a':(1)2}".

    The devices of a group differ along the named axes; "a:(2)4" is the part of 4 of an axis that is
    split into 2 x 4 x the rest.
    """
    parts = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
    sizes = {name.strip("'\""): int(n) for name, n in re.findall(r"([^,=]+)=(\d+)", parts[1])}
    iota = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", parts[2] or "")
    if iota:
        order = _iota(iota[1], iota[2])
    elif parts[2]:
        order = np.array(_numbers(parts[2].strip("[]")))
    else:
        order = np.arange(math.prod(sizes.values()))
    cuts: dict[str, list[int]] = {name: [1, size] for name, size in sizes.items()}
    wanted = []
    for axis in re.findall(r"[^,]+", parts[3]):
        name, _, part = axis.partition(":")
        name = name.strip("'\" ")
        bounds = re.match(r"\((\d+)\)(\d+)", part)
        low, size = map(int, bounds.groups()) if bounds else (1, sizes[name])
        cuts[name] += [low, low * size]
        wanted.append((name, low, low * size))
    shape, along = [], []
    for name in sizes:
        bounds = sorted(set(cuts[name]))
        for low, high in itertools.pairwise(bounds):
            if any(name == n and a <= low and high <= b for n, a, b in wanted):
                along.append(len(shape))
            shape.append(high // low)
    rest = [i for i in range(len(shape)) if i not in along]
    size = math.prod(shape[i] for i in along)
    rows = order.reshape(shape or [1]).transpose(rest + along).reshape(-1, size)
    return [tuple(row) for row in rows.tolist()]


def _iota(shape: str, order: str | None) -> np.ndarray:
    """0, 1, ... in a shape, transposed."""
    sizes = _numbers(shape)
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(_numbers(order) if order else None)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]


def _axes(groups, mesh: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of the groups differ."""
    members = np.array([(group[0], other) for group in groups for other in group])
    places = np.array(np.unravel_index(members, tuple(mesh.values())))  # [axis, member, 2]
    differ = np.any(places[..., 0] != places[..., 1], axis=1)
    return tuple(axis for axis, differs in zip(mesh, differ, strict=True) if differs)
