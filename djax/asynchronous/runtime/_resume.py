"""Decides from which state a worker starts or resumes a run.

A new run starts from rank 0's model, a resumed run from the checkpoints. When a worker
is lost, the others continue without it, and its last checkpoint becomes outdated. If
the run were resumed from this old model, averaging would undo much of what the others
have learned since. Therefore the checkpoints of the surviving workers name the lost
workers, and a lost worker resumes from the state of a surviving one.
"""

import functools
import pathlib
import warnings
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from djax._interfaces import Communicator, PyTree
from djax.training import Checkpointer, from_numpy, to_numpy
from djax.transport import say

from ..algorithms import EventTransformation


class Start(NamedTuple):
    """The state from which a worker starts.

    Attributes:
      params: the model.
      state: the state of the algorithm.
      model_state: values that a gradient passes on to the next one.
      finished: number of gradients that the worker has computed before.
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
    resume: bool,
) -> Start:
    """Returns the state from which this worker starts.

    All workers have to call this function together.

    Args:
      algorithm: the asynchronous algorithm.
      communicator: the communicator, made by :func:`djax.communicators.mpi`.
      params: the initial model; all workers take that of rank 0.
      model_state: the initial model state of this worker.
      saver: restores this worker; None if the run has no checkpoints.
      budget: number of gradients of all workers together, or None.
      resume: whether the run may be a resumed one, so that rank 0 says what it is.
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
    if comm.rank == 0 and resume:
        say(describe_start(saver.directory, sum(counts)))
    if comm.rank == 0 and (text := describe_used_budget(counts, budget)):
        warnings.warn(f"asynchronous.run: {text}", stacklevel=3)
    return _catch_up(comm, start, counts, lost, saver) if lost else start


@functools.lru_cache(maxsize=8)
def _make_share(communicator: Communicator):
    """Makes the program that shares rank 0's model; cached for later runs."""
    return jax.jit(communicator.spmd(communicator.broadcast))


def find_lost(counts: Sequence[int], named: Sequence[Collection[int]]) -> list[int]:
    """Returns the ranks of the workers that must not resume from their own checkpoints.

    Args:
      counts: the number of gradients in each worker's checkpoint.
      named: the ranks that each worker's checkpoint names as lost.

    Returns:
      The ranks in ascending order; never all ranks.
    """
    lost = set().union(*named)
    if len(lost) == len(counts):
        # The network was cut into parts that took each other for lost, so that every
        # worker is named. Then the most advanced worker decides which are lost.
        lost = set(named[int(np.argmax(counts))])
    return sorted(lost)


def _catch_up(
    comm: Any, start: Start, counts: list[int], lost: list[int], saver: Checkpointer
) -> Start:
    """Gives the lost workers the state of the survivor with the most gradients.

    All workers save the state from which they start, the lost workers first. From then
    on no checkpoint names them as lost any more.

    Args:
      comm: the MPI communicator for messages between processes.
      start: the state in this worker's own checkpoint.
      counts: the number of gradients in each worker's checkpoint.
      lost: the ranks of the lost workers.
      saver: saves this worker.

    Returns:
      The state from which this worker starts. A lost worker keeps the number of its own
      gradients, which is its position in the data.
    """
    survivors = [rank for rank in range(comm.size) if rank not in lost]
    donor = max(survivors, key=counts.__getitem__)
    if comm.rank == 0:
        for rank in lost:
            say(
                f"worker {rank} was lost in the run before, after "
                f"{counts[rank]} gradients by its checkpoint: it goes on from the "
                f"state of worker {donor}, which has computed {counts[donor]}."
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


def describe_start(directory: pathlib.Path, finished: int) -> str:
    """Says where a run goes on that may be resumed.

    Args:
      directory: the folder of the checkpoints.
      finished: number of gradients of all workers in the checkpoints.
    """
    if not finished:
        return f"{directory} has no checkpoint yet: the run begins from the start"
    return f"resumed from {directory}, after {finished} gradients of all workers"


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
