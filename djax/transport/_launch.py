"""Shares a node's cores, GPUs and memory among the MPI ranks that run on it.

XLA chooses its threads, its device and its memory once, before the first computation,
and as if no other process ran on the node. So each rank limits XLA to its share before.
Importing this module starts neither MPI nor JAX's devices.
"""

import ctypes
import os
import pathlib
import resource
from typing import Any

import jax

# Environment variables that the mpirun of Open MPI, the mpirun of MPICH, and srun set.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
# A variable that only the mpirun of Open MPI sets, and one that only MPICH's sets.
_MPIRUN = {"OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"}
# Variables by which srun's plugins for MPI are recognized.
_PLUGINS = {"PMIX_RANK": "pmix", "PMI_RANK": "pmi2"}

_BLOCK = 1 << 30  # Bytes of one allocation by which the heap is grown.
_HUGE_PAGE = 1 << 21  # Size in bytes.
_MADV_HUGEPAGE = 14  # From <sys/mman.h> of Linux.


def launcher_size() -> int | None:
    """Returns the number of processes of the MPI job that this process belongs to.

    The number is read from the environment that `mpirun` (of MPICH or Open MPI) and
    `srun` set, without starting MPI. A single task of Slurm does not count as a job,
    since it may as well be an interactive shell. Neither does the script of a batch
    job, although Slurm tells it how many tasks its commands `srun` will start.

    Returns:
      The size, or None if no launcher has started this process.
    """
    for name in _SIZES:
        size = os.environ.get(name, "")
        if size.isdigit() and not (name.startswith("SLURM") and size == "1"):
            return int(size)
    return None


def launch_command() -> str | None:
    """Returns the command that started the processes of this job, as in `srun -n 4`.

    Somebody who starts the job again writes it in front of `python`. An `mpirun` may
    itself use Slurm to start processes on other nodes; it counts as `mpirun`.

    Returns:
      The command, or None if no launcher has started this process.
    """
    if (size := launcher_size()) is None:
        return None
    if "SLURM_STEP_NUM_TASKS" not in os.environ or _MPIRUN & os.environ.keys():
        return f"mpirun -n {size}"
    found = [plugin for name, plugin in _PLUGINS.items() if name in os.environ]
    return " ".join(["srun", *(f"--mpi={plugin}" for plugin in found), f"-n {size}"])


def launcher_rank() -> int:
    """Returns this process's rank in its MPI job, or 0 if it belongs to none."""
    ranks = (os.environ[name] for name in _RANKS if name in os.environ)
    return 0 if launcher_size() is None else int(next(ranks, 0))


def check_launcher(world: Any) -> None:
    """Makes sure that the ranks of a job can reach each other.

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


def share_node(world: Any) -> None:
    """Gives this rank its share of the node's GPUs, cores and memory.

    All ranks have to call this function before JAX's first computation.

    Args:
      world: `mpi4py.MPI.COMM_WORLD`.

    Raises:
      RuntimeError: if JAX already uses several GPUs in this process.
    """
    from mpi4py import MPI

    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        _share_cores(node)
        _choose_gpu(node)
        # XLA would otherwise run all CPU programs one after another in a thread of its
        # own. A small program that a second thread calls, such as an asynchronous
        # averaging, would have to wait until a gradient is computed.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        _keep_memory(node.size)
    finally:
        node.Free()


def _share_cores(node: Any) -> None:
    """Limits XLA's CPU threads to this rank's share of the cores that it may run on.

    MPI ranks poll while they wait. If there were more threads than cores, they would
    take time from each other. If the launcher has bound each rank to cores of its own,
    these cores are the rank's share.
    """
    if hasattr(os, "sched_getaffinity"):
        mine = frozenset(os.sched_getaffinity(0))
    else:  # macOS
        mine = frozenset(range(os.cpu_count() or 1))
    sharing = sum(not mine.isdisjoint(theirs) for theirs in node.allgather(mine))
    os.environ.setdefault("NPROC", str(max(1, len(mine) // sharing)))


def _keep_memory(sharing: int) -> None:
    """Makes glibc reuse the memory of large arrays, and use huge pages for it.

    Otherwise every new array gets fresh pages from the kernel, which takes as long as
    filling them. A message between ranks of one node, which the kernel copies page by
    page, would take up to twice as long. All threads share one heap, because one thread
    frees what another has allocated.

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
    # No block was ever touched, so they used addresses of the process but no memory.
    for block in blocks:
        libc.free(block)


def _addresses_are_free() -> bool:
    """Whether memory that a process allocates and never touches costs it nothing."""
    limits = resource.RLIMIT_AS, resource.RLIMIT_DATA
    if any(resource.getrlimit(x)[0] != resource.RLIM_INFINITY for x in limits):
        return False
    strict = pathlib.Path("/proc/sys/vm/overcommit_memory")
    return not strict.exists() or strict.read_text().strip() != "2"


def _choose_gpu(node: Any) -> None:
    """Assigns the node's GPUs to its ranks in turn."""
    count = _gpu_count()
    ordinal = node.rank % count if count else None
    mine = (os.environ.get("CUDA_VISIBLE_DEVICES"), ordinal)
    everyone = node.allgather(mine)
    if ordinal is None:
        return
    if everyone.count(mine) > 1:  # Ranks that share a GPU have to share its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_cuda_visible_devices", str(ordinal))
    if count > 1 and jax.default_backend() == "gpu" and jax.local_device_count() > 1:
        raise RuntimeError(
            f"JAX already holds {jax.local_device_count()} GPUs in this process: call "
            "djax.communicators.mpi() before the first JAX computation."
        )


def _gpu_count() -> int:
    """Returns the number of GPUs that this process can see, without using them."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    found = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if found else 0
