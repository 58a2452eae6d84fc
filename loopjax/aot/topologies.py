"""Devices that are not there, by name: "v5p:4x4x4" is a TPU slice, "h100:2x8" 2 hosts of 8 GPUs.

The compilers of XLA for TPUs (in libtpu) and for NVIDIA's GPUs (in JAX's CUDA plug-in) run on any
machine; the devices of a topology can be compiled for, but hold no arrays.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re

from loopjax import devices as chips
from loopjax.errors import MissingPackage, UserError, first_line

# Slices that Google offers (Cloud TPU documentation, "Configurations" of each version). Larger 3D
# slices have dimensions that are multiples of 4, in ascending order.
_SLICES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SLICES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_LARGEST_3D = {"v4": (16, 16, 16), "v5p": (16, 16, 24)}
_ACCELERATORS = {"v4": "v4-8", "v5e": "v5litepod-4", "v5p": "v5p-8", "v6e": "v6e-4"}
_MOST_GPUS_PER_HOST = 8
# Units that XLA's compiler asks for: multiprocessors, their float32 units, shared memory of one and of
# one block, L2 cache (NVIDIA, "CUDA C++ Programming Guide", compute capabilities; data sheets).
_GPUS = {
    "a100-40gb": ((8, 0), 108, 64, 167_936, 166_912, 40 << 20, 1.41),
    "a100": ((8, 0), 108, 64, 167_936, 166_912, 40 << 20, 1.41),
    "h100": ((9, 0), 132, 128, 233_472, 232_448, 50 << 20, 1.98),
    "h200": ((9, 0), 132, 128, 233_472, 232_448, 50 << 20, 1.98),
    "b200": ((10, 0), 148, 128, 233_472, 232_448, 126 << 20, 1.965),
}


@dataclasses.dataclass(frozen=True)
class Name:
    """The name of a topology, read.

    Attributes:
      text: as it was given.
      chip: the name of the chip, in `devices.CHIPS`.
      shape: chips along each dimension of a TPU slice; hosts and GPUs per host.
      slices: TPU slices of this shape, connected by the data center network.
    """

    text: str
    chip: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def platform(self) -> str:
        return chips.CHIPS[self.chip].platform


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as given.
      chip: what a device is.
      devices: `jax.Device`s that cannot hold arrays.
      compiler: the versions that decide what a program is: "jax 0.10.2, libtpu 0.0.42".
    """

    name: str
    chip: chips.Chip
    devices: list
    compiler: str

    def domain(self, device) -> int:
        """Which domain of fast links a device is in: its TPU slice, or the host of a GPU."""
        if self.chip.platform == "tpu":
            return getattr(device, "slice_index", None) or 0
        return device.process_index


def read(text: str) -> Name:
    """A name of a topology; raises UserError that says what there is."""
    known = [*_ACCELERATORS, *_GPUS]
    match = re.fullmatch(r"([a-z0-9-]+):(\d+(?:x\d+)*)(?:,slices=(\d+))?", text.lower())
    if not match or match[1] not in known:
        raise UserError(
            f"--topology={text} must be CHIP:SHAPE, like v5p:4x4x4 (a TPU slice; several as "
            f"v5p:4x4x4,slices=2) or h100:2x8 (hosts x GPUs of each); chips are {', '.join(known)}"
        )
    chip, shape = match[1], tuple(map(int, match[2].split("x")))
    slices = int(match[3] or 1)
    if chip in _GPUS:
        if match[3] or len(shape) != 2 or min(shape) < 1 or shape[1] > _MOST_GPUS_PER_HOST:
            raise UserError(
                f"--topology={text} must be {chip}:HOSTSxGPUS with 1 to {_MOST_GPUS_PER_HOST} GPUs "
                f"per host, like {chip}:1x8"
            )
    elif chip in _LARGEST_3D:
        largest = _LARGEST_3D[chip]
        fours = len(shape) == 3 and all(n % 4 == 0 and n for n in shape)
        inside = fours and sorted(shape) == list(shape) and math.prod(shape) <= math.prod(largest)
        if match[2] not in _SLICES_3D and not inside:
            raise UserError(
                f"--topology={text}: slices of {chip} are {', '.join(_SLICES_3D)}, and multiples of 4 "
                f"in ascending order, like 4x4x8, up to {'x'.join(map(str, largest))}"
            )
    elif match[2] not in _SLICES_2D:
        raise UserError(f"--topology={text}: slices of {chip} are {', '.join(_SLICES_2D)}")
    if slices < 1:
        raise UserError(f"--topology={text}: slices must be at least 1")
    return Name(text, chip, shape, slices)


def set_environment(name: Name) -> None:
    """Sets the environment in which JAX compiles for a topology; before JAX is imported.

    JAX then computes on the CPU, and uses no accelerator of this machine.
    """
    os.environ["JAX_PLATFORMS"] = "cpu" if name.platform == "tpu" else "cpu,cuda"
    # libtpu asks a TPU machine what it is, and admits one process at a time, unless told.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATORS.get(name.chip, ""))
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # The CUDA plug-in, where it is installed, asks for a driver.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    for level in ("TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(level, "3")


def require_compiler(name: Name) -> None:
    """Raises MissingPackage, which names the extra to install, if there is no compiler."""
    tpu = ("aot", "libtpu", "libtpu")
    gpu = ("gpu", "jax-cuda13-plugin", "jax_cuda13_plugin")
    extra, package, module = tpu if name.platform == "tpu" else gpu
    if not importlib.util.find_spec(module):
        raise MissingPackage(
            f"--topology={name.text} needs pip install 'loopjax[{extra}]' ({package} is not installed)"
        )


def topology(name: Name) -> Topology:
    """The devices of a name, for which the environment is set and a compiler is there.

    For GPUs it must be called before tensorstore and the like are imported: XLA then finds no
    protocol buffer of that name to parse the description of the GPU.
    """
    from jax.experimental import topologies

    chip = chips.CHIPS[name.chip]
    try:
        if name.platform == "tpu":
            options = {"num_slices": name.slices} if name.slices > 1 else {}
            if name.chip == "v4":  # both cores of a chip as one device
                options["chip_config_name"] = "megacore"
            if math.prod(name.shape) == 1:
                options["chips_per_host_bounds"] = (1, 1, 1)
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{name.chip}:{'x'.join(map(str, name.shape))}",
                **options,
            )
        else:
            found = topologies.get_topology_desc(
                name.chip,
                platform="cuda",
                target_config=_target(name.chip),
                topology="x".join(map(str, (1, *name.shape))),
            )
    except Exception as error:
        raise UserError(f"--topology={name.text}: {first_line(error)}") from None
    return Topology(name.text, chip, list(found.devices), _compiler(name.platform))


def _compiler(platform: str) -> str:
    packages = ("jax", "libtpu" if platform == "tpu" else "jax-cuda13-plugin")
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def _target(chip: str) -> str:
    """XLA's description of a GPU (`stream_executor.GpuTargetConfigProto`) as text."""
    (major, minor), cores, fpus, shared, shared_block, cache, clock = _GPUS[chip]
    feature = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_block_optin": shared_block,
        "shared_memory_per_core": shared,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "core_count": cores,
        "fpus_per_core": fpus,
        "clock_rate_ghz": clock,
        "l2_cache_size": cache,
        "memory_bandwidth": int(chips.CHIPS[chip].bandwidth),
        "device_memory_size": chips.CHIPS[chip].memory,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
    }
    lines = "\n".join(f"  {key}: {value}" for key, value in fields.items())
    return f"""gpu_device_info {{
{lines}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chips.CHIPS[chip].kinds[0]}"
"""
