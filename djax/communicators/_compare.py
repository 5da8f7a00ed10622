"""How ranks compare what each of them starts, in bounded time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpi4jax
import numpy as np
from jax.experimental import io_callback
from mpi4py import MPI

from djax._interfaces import PyTree
from djax._mechanism.agreement import differences
from djax.transport import _start

_TAG = 32004  # In nobody else's way.


def compare(comm: Any, name: str, facts: dict[str, Any]) -> None:
    """Raises on all ranks unless all have the same facts.

    Args:
      comm: an MPI communicator of the hosts.
      name: of the mechanism that starts.
      facts: this rank's.

    Raises:
      ValueError: names what differs.
      djax.transport._start.Absent: if a rank does not come within
        `DJAX_START_TIMEOUT` seconds.
    """
    _start.meet(comm, f"init of {name}", _start.seconds_of(_start.START_TIMEOUT))
    # All are here, so that none waits long. Nobody else's messages have this tag.
    others = range(1, comm.size)
    if comm.rank:
        comm.send(facts, 0, _TAG)
        found = comm.recv(source=0, tag=_TAG)
    else:
        found = differences([facts, *(comm.recv(source=r, tag=_TAG) for r in others)])
        for rank in others:
            comm.send(found, rank, _TAG)
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(
            f"the ranks do not start the same: {'; '.join(found[:3])}{more}. Start "
            "every rank with the same command, code and seed."
        )


def call_in_order(comm: MPI.Comm, call: Callable[[], None], after: PyTree) -> None:
    """Lets a traced program call a function of the host.

    Args:
      comm: the communicator of the programs. The call is made after the messages that
        come before it in the program, and before those that come after it. XLA could
        otherwise order them differently on each rank, and two ranks wait for each
        other.
      call: the function, which may raise.
      after: arrays that have to be there before.
    """
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError:  # JAX_PLATFORMS=cuda leaves nowhere to call from.
        return

    def called(_):
        call()
        return np.zeros((), np.uint8)

    def in_line(x):
        """Sends `x` to this rank itself, in order with the messages to others."""
        me = comm.Get_rank()
        return mpi4jax.sendrecv(
            x, x, source=me, dest=me, sendtag=_TAG, recvtag=_TAG, comm=comm
        )

    @jax.custom_batching.custom_vmap
    def run(x):
        kind = jax.ShapeDtypeStruct((), jnp.uint8)
        come = in_line((x != 0).astype(jnp.uint8))
        return in_line(io_callback(called, kind, come, ordered=True))

    @run.def_vmap
    def run_once(size, batched, x):
        return run(x[0] if batched[0] else x), False

    firsts = [jnp.ravel(x)[0] for x in jax.tree.leaves(after) if np.size(x)]
    first = firsts[0] if firsts else jnp.zeros(())
    run(jax.lax.stop_gradient(first))
