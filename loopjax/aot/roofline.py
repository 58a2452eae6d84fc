"""The least time that a program can take on a chip: compute, memory, interconnect, network."""

import dataclasses

from loopjax.aot.program import Program
from loopjax.devices import Chip


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one run of a program on each device, if each resource is used at its peak.

    All overlap perfectly, collectives use all links of a chip, and each buffer crosses HBM as often
    as `memory_traffic.hbm_bytes` counts: no program is faster, real ones are slower.

    Attributes:
      compute: FLOPs at the peak of the matrix units.
      hbm: bytes of main memory at its bandwidth.
      interconnect: bytes that a device sends within its domain (TPU slice, GPU host).
      network: bytes that a device sends beyond its domain; 0 if its bandwidth is not published.
      model: FLOPs of the model by formula at the peak, the numerator of the MFU.
    """

    compute: float
    hbm: float
    interconnect: float
    network: float
    model: float

    @property
    def binds(self) -> str:
        """The resource that takes longest."""
        times = {name: getattr(self, name) for name in RESOURCES}
        return max(times, key=times.get)

    @property
    def seconds(self) -> float:
        return getattr(self, self.binds)

    @property
    def mfu_bound(self) -> float:
        """The model FLOPs utilization at these seconds: no run can have a higher one."""
        return self.model / self.seconds


RESOURCES = ("compute", "hbm", "interconnect", "network")


def roofline(program: Program, chip: Chip, model_flops: float) -> Roofline:
    """The roofline of a program on a chip.

    Args:
      model_flops: FLOPs of a device by formula. What the program computes in products besides (a
        recomputation) counts too; within kernels (attention) only the formula's.
    """
    within = sum(found.sent_within for found in program.collectives)
    beyond = sum(found.sent_beyond for found in program.collectives)
    return Roofline(
        compute=max(model_flops, program.product_flops) / chip.peak_flops,
        hbm=program.hbm_bytes / chip.bandwidth,
        interconnect=within / chip.interconnect,
        network=beyond / chip.network if chip.network else 0.0,
        model=model_flops / chip.peak_flops,
    )
