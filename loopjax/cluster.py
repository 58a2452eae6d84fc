"""Which process of how many this is: from flags, or from what the cluster's scheduler says."""

import dataclasses
import os

from loopjax.connection import split_address
from loopjax.errors import UserError

SLURM = (
    "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID",
)  # fmt: skip
# (number of processes, index of this one) as launchers set them for their processes. The tasks of an srun
# are counted by SLURM_STEP_NUM_TASKS: SLURM_NTASKS is also set where no srun has started anything.
LAUNCHERS = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("WORLD_SIZE", "RANK"),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process among those of a run.

    Attributes:
      coordinator: HOST:PORT of process 0.
      count: number of processes.
      index: index of this one.
      local_device_ids: devices of this process; None for all of its machine.
    """

    coordinator: str
    count: int
    index: int
    local_device_ids: list[int] | None = None


def place(
    coordinator: str | None, count: int | None, index: int | None, distributed: bool
) -> Place | None:
    """The place that the flags give, None for a run of one process.

    Raises UserError for flags that do not fit together, and for a process started alone by a
    launcher that started several.
    """
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count} must be at least 1")
    if index is not None and count is not None and not 0 <= index < count:
        raise UserError(f"--process_id={index} must be 0..{count - 1} (--num_processes={count})")
    if coordinator is not None:
        split_address(coordinator)
    if not distributed and coordinator is None:
        if index is not None or (count is not None and count > 1):
            flag = f"--num_processes={count}" if count is not None else f"--process_id={index}"
            raise UserError(f"{flag} requires --coordinator=HOST:PORT, or --distributed")
        if count is None:
            _check_alone()
        return None
    local = None
    if distributed or None in (count, index):
        coordinator, count, index, local = _detected(coordinator, count, index)
    if None in (coordinator, count, index):
        if coordinator is not None:
            raise UserError(
                f"--coordinator={coordinator} requires --num_processes and --process_id: no cluster "
                "that sets them was found (Slurm, Open MPI, TPU, Kubernetes)"
            )
        raise UserError(
            "--distributed: no cluster was found (Slurm, Open MPI, TPU, Kubernetes); give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I"
        )
    if not 0 <= index < count:
        raise UserError(f"process {index} of {count}: the index must be 0..{count - 1}")
    return Place(coordinator, count, index, local) if count > 1 else None


def _detected(coordinator: str | None, count: int | None, index: int | None) -> tuple:
    """(coordinator, count, index, devices) completed by the cluster; None where it has none."""
    found = [name for name in SLURM if name in os.environ]
    mpi = "OMPI_COMM_WORLD_RANK" in os.environ  # mpirun within the allocation of Slurm
    if not mpi and {"SLURM_NTASKS", "SLURM_PROCID"}.intersection(found):
        missing = [name for name in SLURM if name not in found]
        if missing:
            raise UserError(
                f"--distributed: Slurm sets {', '.join(found)}, but not {', '.join(missing)}; start "
                "the processes with srun"
            )
        for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"):
            if not os.environ[name].isdecimal():
                raise UserError(
                    f"--distributed: {name}={os.environ[name]!r} must be a whole number"
                )
    # JAX has no public function for this; `jax.distributed.initialize` does the same first.
    from jax._src.clusters import ClusterEnv

    return ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, count, index, None, None, 60
    )


def _check_alone() -> None:
    for size, rank in LAUNCHERS:
        n = os.environ.get(size, "")
        if rank in os.environ and n.isdecimal() and int(n) > 1:
            raise UserError(
                f"this is process {os.environ[rank]} of {n} ({rank}, {size}), which would each train "
                "alone in one directory; for one run of all add --distributed (Slurm, Open MPI) or "
                "--coordinator, --num_processes and --process_id; for a run of its own add "
                "--num_processes=1"
            )
