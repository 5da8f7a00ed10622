"""The rounds of a step: what a worker sends and hears in each of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._arrays.checks import is_function
from djax._arrays.keys import key_of_step
from djax._interfaces import Communicator, PyTree
from djax._tracing import tracing_round
from djax.topologies import Graph

from ._narrow import narrow


class Heard(NamedTuple):
    """What a worker receives in one round.

    Attributes:
      message: the neighbour's message, as it was sent; the worker's own message if it
        has no neighbour in this round.
      own: the worker's own message, as it was sent.
      weight: `float[]`, the mixing weight of the neighbour in this step; 0 if the
        worker has no neighbour in this round, or if the message was lost.
      arrived: `bool[]`, whether the message arrived; the Python value True if the
        communicator loses no messages.
    """

    message: PyTree
    own: PyTree
    weight: jax.Array
    arrived: jax.Array | bool


def rounds(
    message: PyTree | Callable[[int], PyTree],
    graph: Graph,
    communicator: Communicator,
    steps: Sequence[int],
    step: ArrayLike,
    key: jax.Array | None,
) -> Iterator[Heard]:
    """Makes the rounds of a step, which is one of `steps` of the graph's period."""

    def with_wire(sent):
        """The message, and the rounded one that travels, if messages are rounded."""
        return sent, narrow(sent, communicator, step)

    once = None if is_function(message) else with_wire(message)
    drop_key = key_of_step(key, step)
    now = place(steps, graph.period, step)
    count = max(len(graph.rounds_at(t)) for t in steps)
    for r in range(count):
        sources, weights = zip(*(round_of(graph, t, r) for t in steps), strict=True)
        sent, wire = once or with_wire(message(r))
        if len(set(sources)) == 1:
            source, index = sources[0], None
            with tracing_round(r, count):
                received = communicator.permute(wire, source)
        else:
            source, index = sources, now
            with tracing_round(r, count):
                received = communicator.permute_one_of(wire, source, index)
        own = wire
        if wire is not sent:
            received, own = read_back(received, sent), read_back(wire, sent)
        arrived = communicator.arrived(source, drop_key, step=step, index=index)
        weight = mine(np.array(weights), communicator, now)
        if arrived is not True:
            weight = jnp.where(arrived, weight, 0)
        yield Heard(received, own, weight, arrived)


def by_rounds(
    message: PyTree,
    own: PyTree,
    read: Callable[[PyTree, PyTree], PyTree],
    graph: Graph,
    communicator: Communicator,
    steps: Sequence[int],
    step: ArrayLike,
    key: jax.Array | None,
) -> tuple[PyTree, jax.Array | None]:
    r"""Adds up :math:`w_{ij} \operatorname{read}(m_j, m_i)`, one round after the other.

    Args:
      message: what this worker sends, :math:`m_i`.
      own: the message as it was sent.
      read: see :func:`djax.mixing.weighted_sum`.
      graph: the neighbours and the mixing weights.
      communicator: how messages travel.
      steps: the steps of the graph's period of which this may be one.
      step: `int32[]`, the number of steps so far.
      key: PRNG key that decides which messages are lost.

    Returns:
      The sum over the messages that arrived, and `float[]`, the sum of their weights;
      None in its place if the communicator loses no messages.
    """
    total = weight = None
    for heard in rounds(message, graph, communicator, steps, step, key):
        found = read(heard.message, own)
        if heard.arrived is not True:
            nothing = optax.tree.zeros_like(found)
            found = optax.tree.where(heard.arrived, found, nothing)
            weight = heard.weight if weight is None else weight + heard.weight
        part = jax.tree.map(lambda x, w=heard.weight: w.astype(x.dtype) * x, found)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    if total is None:  # No worker has a neighbour in these steps.
        total = jax.tree.map(jnp.zeros_like, read(own, own))
    if weight is None and communicator.drop_probability:
        weight = jnp.zeros(())
    return total, weight


def round_of(graph: Graph, t: int, r: int) -> tuple[Sequence[int], np.ndarray]:
    """The senders and weights of round `r` of step `t`; beyond the last, of silence."""
    if r < len(rounds := graph.rounds_at(t)):
        return rounds[r], graph.round_weights_at(t)[r]
    return tuple(range(graph.size)), np.zeros(graph.size)


def mine(table: np.ndarray, communicator: Communicator, now: ArrayLike) -> jax.Array:
    """Looks up this worker's entry for a step in a table `[steps, n]`."""
    rank = communicator.rank()
    if len(table) == 1:
        return jnp.asarray(table[0])[rank]
    return jnp.asarray(table)[now, rank]


def place(steps: Sequence[int], period: int, step: ArrayLike) -> ArrayLike:
    """`int32[]`, the position of the present step of the period within `steps`."""
    now = jnp.asarray(step, jnp.int32) % period
    if len(steps) == period:
        return now
    places = np.zeros(period, np.int32)
    places[list(steps)] = np.arange(len(steps))
    return jnp.asarray(places)[now]


def read_back(wire: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), wire, like)
