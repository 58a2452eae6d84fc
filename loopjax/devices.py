"""Accelerators by name: peak FLOP/s, memory, bandwidths, and how JAX calls them.

The one table for `loopjax plan --device`, `loopjax compile --topology` and the MFU of a run.
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
      bandwidth: bytes/s of HBM.
      interconnect: bytes/s that a device can send to the others of its domain, over all its links:
        a TPU to its slice, a GPU by NVLink to its host (data sheets give both directions together).
      network: bytes/s that a device can send beyond its domain; 0 if not published.
    """

    peak_flops: float
    memory: int
    platform: str
    kinds: tuple[str, ...]
    bandwidth: float
    interconnect: float
    network: float


def _gpu(tflops: int, memory: int, kinds: tuple, bandwidth: int, nvlink: int, network: int) -> Chip:
    """A GPU: dense TFLOP/s, GB, GB/s of HBM, GB/s of NVLink in both directions, Gb/s of network."""
    link, network = nvlink / 2 * GB, network / 8 * GB
    return Chip(tflops * 1e12, memory * GB, "gpu", kinds, bandwidth * GB, link, network)


def _tpu(tflops: int, memory: int, kinds: tuple, bandwidth: int, links: int, network: int) -> Chip:
    """A TPU: TFLOP/s, GB, GB/s of HBM, GB/s of all links in both directions, Gb/s of network."""
    return Chip(
        tflops * 1e12, memory * GB, "tpu", kinds, bandwidth * GB, links / 2 * GB, network / 8 * GB
    )


GB = 10**9
CHIPS = {
    # NVIDIA A100 Tensor Core GPU data sheet: 312 TFLOPS (624 with sparsity), 1,555 and 2,039 GB/s,
    # NVLink 600 GB/s. Network of a DGX A100: 200 Gb/s per GPU.
    "a100-40gb": _gpu(312, 40, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 1555, 600, 200),
    "a100": _gpu(312, 80, ("NVIDIA A100",), 2039, 600, 200),
    # NVIDIA H100 Tensor Core GPU data sheet, with sparsity: SXM 1,979, PCIe 1,513, NVL 1,671 TFLOPS;
    # 3.35, 2.0 and 3.9 TB/s; NVLink 900 GB/s, by bridges 600 GB/s. DGX H100: 400 Gb/s per GPU.
    "h100": _gpu(989, 80, ("NVIDIA H100",), 3350, 900, 400),
    "h100-pcie": _gpu(756, 80, ("NVIDIA H100 PCIe",), 2000, 600, 400),
    "h100-nvl": _gpu(835, 94, ("NVIDIA H100 NVL",), 3900, 600, 400),
    # NVIDIA H200 Tensor Core GPU data sheet: SXM 1,979 TFLOPS with sparsity, 4.8 TB/s, NVLink
    # 900 GB/s. DGX H200: 400 Gb/s per GPU.
    "h200": _gpu(989, 141, ("NVIDIA H200",), 4800, 900, 400),
    # NVIDIA GH200 Grace Hopper Superchip data sheet: 1,979 TFLOPS with sparsity; 96 GB (HBM3) at
    # 4 TB/s, NVLink 900 GB/s; 400 Gb/s.
    "gh200": _gpu(989, 96, ("NVIDIA GH200",), 4000, 900, 400),
    # NVIDIA DGX B200 data sheet, for 8 GPUs: 36 PFLOPS with sparsity, 1,440 GB at 64 TB/s, NVLink
    # 14.4 TB/s, 400 Gb/s per GPU.
    "b200": _gpu(2250, 180, ("NVIDIA B200",), 8000, 1800, 400),
    # Google Cloud TPU documentation, "System architecture" of each version: peak compute per chip
    # at bf16, HBM capacity and bandwidth, bidirectional ICI bandwidth per chip, data center network
    # per chip (v5e, v6e: of a pod over its 256 chips). JAX has one device per chip of these. For v4
    # the ICI is that of Jouppi et al. 2023, Table 4: 6 links of 50 GB/s in each direction.
    "v4": _tpu(275, 32, ("TPU v4",), 1228, 600, 0),
    "v5e": _tpu(197, 16, ("TPU v5 lite", "TPU v5e"), 819, 400, 25),
    "v5p": _tpu(459, 95, ("TPU v5", "TPU v5p"), 2765, 1200, 50),
    "v6e": _tpu(918, 32, ("TPU v6 lite", "TPU v6e"), 1638, 800, 100),
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
