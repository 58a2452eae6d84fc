"""Summary of a compiled program: collectives, kernels, bytes through memory, buffers."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence

from loopjax.aot import collectives as collectives_lib
from loopjax.aot import hlo, memory_traffic, products
from loopjax.aot.collectives import Collective

# Calls by which a compiler talks to itself.
_INTERNAL_CALLS = {
    "AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked",
    "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding", "SPMDFullToShardShape",
    "SPMDShardToFullShape", "SliceId", "ZeroCrop", "annotate_device_placement", "xla.sdy.FuncResultSharding",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program does on each device.

    Attributes:
      collectives: see `collectives.Collective`; one entry per instruction and data type.
      kernels: executions of each custom call, such as {"tpu_custom_call": 72} for Pallas kernels.
      hbm_bytes: bytes through the main memory, see `memory_traffic.hbm_bytes`.
      product_flops: FLOPs of matrix products outside of kernels.
      buffers: all arrays that are kept in buffers.
      unknown_loops: loops that count once because the program does not say how often they run.
    """

    collectives: list[Collective]
    kernels: dict[str, int]
    hbm_bytes: int
    product_flops: int
    buffers: set[hlo.Array]
    unknown_loops: list[str]

    @classmethod
    def of(
        cls, text: str, mesh: dict[str, int], platform: str, domains: Sequence[int] = ()
    ) -> "Program":
        """The summary of `compiled.as_text()`.

        Args:
          text: the program.
          mesh: devices of each mesh axis, in the order of the mesh: {"data": 1, "fsdp": 8}.
          platform: "cpu", "gpu" or "tpu".
          domains: see `collectives.collectives`.
        """
        module = hlo.parse(text)
        return cls(
            collectives=collectives_lib.collectives(module, mesh, domains),
            kernels=_kernels(module),
            hbm_bytes=memory_traffic.hbm_bytes(module, platform),
            product_flops=products.product_flops(module),
            buffers=memory_traffic.buffers(module),
            unknown_loops=module.unknown_loops,
        )

    @classmethod
    def sequence(cls, programs: Sequence["Program"]) -> "Program":
        """The summary of programs that run one after another."""
        kernels: Counter[str] = Counter()
        for program in programs:
            kernels.update(program.kernels)
        return cls(
            collectives=[found for program in programs for found in program.collectives],
            kernels=dict(kernels),
            hbm_bytes=sum(program.hbm_bytes for program in programs),
            product_flops=sum(program.product_flops for program in programs),
            buffers=set().union(*(program.buffers for program in programs)),
            unknown_loops=[name for program in programs for name in program.unknown_loops],
        )

    def traffic(self) -> list[dict]:
        """Collectives by kind, data type and mesh axes, those that send most first.

        Keys: "kind", "dtype", "axes", "devices", "count" (executions), "bytes" (of the whole arrays),
        "sent" (bytes that a device sends), "sent_beyond" (those that leave its domain) and
        "asynchronous" (share of those sent, 0 to 1).
        """
        groups: dict[tuple, list[Collective]] = {}
        for found in self.collectives:
            key = found.kind, found.dtype, found.axes, found.devices
            groups.setdefault(key, []).append(found)
        rows = [
            {
                "kind": kind,
                "dtype": dtype,
                "axes": list(axes),
                "devices": devices,
                "count": sum(found.count for found in members),
                "bytes": sum(found.bytes for found in members),
                "sent": (sent := sum(found.sent for found in members)),
                "sent_beyond": sum(found.sent_beyond for found in members),
                "asynchronous": sum(f.sent for f in members if f.asynchronous) / max(sent, 1),
            }
            for (kind, dtype, axes, devices), members in groups.items()
        ]
        return sorted(rows, key=lambda row: -row["sent"])

    def square(self, T: int) -> list[hlo.Array]:
        """Buffers [..., T, T], such as the logits of attention."""
        return self._where(lambda dims: dims[-2:] == (T, T) or dims[:2] == (T, T))

    def float32_logits(self, tokens: int, vocab: int) -> list[hlo.Array]:
        """Buffers in float32 with `vocab` entries for each of `tokens` tokens, or of several times
        as many."""

        def fits(dims):
            rest = math.prod(dims) // vocab
            return vocab in dims and rest >= tokens and rest % tokens == 0

        return [array for array in self._where(fits) if array.dtype == "f32"]

    def _where(self, condition) -> list[hlo.Array]:
        # Without its memory space: a buffer that moves between memories is one.
        found = {
            dataclasses.replace(array, space=0) for array in self.buffers if condition(array.dims)
        }
        return sorted(found, key=lambda array: (-array.bytes, array.dtype, array.dims))


def _kernels(module: hlo.Module) -> dict[str, int]:
    """Executions of each custom call by its target, those inside fusions too."""
    counts: dict[str, int] = {}
    for name, times in module.executions.items():
        for _, instruction in module.all_instructions(name):
            if instruction.opcode != "custom-call":
                continue
            target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)[1]
            if target not in _INTERNAL_CALLS:
                counts[target] = counts.get(target, 0) + times
    return dict(sorted(counts.items()))
