"""Accelerators by name: peak FLOP/s, memory, and how JAX calls them.

The one table for `loopjax plan --device` and for the MFU of a run.
"""

import dataclasses

from loopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them.

    Attributes:
      peak_flops: FLOP/s at bfloat16 on the matrix units, dense (data sheets of NVIDIA give twice as
        much, with sparsity).
      memory: bytes of HBM.
      platform: "gpu" or "tpu", which differ in the implementation of attention.
      kinds: what `jax.Device.device_kind` begins with.
    """

    peak_flops: float
    memory: int
    platform: str
    kinds: tuple[str, ...]


GB = 10**9
CHIPS = {
    # NVIDIA A100 Tensor Core GPU data sheet: 312 TFLOPS (624 with sparsity).
    "a100-40gb": Chip(312e12, 40 * GB, "gpu", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")),
    "a100": Chip(312e12, 80 * GB, "gpu", ("NVIDIA A100",)),
    # NVIDIA H100 Tensor Core GPU data sheet, with sparsity: SXM 1,979, PCIe 1,513, NVL 1,671 TFLOPS.
    "h100": Chip(989e12, 80 * GB, "gpu", ("NVIDIA H100",)),
    "h100-pcie": Chip(756e12, 80 * GB, "gpu", ("NVIDIA H100 PCIe",)),
    "h100-nvl": Chip(835e12, 94 * GB, "gpu", ("NVIDIA H100 NVL",)),
    # NVIDIA H200 Tensor Core GPU data sheet: SXM 1,979 TFLOPS with sparsity.
    "h200": Chip(989e12, 141 * GB, "gpu", ("NVIDIA H200",)),
    # NVIDIA GH200 Grace Hopper Superchip data sheet: 1,979 TFLOPS with sparsity; 96 GB (HBM3).
    "gh200": Chip(989e12, 96 * GB, "gpu", ("NVIDIA GH200",)),
    # NVIDIA DGX B200 data sheet, for 8 GPUs: 36 PFLOPS with sparsity, 1,440 GB.
    "b200": Chip(2250e12, 180 * GB, "gpu", ("NVIDIA B200",)),
    # Google Cloud TPU documentation, "System architecture" of each version: peak compute per chip
    # at bf16, HBM capacity. JAX has one device per chip of these.
    "v4": Chip(275e12, 32 * GB, "tpu", ("TPU v4",)),
    "v5e": Chip(197e12, 16 * GB, "tpu", ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(459e12, 95 * GB, "tpu", ("TPU v5", "TPU v5p")),
    "v6e": Chip(918e12, 32 * GB, "tpu", ("TPU v6 lite", "TPU v6e")),
}


def named(name: str) -> Chip:
    """The chip of a name like "h100", in any case; raises UserError that lists all names."""
    chip = CHIPS.get(name.lower())
    if chip is None:
        raise UserError(f"--device={name} must be one of {', '.join(CHIPS)}")
    return chip


def of(device) -> Chip | None:
    """The chip that a `jax.Device` is; None if it is not in the table, such as a CPU."""
    matches = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}
    kinds = [kind for kind in matches if device.device_kind.startswith(kind)]
    return matches[max(kinds, key=len)] if kinds else None
