"""Counts the bytes and messages that an algorithm sends, from its own program."""

import warnings
from typing import Any

import jax
import numpy as np
import optax

from ._counting import CommunicationCost, cost_of, trace
from ._interfaces import Communicator, PyTree
from ._transformations import as_transformation, is_asynchronous
from ._values import describe, is_array
from .topologies import Graph

__all__ = ["CommunicationCost", "communication_cost"]
__dir__ = __all__.copy  # For dir() and completion.


def communication_cost(
    transformation: optax.GradientTransformation,
    params: PyTree,
    topology: Graph | Communicator,
    **extra_args: Any,
) -> CommunicationCost:
    """Counts the bytes and messages that one update makes each worker send.

    The update is only traced, with the shapes of arrays: nothing is computed or sent.
    Messages are counted as they would be passed to MPI. Leaves smaller than 1 MiB are
    packed into one message for each dtype, and larger leaves are sent as messages of
    their own. If several communicators carry the messages, such as the levels of
    :func:`djax.communicators.grouped`, `cost[name]` is the cost of one of them.

    An all-reduce counts as sending its buffer once, as in the papers,
    although each worker of a ring would send `2 (n - 1) / n` times the buffer. An
    all-gather counts as sending the worker's own arrays once.

    Args:
      transformation: a mechanism, or a chain that contains mechanisms.
      params: the parameters of ONE worker, or their shapes (`jax.ShapeDtypeStruct`).
      topology: the graph, the communicator, or any object whose `size` is the number of
        workers.
      **extra_args: extra arguments of the update, or their shapes.

    Returns:
      A :class:`CommunicationCost`.

    Raises:
      TypeError: if the transformation is asynchronous, since its updates send nothing;
        or if `topology` has no number of workers.
      ValueError: if the transformation is for another number of workers, or if what it
        sends depends on values, as in a `while_loop` or in a `cond` whose branches send
        different amounts.

    Warns:
      UserWarning: if the leading axis of all leaves has the length of the number of
        workers, since these are probably the parameters of all workers.

    Examples:
      >>> import djax, jax
      >>> ring = djax.topologies.ring(8)
      >>> gossip = djax.gossip(ring, djax.communicators.simulated(8))
      >>> weights = jax.ShapeDtypeStruct((1000,), "float32")
      >>> djax.communication_cost(gossip, weights, ring).mean_bytes
      8000
      >>> rarely = djax.every(4, gossip)
      >>> djax.communication_cost(rarely, weights, ring).mean_messages
      0.5
    """
    if is_asynchronous(transformation):
        raise TypeError(
            "an asynchronous algorithm sends nothing in its updates, but one model in "
            "each averaging: multiply Events.averaging_counts by the bytes of a model"
        )
    update = as_transformation("communication_cost", transformation).update
    topology = getattr(topology, "whole", topology)
    size = getattr(topology, "size", None)
    if not isinstance(size, int) or is_array(topology):
        raise TypeError(
            "communication_cost needs the topology, or the communicator, got "
            f"{describe(topology)}."
        )
    _warn_of_all_workers(params, size)
    _, state = trace(topology.size, transformation.init, params)
    program, _ = trace(
        topology.size,
        lambda params, state, extra: update(params, state, params, **extra),
        *(params, state, extra_args),
    )
    return cost_of(program, topology.size)


def _warn_of_all_workers(params: PyTree, size: int) -> None:
    """Warns if the parameters seem to be those of all workers."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    if size > 1 and shapes and all(shape[:1] == (size,) for shape in shapes):
        warnings.warn(
            f"communication_cost takes ONE worker's parameters, but all leaves have a "
            f"leading axis of {size}, the number of workers. If these are the "
            f"parameters of all workers, the cost is counted {size} times: pass "
            "jax.tree.map(lambda x: x[0], params).",
            stacklevel=3,
        )
