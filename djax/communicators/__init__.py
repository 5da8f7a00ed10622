"""Communicators: how the workers of one run exchange arrays.

An algorithm is written once, for one worker, and takes a communicator as an argument.
The communicator decides where the workers live. There are three, and with the same
seeds all of them give the same numbers, up to rounding errors:

* :func:`simulated`: all workers share one device, along an axis of `vmap`;
* :func:`mesh`: each worker has a device of its own, or several, in one program by
  `jax.shard_map`;
* :func:`mpi`: each worker is a process that `mpirun` starts, by mpi4jax.

**Groups.** :func:`grouped` makes two communicators of one: one within groups of
workers, such as those of a node, and one between the groups.

**Lost messages.** :func:`lossy` wraps one of the three and loses messages between
neighbours, independently of each other or in bursts.

**Narrow messages.** With `message_dtype="bfloat16"` (or `"float16"`,
`"float8_e4m3fn"`, `"float8_e5m2"`) the floats of a message are rounded, and take half
or a quarter of the bytes. Both ends of an edge calculate with the rounded values: a
worker also rounds its own model before it subtracts it from the model of a neighbour.
For this reason the rounding does not move the mean of the models, and equal models stay
equal. Numbers beyond the largest one of the dtype (448 for `float8_e4m3fn`, 57,344 for
`float8_e5m2`, 65,504 for `float16`) are sent as that largest number. Two models that
round to the same numbers look equal and come no closer to each other. A `rounding_seed`
prevents that: numbers are then rounded up or down at random, with the same draws on all
workers, so that even the smallest differences are right on average.

**Start.** :func:`replicate` gives all workers the same arrays, :func:`from_local` gives
the workers of this process arrays of their own, which :func:`to_local` reads, and
:func:`check_agreement` makes sure that all workers hold the same values.
:func:`start_processes` connects the processes of a mesh on several hosts.
:func:`launcher_size` and :func:`launcher_rank` return what `mpirun` has told this
process, before MPI is started.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import DTypeLike

from djax import transport
from djax._interfaces import Communicator
from djax._layout import from_local, replicate, to_local
from djax.transport import launcher_rank, launcher_size, start_processes

from . import _common
from ._agreement import check_agreement
from ._axis import SimulatedCommunicator
from ._grouped import grouped
from ._lossy import GilbertElliott, LossyCommunicator, lossy, short_form
from ._mesh import MeshCommunicator, make_mesh
from ._mesh import gather_from_processes as gather_from_processes
from ._probabilities import check_short_form

__all__ = [
    "GilbertElliott",
    "LossyCommunicator",
    "MeshCommunicator",
    "SimulatedCommunicator",
    "check_agreement",
    "from_local",
    "grouped",
    "launcher_rank",
    "launcher_size",
    "lossy",
    "mesh",
    "mpi",
    "replicate",
    "simulated",
    "start_processes",
    "to_local",
]
__dir__ = __all__.copy  # For dir() and completion.


def simulated(
    size: int,
    *,
    axis_name: str = "workers",
    message_dtype: DTypeLike | None = None,
    rounding_seed: int | None = None,
    drop_probability: float = 0.0,
    drop_seed: int = 0,
) -> Communicator:
    """Simulates all workers on one device, along an axis of `vmap`.

    Args:
      size: number of workers.
      axis_name: name of the axis, which matters if you call `vmap` yourself.
      message_dtype: dtype to which the floats of messages are rounded; see
        :mod:`djax.communicators`.
      rounding_seed: seed of stochastic rounding; by default numbers are rounded to the
        nearest one.
      drop_probability: probability in [0, 1) with which a message is lost; see
        :func:`lossy`.
      drop_seed: seed that decides which messages are lost.

    Returns:
      A communicator whose `spmd` is a `jax.vmap`.

    Raises:
      ValueError: if an argument is not a number of the right kind, or out of range.

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
    devices: Sequence[jax.Device] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    axis_name: str = "workers",
    message_dtype: DTypeLike | None = None,
    rounding_seed: int | None = None,
    drop_probability: float = 0.0,
    drop_seed: int = 0,
) -> Communicator:
    """Gives workers devices of their own, in one program (NCCL between GPUs).

    **Workers of several devices.** If a model does not fit on one device, pass a mesh
    that has other axes besides that of the workers. A worker is then the part of the
    mesh along these axes. Its parameters lie on its devices as their shardings say,
    and so do its optimizer's state and its messages: each device exchanges its own
    part with the device at the same place of a neighbour. :func:`replicate` lays a
    model out.

    **Several processes.** Call :func:`start_processes` first. The arguments and results
    of `spmd` are then global arrays, which :func:`from_local` makes of the
    arrays of local workers, and :func:`to_local` reads. All processes run the same
    program.

    Args:
      size: number of workers.
      devices: the devices of the workers, one each, in the order of ranks; by default
        the first ones of `jax.devices()`.
      mesh: a mesh with an axis of the workers, and others, in place of `devices`. In
        the workers' programs, the other axes are left to the compiler
        (`AxisType.Auto`), whatever their types.
      axis_name: name of the axis of the workers, which matters with `mesh`, and if you
        call `shard_map` yourself.
      message_dtype: dtype to which the floats of messages are rounded; see
        :mod:`djax.communicators`.
      rounding_seed: seed of stochastic rounding; by default numbers are rounded to the
        nearest one.
      drop_probability: probability in [0, 1) with which a message is lost; see
        :func:`lossy`.
      drop_seed: seed that decides which messages are lost.

    Returns:
      A communicator whose `spmd` is a `jax.shard_map`.

    Raises:
      TypeError: if `mesh` is not a mesh.
      ValueError: if there are not enough devices, the mesh has no axis of as many
        workers, or an argument is out of range.

    Examples:
      >>> import djax, jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec
      >>> devices = jax.make_mesh((4, 2), ("workers", "fsdp"))
      >>> communicator = djax.communicators.mesh(4, mesh=devices)
      >>> model, specs = jnp.zeros((6, 3)), PartitionSpec("fsdp")
      >>> params = djax.communicators.replicate(communicator, model, specs)
      >>> params.sharding.spec, params.sharding.shard_shape(params.shape)
      (P('workers', 'fsdp'), (1, 3, 3))
    """
    size = _common.check_size("mesh", size)
    messages = _common.check_messages("mesh", message_dtype, rounding_seed)
    drops = check_short_form("mesh", drop_probability, drop_seed)
    chosen = make_mesh(size, devices, mesh, axis_name)
    if (processes := jax.process_count()) > 1:
        transport.end_processes_together()
        transport.watch_results(f"process {jax.process_index()} of {processes}")
    communicator = MeshCommunicator(size, axis_name, *messages, mesh=chosen)
    return short_form(communicator, *drops)


