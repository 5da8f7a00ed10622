"""What a process settles before it computes as one of several MPI ranks.

This module starts neither MPI nor JAX's devices when it is imported.
"""

import ctypes
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

_LAUNCHER_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def launcher_size() -> int | None:
    """Number of processes of the MPI job in which this process was launched.

    Read from the environment that `mpirun` (MPICH's, Open MPI's) and `srun` set,
    without starting MPI. A single task of Slurm counts as no job: it is as likely an
    interactive shell.

    Returns:
      The size, or None where there is no launcher.
    """
    for name in _LAUNCHER_SIZES:
        size = os.environ.get(name, "")
        if size.isdigit() and not (name.startswith("SLURM") and size == "1"):
            return int(size)
    return None


def prepare(world: Any) -> None:
    """Settles this rank's device, threads and last words.

    To be called before JAX's first computation.

    Args:
      world: the `mpi4py.MPI.Comm` of the job.

    Raises:
      RuntimeError: if the launcher belongs to another MPI than mpi4py, or if JAX has
        already taken hold of all of a node's GPUs.
    """
    from mpi4py import MPI

    launched = launcher_size()
    if world.size == 1 and launched is not None and launched > 1:
        raise RuntimeError(
            f"the launcher started {launched} processes, but each sees an MPI world of "
            "its own: mpirun and mpi4py belong to different MPIs. Use the mpirun of "
            "the MPI that mpi4py was built with (`python -m mpi4py --mpi-library` "
            "names it)."
        )
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        _share_cores(node.size)
        _choose_gpu(node)
    finally:
        node.Free()
    if world.size > 1 and not isinstance(sys.excepthook, _AbortAll):
        sys.excepthook = _AbortAll(world, sys.excepthook)


def _share_cores(ranks_on_node: int) -> None:
    """Gives XLA's CPU threads this rank's share of the cores.

    Ranks poll while they wait, so that threads beyond the cores only steal time.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("NPROC", str(max(1, cores // ranks_on_node)))


def _choose_gpu(node: Any) -> None:
    """Gives each rank of a node one of the GPUs that it sees, in turn."""
    count = _gpu_count()
    if count == 0:
        return
    ordinal = node.rank % count
    mine = (os.environ.get("CUDA_VISIBLE_DEVICES"), ordinal)
    if node.allgather(mine).count(mine) > 1:  # Ranks that share a GPU share its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_cuda_visible_devices", str(ordinal))
    if count > 1 and jax.default_backend() == "gpu" and jax.local_device_count() > 1:
        raise RuntimeError(
            f"JAX already holds {jax.local_device_count()} GPUs in this process: call "
            "djax.communicators.mpi() before the first JAX computation."
        )


def _gpu_count() -> int:
    """Number of GPUs that CUDA shows to this process, without touching them."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    found = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if found else 0


@dataclasses.dataclass(frozen=True)
class _AbortAll:
    """Makes an uncaught exception end every rank: the others would wait for ever.

    The others let rank 0 go first, so that what all ranks meet is told once.
    """

    world: Any
    previous: Callable

    def __call__(self, kind, error, trace):
        rank, size = self.world.rank, self.world.size
        time.sleep(1.0 if rank else 0.0)
        print(f"rank {rank} of {size} failed:", file=sys.stderr)
        self.previous(kind, error, trace)
        sys.stderr.flush()
        self.world.Abort(1)
