"""What a worker begins with: rank 0's model, its own checkpoint, or another worker's.

When a worker is lost, the others go on without it, and its last checkpoint grows old.
Averaged with the others when the run is resumed, an old model would undo much of what
they have learned since. So the checkpoints of the survivors name the workers that are
lost, and those go on from a survivor's state instead of their own.
"""

import functools
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from djax._interfaces import (
    Communicator,
    PyTree,
)
from djax.asynchronous.algorithms._acid import EventTransformation
from djax.training._checkpoints import to_numpy

from ._checkpoint import (
    Checkpointer,
    from_numpy,
)


class Start(NamedTuple):
    """What a worker begins with.

    Attributes:
      params: its model.
      state: of the algorithm.
      model_state: what its gradients carry along.
      finished: number of its gradients.
    """

    params: PyTree
    state: PyTree
    model_state: PyTree
    finished: int


def begin(
    algorithm: EventTransformation,
    communicator: Communicator,
    params: PyTree,
    model_state: PyTree,
    saver: Checkpointer | None,
    budget: int | None,
) -> Start:
    """Finds out what this worker begins with; all workers call it together.

    Args:
      algorithm: what every worker does.
      communicator: of MPI.
      params: the first model; all start from that of rank 0.
      model_state: the first one, of this worker.
      saver: of this worker's checkpoints, if there are any.
      budget: gradients of all workers together, or None.
    """
    if communicator.size > 1:
        everyones = _make_share(communicator)(jax.tree.map(lambda x: x[None], params))
        params = jax.tree.map(lambda x: x[0], everyones)
    start = Start(params, jax.jit(algorithm.init)(params), model_state, 0)
    if saver is None:
        return start
    if saver.latest is not None:
        start = Start(*saver.restore(start[:3]), finished=saver.latest)
    comm = getattr(communicator, "host_comm")  # noqa: B009
    counts = comm.allgather(start.finished)
    lost = find_lost(counts, comm.allgather(saver.lost))
    if comm.rank == 0 and (text := describe_used_budget(counts, budget)):
        warnings.warn(f"asynchronous.run: {text}", stacklevel=3)
    return _catch_up(comm, start, counts, lost, saver) if lost else start


@functools.lru_cache(maxsize=8)
def _make_share(communicator: Communicator):
    """Kept, so that another run in the same process compiles nothing."""
    return jax.jit(communicator.spmd(communicator.broadcast))


def find_lost(counts: Sequence[int], named: Sequence[Collection[int]]) -> list[int]:
    """The workers whose checkpoints are not to be used.

    Args:
      counts: gradients of each worker by its checkpoint.
      named: whom each worker's checkpoint names as lost.

    Returns:
      Their ranks, ascending; never all of them.
    """
    lost = set().union(*named)
    if len(lost) == len(counts):
        # Two parts of the workers lost sight of each other, so that everybody is named.
        # The part with the worker that has got furthest is right.
        lost = set(named[int(np.argmax(counts))])
    return sorted(lost)


def _catch_up(
    comm: Any, start: Start, counts: list[int], lost: list[int], saver: Checkpointer
) -> Start:
    """Gives those that were lost the state of the survivor with the most gradients.

    All save what they begin with, first those that were lost. From then on no
    checkpoint names them any more.

    Args:
      comm: communicator of MPI for messages between processes.
      start: of this worker, by its own checkpoint.
      counts: gradients of each worker.
      lost: ranks of those that were lost.
      saver: of this worker.

    Returns:
      What this worker begins with; the number of its gradients, which is its place in
      the data, stays.
    """
    survivors = [rank for rank in range(comm.size) if rank not in lost]
    donor = max(survivors, key=counts.__getitem__)
    if comm.rank == 0:
        for rank in lost:
            print(
                f"worker {rank} was lost in the run before, after "
                f"{counts[rank]} gradients by its checkpoint: it goes on from the "
                f"state of worker {donor}, which has computed {counts[donor]}.",
                file=sys.stderr,
                flush=True,
            )
    leaves, structure = jax.tree.flatten(start[:3])
    arrays = [*map(to_numpy, leaves)]
    for array in arrays:
        data = array.reshape(-1).view(np.uint8)
        if comm.rank == donor:
            for rank in lost:
                comm.Send(data, rank)
        elif comm.rank in lost:
            comm.Recv(data, donor)
    if comm.rank in lost:
        taken = structure.unflatten(map(from_numpy, arrays, leaves))
        start = Start(*taken, finished=start.finished)
        saver.save(start.finished, start[:3], wait=True)
    comm.barrier()
    if comm.rank not in lost:
        saver.save(start.finished, start[:3])
    return start


def describe_used_budget(counts: Sequence[int], budget: int | None) -> str:
    """What to say if nothing is left to compute; empty otherwise.

    Args:
      counts: gradients of each worker that its checkpoint has.
      budget: gradients of all workers together, or None.
    """
    if budget is None or sum(counts) < budget:
        return ""
    return (
        f"by their checkpoints the workers have computed {sum(counts)} of {budget} "
        "gradients: none is left to compute. Ask for more to go on."
    )
