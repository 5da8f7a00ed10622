"""What a worker begins with: rank 0's model, its own checkpoint, or another worker's.

When a worker is lost, the others go on without it, and its last checkpoint grows old.
If the run were resumed from this old model, averaging would undo much of what the
others have learned since. Therefore the checkpoints of the surviving workers name the
lost workers, and a lost worker goes on from the state of a surviving one.
"""

import functools
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from djax._interfaces import Communicator, PyTree
from djax.training import Checkpointer, from_numpy, to_numpy

from ..algorithms import EventTransformation


class Start(NamedTuple):
    """What a worker begins with.

    Attributes:
      params: its model.
      state: its state of the algorithm.
      model_state: what its gradients carry along.
      finished: the number of gradients that it has computed.
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
      params: the initial model; all workers take that of rank 0.
      model_state: the initial model state of this worker.
      saver: restores this worker; None if nothing is saved.
      budget: number of gradients of all workers together, or None.
    """
    if communicator.size > 1:
        everyones = _make_share(communicator)(jax.tree.map(lambda x: x[None], params))
        params = jax.tree.map(lambda x: x[0], everyones)
    start = Start(params, jax.jit(algorithm.init)(params), model_state, 0)
    if saver is None:
        return start
    named: list[int] = []
    if saver.latest is not None:
        tree, named = saver.restore(start[:3])
        start = Start(*tree, finished=saver.latest)
    comm = getattr(communicator, "host_comm")  # noqa: B009
    counts = comm.allgather(start.finished)
    lost = find_lost(counts, comm.allgather(named))
    if comm.rank == 0 and (text := describe_used_budget(counts, budget)):
        warnings.warn(f"asynchronous.run: {text}", stacklevel=3)
    return _catch_up(comm, start, counts, lost, saver) if lost else start


@functools.lru_cache(maxsize=8)
def _make_share(communicator: Communicator):
    """Returns a program that is kept, so that a second run compiles nothing."""
    return jax.jit(communicator.spmd(communicator.broadcast))


def find_lost(counts: Sequence[int], named: Sequence[Collection[int]]) -> list[int]:
    """Returns the ranks of the workers that must not go on from their own checkpoints.

    Args:
      counts: the number of gradients in each worker's checkpoint.
      named: the ranks that each worker's checkpoint names as lost.

    Returns:
      The ranks in ascending order; never all ranks.
    """
    lost = set().union(*named)
    if len(lost) == len(counts):
        # The network was cut into parts that took each other for lost, so that every
        # worker is named. The part with the most advanced worker is believed.
        lost = set(named[int(np.argmax(counts))])
    return sorted(lost)


def _catch_up(
    comm: Any, start: Start, counts: list[int], lost: list[int], saver: Checkpointer
) -> Start:
    """Gives the lost workers the state of the survivor with the most gradients.

    All workers save what they begin with, the lost workers first. From then on no
    checkpoint names them as lost any more.

    Args:
      comm: the MPI communicator for messages between processes.
      start: what this worker would begin with by its own checkpoint.
      counts: the number of gradients of each worker.
      lost: the ranks of the lost workers.
      saver: saves this worker.

    Returns:
      What this worker begins with. It keeps the number of its own gradients, which is
      its place in the data.
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
        saver.save(start.finished, start[:3], [], wait=True)
    comm.barrier()
    if comm.rank not in lost:
        saver.save(start.finished, start[:3], [])
    return start


def describe_used_budget(counts: Sequence[int], budget: int | None) -> str:
    """Returns a sentence if no gradient is left to compute, and "" otherwise.

    Args:
      counts: the number of gradients in each worker's checkpoint.
      budget: number of gradients of all workers together, or None.
    """
    if budget is None or sum(counts) < budget:
        return ""
    return (
        f"by their checkpoints the workers have computed {sum(counts)} of {budget} "
        "gradients: none is left to compute. Ask for more to go on."
    )
