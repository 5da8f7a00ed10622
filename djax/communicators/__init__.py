"""How the workers of one run exchange arrays.

A communicator is chosen outside of the algorithm; the three give the same numbers to
rounding:

* :func:`simulated`: all workers on one device, along a `vmap` axis,
* :func:`mesh`: one worker a device of one program, by `jax.shard_map`,
* :func:`mpi`: one worker a process of `mpirun`, by mpi4jax.

Around each of them, :func:`lossy` loses messages, independently or in bursts.

With `message_dtype="bfloat16"` (or `"float16"`, `"float8_e4m3fn"`, `"float8_e5m2"`)
floats travel between neighbours in half or a quarter of the bytes. Both ends of an edge
calculate with the rounded values, the sender's own included: what one end gains the
other loses, so that the mean of the models does not move by the rounding, and equal
models stay equal. Numbers beyond the largest of the dtype (448 of `float8_e4m3fn`,
57,344 of `float8_e5m2`, 65,504 of `float16`) are sent as that one, and count as equal.
Models that differ by less than the distance between two numbers of that dtype look
equal, and come no closer to each other. A `rounding_seed` rounds up or down at random
instead, on all workers by the same draws: then differences are right on average however
small they are.

:func:`replicate` gives all workers the same arrays, :func:`check_agreement` makes sure
that they hold the same, :func:`launcher_size` and :func:`launcher_rank` tell what
`mpirun` says before MPI is started.
"""

import functools
import warnings
from typing import Any

import jax

from djax._interfaces import Communicator
from djax.transport import (
    _end,
    _launch,
    _start,
)
from djax.transport._launch import launcher_rank as launcher_rank
from djax.transport._launch import launcher_size as launcher_size

from . import _common
from ._agreement import check_agreement as check_agreement
from ._agreement import replicate as replicate
from ._axis import MeshCommunicator as MeshCommunicator
from ._axis import SimulatedCommunicator as SimulatedCommunicator
from ._lossy import GilbertElliott as GilbertElliott
from ._lossy import LossyCommunicator as LossyCommunicator
from ._lossy import (
    check_short_form,
    short_form,
)
from ._lossy import lossy as lossy


def simulated(
    size: int,
    *,
    axis_name: str = "workers",
    message_dtype: Any = None,
    rounding_seed: int | None = None,
    drop_probability: float = 0.0,
    drop_seed: int = 0,
) -> Communicator:
    """All workers on one device, along a `vmap` axis.

    Args:
      size: number of workers.
      axis_name: name of the axis, for those who `vmap` the program themselves.
      message_dtype: dtype in which floats travel between neighbours: see
        :mod:`djax.communicators`.
      rounding_seed: round to it stochastically, by draws of this seed.
      drop_probability: probability in [0, 1) with which a message is lost; see
        :func:`lossy`.
      drop_seed: seed that decides which messages are lost.

    Returns:
      A communicator whose `spmd` is a `jax.vmap`.

    Raises:
      ValueError: if an argument is no such number, or out of range.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> communicator = djax.communicators.simulated(3)
      >>> shift = communicator.spmd(lambda x: communicator.permute(x, (2, 0, 1)))
      >>> print(shift(jnp.asarray([10, 11, 12])))
      [12 10 11]
    """
    size = _common.check_size("simulated", size)
    messages = _common.check_messages("simulated", message_dtype, rounding_seed)
    drops = check_short_form("simulated", drop_probability, drop_seed)
    communicator = SimulatedCommunicator(size, axis_name, *messages)
    return short_form(communicator, *drops)


def mesh(
    size: int,
    *,
    devices: Any = None,
    axis_name: str = "workers",
    message_dtype: Any = None,
    rounding_seed: int | None = None,
    drop_probability: float = 0.0,
    drop_seed: int = 0,
) -> Communicator:
    """One worker a device, in one program (NCCL between GPUs).

    On several hosts call `jax.distributed.initialize()` first. What `spmd` takes and
    returns are then global arrays, made from those of the local workers by
    `jax.make_array_from_process_local_data(communicator.sharding, local)`.

    Args:
      size: number of workers.
      devices: the workers' devices; by default the first of `jax.devices()`.
      axis_name: name of the axis, for those who `shard_map` the program themselves.
      message_dtype: dtype in which floats travel between neighbours: see
        :mod:`djax.communicators`.
      rounding_seed: round to it stochastically, by draws of this seed.
      drop_probability: probability in [0, 1) with which a message is lost; see
        :func:`lossy`.
      drop_seed: seed that decides which messages are lost.

    Returns:
      A communicator whose `spmd` is a `jax.shard_map`.

    Raises:
      ValueError: if there are not enough devices, or an argument is out of range.
    """
    size = _common.check_size("mesh", size)
    messages = _common.check_messages("mesh", message_dtype, rounding_seed)
    drops = check_short_form("mesh", drop_probability, drop_seed)
    devices = tuple(jax.devices() if devices is None else devices)
    if len(devices) < size:
        raise ValueError(
            f"a mesh of {size} workers needs {size} devices, but there are "
            f"{len(devices)}. On a CPU, set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={size} before starting Python, "
            "or use communicators.simulated."
        )
    communicator = MeshCommunicator(size, axis_name, *messages, devices[:size])
    return short_form(communicator, *drops)