def mpi(
    comm: Any = None,
    *,
    message_dtype: DTypeLike | None = None,
    rounding_seed: int | None = None,
    drop_probability: float = 0.0,
    drop_seed: int = 0,
) -> Communicator:
    """Makes each rank of MPI a worker; run it with `mpirun -n SIZE python ...`.

    Call this function before the first computation of JAX. On a node with GPUs, the
    process then uses the GPU whose number is its rank within the node. On CPUs, the
    ranks of a node share its cores: XLA uses as many threads as the share of this rank
    has cores.

    **Start.** All ranks of the job have to call this function. After 30 seconds rank 0
    names the ranks that have not called it. After 600 seconds, or as many as the
    environment variable `DJAX_START_TIMEOUT` says, all ranks end.

    **End.** An uncaught exception or an exit code other than 0 on one rank ends all
    ranks. A rank whose program is over waits for the others. If another rank then stays
    at one line of its Python program for 60 seconds, it probably waits for a message
    from the rank whose program is over, and all ranks end. If a single compiled call of
    your program can take longer than that, set the environment variable
    `DJAX_EXIT_TIMEOUT` to more seconds.

    **Agreement.** The `init` of a mechanism compares the mechanism, its options, the
    graph and the shapes of the parameters between all ranks, and names what differs.
    All ranks have to call it. A rank that only needs the shapes of a state takes them
    from `jax.eval_shape`.

    **Deadlocks.** Each rank has to take part in each exchange. A rank that has waited
    for others for 300 seconds, or as many as the environment variable `DJAX_WATCHDOG`
    says, says on stderr for which ranks it waits, in which round of which mechanism,
    and at which line of your program. Those of the others that wait for no message say
    where they are. A conditional on the values of one rank around a mechanism is the
    usual reason: if one rank's gradient is NaN,
    `optax.apply_if_finite(optax.chain(optax.sgd(0.1), gossip), 5)` makes this rank skip
    messages that its neighbours wait for. Put `apply_if_finite` around the optimizer
    alone, in front of the mechanism.

    Args:
      comm: an `mpi4py.MPI.Comm`, of which the communicator makes a duplicate; by
        default the one of all ranks.
      message_dtype: dtype to which the floats of messages are rounded; see
        :mod:`djax.communicators`.
      rounding_seed: seed of stochastic rounding; by default numbers are rounded to the
        nearest one.
      drop_probability: probability in [0, 1) with which a message is lost; see
        :func:`lossy`.
      drop_seed: seed that decides which messages are lost.

    Returns:
      A communicator whose `spmd` runs this process's one worker.

    Warns:
      UserWarning: once, if the process was not started by a launcher, so that it is
        the only worker. To have one worker without a warning, pass `MPI.COMM_WORLD` or
        `MPI.COMM_SELF`.

    Raises:
      ImportError: if mpi4py or mpi4jax is missing.
      RuntimeError: if launcher and mpi4py belong to different MPI libraries, if JAX
        already holds several GPUs, or if a rank does not call this function in time.
      ValueError: if an argument or an environment variable is out of range.
    """
    messages = _common.check_messages("mpi", message_dtype, rounding_seed)
    drops = check_short_form("mpi", drop_probability, drop_seed)
    transport.watchdog_seconds()  # A wrong value is an error before anything starts.
    try:
        MPI = transport.start_mpi()

        from ._mpi import MPICommunicator
    except ImportError as error:
        raise ImportError(
            "communicators.mpi needs mpi4py and mpi4jax: install djax-gossip[mpi], "
            "and djax-gossip[mpi,mpich] where there is no MPI yet."
        ) from error
    world = MPI.COMM_WORLD
    if comm is None:
        comm = world
        if world.size == 1 and launcher_size() is None:
            _warn_of_one_rank()
    transport.check_launcher(world)
    transport.end_on_exceptions(world)
    transport.meet(world, "djax.communicators.mpi()")
    transport.share_node(world)
    if world.size > 1:
        transport.end_together(world)
    watchdog = transport.watchdog(comm)
    comms = comm.Dup(), comm.Dup(), comm.Dup()
    communicator = MPICommunicator(*comms, *messages, watchdog)
    return short_form(communicator, *drops)


@functools.cache
def _warn_of_one_rank() -> None:
    warnings.warn(
        "djax.communicators.mpi() has one worker, as this process was started without "
        "a launcher: start several by `mpirun -n SIZE python ...` (or srun), or pass "
        "mpi4py.MPI.COMM_WORLD if one is meant.",
        stacklevel=3,
    )
