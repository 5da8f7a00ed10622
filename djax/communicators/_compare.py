"""Compares between ranks how a mechanism is started, without waiting for ever.

Ranks that start a mechanism with different graphs or options would average wrong
values. A rank that never comes ends the comparison with an error.
"""

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
from djax.transport import meet

from . import _common

_TAG = 32004  # No other messages have this tag.


def compare(comm: Any, name: str, facts: dict[str, Any]) -> None:
    """Raises on all ranks unless all ranks have the same facts.

    Args:
      comm: an MPI communicator of the hosts.
      name: the name of the mechanism that starts.
      facts: the facts of this rank.

    Raises:
      ValueError: if facts differ; the error names them.
      djax.transport.Absent: if a rank does not come within `DJAX_START_TIMEOUT`
        seconds.
    """
    meet(comm, f"init of {name}")
    # All ranks have come, so that none of them waits long.
    others = range(1, comm.size)
    if comm.rank:
        comm.send(facts, 0, _TAG)
        found = comm.recv(source=0, tag=_TAG)
    else:
        found = differences([facts, *(comm.recv(source=r, tag=_TAG) for r in others)])
        for rank in others:
            comm.send(found, rank, _TAG)
    _common.check_same_starts(found)


def call_in_order(comm: MPI.Comm, call: Callable[[], None], after: PyTree) -> None:
    """Makes a traced program call a function of the host.

    The call has a fixed place among the messages of the program: after those that come
    before it, and before those that come after it. Otherwise XLA could order call and
    messages differently on two ranks, which would then wait for each other.

    Args:
      comm: the communicator that carries the messages of programs.
      call: the function, which may raise an exception.
      after: arrays that are computed before the call.
    """
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError:  # With JAX_PLATFORMS=cuda there is no device for the call.
        return

    def called(_):
        call()
        return np.zeros((), np.uint8)

    def in_line(x):
        """Sends `x` to this rank itself, in line with the messages to other ranks."""
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