def mpi(
    comm: Any = None,
    *,
    message_dtype: Any = None,
    rounding_seed: int | None = None,
    drop_probability: float = 0.0,
    drop_seed: int = 0,
) -> Communicator:
    """One worker a rank; run with `mpirun -n SIZE python ...`.

    Call it before JAX's first computation. On a node with GPUs the process takes the
    GPU of its node-local rank; on CPUs its XLA threads take its share of the cores.

    All ranks of the job have to call it. After 30 seconds rank 0 names those that have
    not come, and after 600 seconds, or as many as the environment variable
    `DJAX_START_TIMEOUT` says, all end. An uncaught exception on one rank, or an exit
    code other than 0, ends all of them. A rank whose program has ended waits for the
    others. If one of them then stands at one place of its Python program for more than
    60 seconds, or as many as `DJAX_EXIT_TIMEOUT` says, it waits for the rank that has
    left, and all end; set it higher if a single compiled call takes longer.

    A mechanism's `init` compares the mechanism, its options, the graph and the shapes
    of the parameters of all ranks, and names what differs. All ranks have to call it; a
    rank that needs the shapes of a state alone takes them from `jax.eval_shape`.

    Every rank has to make every exchange. A conditional on one rank's own values around
    a mechanism, such as `optax.apply_if_finite(optax.chain(optax.sgd(0.1), gossip), 5)`
    with a NaN in one rank's gradient, lets that rank leave out messages that the others
    wait for. Put `apply_if_finite` around the optimizer alone, in front of the
    mechanism.

    Args:
      comm: an `mpi4py.MPI.Comm`, of which duplicates are made; by default all ranks.
      message_dtype: dtype in which floats travel between neighbours: see
        :mod:`djax.communicators`.
      rounding_seed: round to it stochastically, by draws of this seed.
      drop_probability: probability in [0, 1) with which a message is lost; see
        :func:`lossy`.
      drop_seed: seed that decides which messages are lost.

    Returns:
      A communicator whose `spmd` runs this process's one worker.

    Warns:
      UserWarning: once, if no launcher has started the process, so that it is the only
        worker. Pass `MPI.COMM_WORLD` or `MPI.COMM_SELF` where one is meant.

    Raises:
      ImportError: if mpi4py or mpi4jax is missing.
      RuntimeError: if the launcher belongs to another MPI than mpi4py, if JAX already
        holds several GPUs, or if a rank does not call it in time.
      ValueError: if an argument or an environment variable is out of range.
    """
    messages = _common.check_messages("mpi", message_dtype, rounding_seed)
    drops = check_short_form("mpi", drop_probability, drop_seed)
    try:
        MPI = _start.start_mpi()

        from ._mpi import MPICommunicator
    except ImportError as error:
        raise ImportError(
            "communicators.mpi needs mpi4py and mpi4jax: install djax-gossip[mpi], "
            "and djax-gossip[mpi,mpich] where there is no MPI yet."
        ) from error
    world = MPI.COMM_WORLD
    if comm is None:
        comm = world
        if world.size == 1 and _launch.launcher_size() is None:
            _warn_of_one_rank()
    _launch.check(world)
    _start.meet(
        world, "djax.communicators.mpi()", _start.seconds_of(_start.START_TIMEOUT)
    )
    _launch.prepare(world)
    if world.size > 1:
        _end.end_together(world)
    communicator = MPICommunicator(comm.Dup(), comm.Dup(), *messages)
    return short_form(communicator, *drops)


@functools.cache
def _warn_of_one_rank() -> None:
    warnings.warn(
        "djax.communicators.mpi() has one worker, as this process was started without "
        "a launcher: start several by `mpirun -n SIZE python ...` (or srun), or pass "
        "mpi4py.MPI.COMM_WORLD if one is meant.",
        stacklevel=3,
    )
