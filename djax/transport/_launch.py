"""What a process settles before it computes as one of several MPI ranks.

This module starts neither MPI nor JAX's devices when it is imported.
"""

import ctypes
import dataclasses
import os
import pathlib
import resource
import sys
import time
import traceback
from typing import Any

import jax

# What Open MPI's mpirun, MPICH's, and srun set.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")

_BLOCK = 1 << 30  # Bytes in which the heap is set up.
_HUGE_PAGE = 1 << 21  # Bytes.
_MADV_HUGEPAGE = 14  # Of Linux's <sys/mman.h>.


def launcher_size() -> int | None:
    """Number of processes of the MPI job in which this process was launched.

    Read from the environment that `mpirun` (MPICH's, Open MPI's) and `srun` set,
    without starting MPI. A single task of Slurm counts as no job: it is as likely an
    interactive shell.

    Returns:
      The size, or None where there is no launcher.
    """
    for name in _SIZES:
        size = os.environ.get(name, "")
        if size.isdigit() and not (name.startswith("SLURM") and size == "1"):
            return int(size)
    return None


def launcher_rank() -> int:
    """This process's rank in the MPI job in which it was launched; 0 without one."""
    ranks = (os.environ[name] for name in _RANKS if name in os.environ)
    return 0 if launcher_size() is None else int(next(ranks, 0))


def check(world: Any) -> None:
    """Makes sure that all ranks hear of each other, and of each other's exceptions.

    Args:
      world: `mpi4py.MPI.COMM_WORLD`.

    Raises:
      RuntimeError: if the launcher belongs to another MPI than mpi4py.
    """
    launched = launcher_size()
    if world.size == 1 and launched is not None and launched > 1:
        raise RuntimeError(
            f"the launcher started {launched} processes, but each sees an MPI world of "
            "its own: mpirun and mpi4py belong to different MPIs. Use the mpirun of "
            "the MPI that mpi4py was built with (`python -m mpi4py --mpi-library` "
            "names it)."
        )
    if world.size > 1 and not isinstance(sys.excepthook, _AbortAll):
        sys.excepthook = _AbortAll(world)


def prepare(world: Any) -> None:
    """Settles this rank's device, threads and memory.

    To be called before JAX's first computation.

    Args:
      world: `mpi4py.MPI.COMM_WORLD`.

    Raises:
      RuntimeError: if JAX has already taken hold of all of a node's GPUs.
    """
    from mpi4py import MPI

    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        _share_cores(node)
        _choose_gpu(node)
        _compute_in_place()
        _keep_memory(node.size)
    finally:
        node.Free()


def _share_cores(node: Any) -> None:
    """Gives XLA's CPU threads this rank's share of the cores that it may run on.

    Ranks poll while they wait, so that threads beyond the cores only steal time. A
    launcher that binds ranks to cores has shared them already.
    """
    if hasattr(os, "sched_getaffinity"):
        mine = frozenset(os.sched_getaffinity(0))
    else:  # macOS
        mine = frozenset(range(os.cpu_count() or 1))
    sharing = sum(not mine.isdisjoint(theirs) for theirs in node.allgather(mine))
    os.environ.setdefault("NPROC", str(max(1, len(mine) // sharing)))


def _compute_in_place() -> None:
    """Lets XLA's CPU programs run in the thread that calls them.

    Else they queue up in one thread of XLA's, and a small program of a second thread,
    such as an asynchronous averaging, waits for a gradient to end.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _keep_memory(sharing: int) -> None:
    """Lets glibc keep the memory of large arrays for later ones, in huge pages.

    Else each new array has fresh pages, which take as long to get as to fill, and a
    message between ranks of one node, which the kernel copies page by page, takes up to
    twice as long. The threads share one heap, as one gives up what another made.

    Args:
      sharing: number of ranks on this node.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    for option, value in ((-8, 1), (-4, 0), (-1, -1)):
        libc.mallopt(option, value)  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD
    if not _addresses_are_free():
        return
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    blocks = []
    for _ in range(memory // (2 * sharing * _BLOCK)):
        if (block := libc.malloc(_BLOCK)) is None:
            break
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        length = (block + _BLOCK - start) // _HUGE_PAGE * _HUGE_PAGE
        libc.madvise(start, length, _MADV_HUGEPAGE)
        blocks.append(block)
    for block in blocks:  # None was touched: they take addresses, and no memory.
        libc.free(block)


def _addresses_are_free() -> bool:
    """Whether memory that is never touched counts for nothing."""
    limits = resource.RLIMIT_AS, resource.RLIMIT_DATA
    if any(resource.getrlimit(x)[0] != resource.RLIM_INFINITY for x in limits):
        return False
    strict = pathlib.Path("/proc/sys/vm/overcommit_memory")
    return not strict.exists() or strict.read_text().strip() != "2"


def _choose_gpu(node: Any) -> None:
    """Gives each rank of a node one of the GPUs that it sees, in turn."""
    count = _gpu_count()
    ordinal = node.rank % count if count else None
    mine = (os.environ.get("CUDA_VISIBLE_DEVICES"), ordinal)
    everyone = node.allgather(mine)
    if ordinal is None:
        return
    if everyone.count(mine) > 1:  # Ranks that share a GPU share its memory.
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

    The others give rank 0 a second, so that what all ranks meet is mostly told once.
    """

    world: Any

    def __call__(self, *exception):
        rank, size = self.world.rank, self.world.size
        time.sleep(1.0 if rank else 0.0)
        text = "".join(traceback.format_exception(*exception))
        sys.stderr.write(f"rank {rank} of {size} failed:\n{text}")
        sys.stderr.flush()
        time.sleep(0.5)  # The launcher drops what it has not passed on by the end.
        self.world.Abort(1)
