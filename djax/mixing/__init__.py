"""How neighbours exchange messages in a step.

All mechanisms that talk to their neighbours send their messages through this module, so
that what concerns all of them is written once: the rounds of a step, also on graphs
that change with time; the mixing weights; the loss of messages; and the dtype in which
messages travel. A mechanism only says what it sends, and what it reads out of a
message. There are three functions, each built on the next:

* :func:`displacement` is a complete step of gossip;
* :func:`weighted_sum` adds up anything that can be read out of messages;
* :func:`exchange` sends the messages and returns them one after the other.

:func:`alternate` is for mechanisms whose steps take turns, such as sending in every
tenth step only.

A communicator may round messages to a smaller dtype (its `message_dtype`). A worker
then calculates with its own message *as it was sent*, that is, rounded like the
messages of its neighbours. What one end of an edge loses, the other end gains, and the
mean of all models stays where it is. If a worker used its own model without rounding,
the mean would drift by the rounding errors.
"""

# This file has more than 300 lines, so that the whole way of a message through a step
# can be read in one place; half of it are the docstrings of public functions.

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._arguments import check_sizes, check_weights
from djax._arrays.checks import is_function
from djax._arrays.keys import check_key, key_of_step
from djax._arrays.precision import promote
from djax._interfaces import Communicator, PyTree
from djax.topologies import Graph
from djax.topologies.checks import check_graph_kind

from ._alternate import alternate
from ._narrow import narrow

__all__ = [
    "Heard",
    "Sum",
    "alternate",
    "as_sent",
    "check_weights",
    "difference",
    "displacement",
    "exchange",
    "finite_difference",
    "weighted_sum",
]
__dir__ = __all__.copy  # For dir() and completion.


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


class Sum(NamedTuple):
    """A weighted sum over the messages that a worker receives in one step.

    Attributes:
      own: the worker's own message, as it was sent.
      total: the weighted sum of what was read out of the neighbours' messages.
      weight: `float[]`, the sum of the weights of those messages that arrived; None if
        the communicator loses no messages.
    """

    own: PyTree
    total: PyTree
    weight: jax.Array | None


def displacement(
    model: optax.Params,
    graph: Graph,
    communicator: Communicator,
    *,
    step: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> optax.Updates:
    r"""How far one averaging over the neighbourhood moves a worker's model.

    .. math:: \textstyle\sum_j w_{ij} (x_j - x_i)

    If messages are lost, the weights of the messages that arrived and the worker's
    weight for its own model are divided by their sum, so that they add up to one again.
    An entry of a neighbour's model that is NaN or infinite is replaced by the worker's
    own value, so that a diverged model does not spread.

    Args:
      model: this worker's :math:`x_i`, a tree of arrays of floats.
      graph: the neighbours and the mixing weights :math:`w_{ij}`; its matrices are
        doubly stochastic.
      communicator: how messages travel.
      step: `int32[]`, the number of steps so far, the same on all workers. It selects
        the matrix of a graph that changes with time, the messages that are lost, and
        the draws of stochastic rounding. It may be left out if none of these is used.
      key: PRNG key that decides which messages are lost; `jax.random.key(0)` by
        default.

    Returns:
      A tree like `model`, in float32 or wider.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> chain, workers = djax.topologies.chain(3), djax.communicators.simulated(3)
      >>> move = workers.spmd(lambda x: djax.mixing.displacement(x, chain, workers))
      >>> print(move(jnp.asarray([0.0, 3.0, 6.0])))
      [ 1.  0. -1.]
    """
    _check("mixing.displacement", graph, communicator, key, doubly_stochastic=True)
    check_weights("mixing.displacement", graph, communicator)
    step = _known_step("mixing.displacement", graph, communicator, step)
    heard = weighted_sum(
        model, finite_difference, graph, communicator, step=step, key=key
    )
    if heard.weight is None:
        return heard.total
    weight = heard.weight + _own_weight(graph, communicator, step)
    # If a worker gives no weight to its own model and all messages were lost, the sum
    # of the weights is 0.
    weight = jnp.where(weight > 0, weight, 1)
    return jax.tree.map(lambda total: total / weight.astype(total.dtype), heard.total)


def weighted_sum(
    message: PyTree,
    read: Callable[[PyTree, PyTree], PyTree],
    graph: Graph,
    communicator: Communicator,
    *,
    step: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> Sum:
    r"""Adds up, with the mixing weights, what is read out of the neighbours' messages.

    .. math:: \textstyle\sum_{j \ne i} w_{ij} \operatorname{read}(m_j, m_i)

    The sum runs over the neighbours only. The worker's own message enters through
    `read`, which usually returns a difference to the own message.

    Args:
      message: what this worker sends to all its neighbours, :math:`m_i`; a tree of
        arrays.
      read: a function that takes a neighbour's message and the worker's own message,
        both as they were sent, and returns a tree of arrays in float32 or wider.
      graph: the neighbours and the mixing weights :math:`w_{ij}`.
      communicator: how messages travel.
      step: see :func:`displacement`.
      key: PRNG key that decides which messages are lost; `jax.random.key(0)` by
        default.

    Returns:
      A :class:`Sum`, to which lost messages contribute nothing.
    """
    _check("mixing.weighted_sum", graph, communicator, key)
    step = _known_step("mixing.weighted_sum", graph, communicator, step)
    own = as_sent(message, communicator, step)
    # Steps with equally many rounds share one compiled branch.
    counts = [len(graph.rounds_at(t)) for t in range(graph.period)]
    kinds = sorted(set(counts))

    def over_rounds(kind, message, step):
        steps = [t for t, count in enumerate(counts) if count == kinds[kind]]
        total = weight = None
        for heard in _rounds(message, graph, communicator, steps, step, key):
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

    if len(kinds) == 1:
        return Sum(own, *over_rounds(0, message, step))
    branches = [functools.partial(over_rounds, i) for i in range(len(kinds))]
    schedule = [kinds.index(n) for n in counts]
    return Sum(own, *alternate(step, schedule, branches, message, step))


def exchange(
    message: PyTree | Callable[[int], PyTree],
    graph: Graph,
    communicator: Communicator,
    *,
    step: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> Iterator[Heard]:
    """Exchanges messages with the neighbours of one step, one after the other.

    If the steps of a graph's period have different numbers of rounds, this function
    makes as many rounds in each step as the largest number. In a round that a step does
    not need, every worker receives its own message with the weight 0.

    Args:
      message: what this worker sends to all its neighbours, a tree of arrays; or, if
        every neighbour is sent a message of its own, a function that takes the number
        of the round and returns such a tree.
      graph: the neighbours and the mixing weights.
      communicator: how messages travel.
      step: see :func:`displacement`.
      key: PRNG key that decides which messages are lost; `jax.random.key(0)` by
        default.

    Returns:
      An iterator over what the worker receives in each round.
    """
    _check("mixing.exchange", graph, communicator, key)
    step = _known_step("mixing.exchange", graph, communicator, step)
    return _rounds(message, graph, communicator, range(graph.period), step, key)


def as_sent(
    message: PyTree, communicator: Communicator, step: ArrayLike | None = None
) -> PyTree:
    """Returns a message as its receivers see it: rounded, but in its own dtypes.

    Args:
      message: a tree of arrays.
      communicator: the communicator; floats are rounded to its `message_dtype`.
      step: `int32[]`, the number of steps so far; needed for stochastic rounding only.

    Returns:
      A tree like `message`.
    """
    if communicator.message_dtype is None:
        return message
    step = _known_step("mixing.as_sent", None, communicator, step)
    return _read(narrow(message, communicator, step), message)


def difference(theirs: PyTree, mine: PyTree) -> PyTree:
    """Returns `theirs - mine`, calculated in float32 or wider.

    Args:
      theirs: what a neighbour has sent, a tree of arrays.
      mine: what this worker has sent, a tree like it.
    """
    return jax.tree.map(lambda x, y: promote(x) - promote(y), theirs, mine)


def finite_difference(theirs: PyTree, mine: PyTree) -> PyTree:
    """Returns `theirs - mine`, with 0 in place of entries that are not finite.

    Otherwise the NaN or infinity of one worker would reach all others within a few
    steps. With a difference of 0 the receiver uses its own value for this entry. That
    keeps the mean of the finite models, and needs no further pass over the model.

    Args:
      theirs: what a neighbour has sent, a tree of arrays.
      mine: what this worker has sent, a tree like it.
    """
    return jax.tree.map(
        lambda x: jnp.where(jnp.isfinite(x), x, 0), difference(theirs, mine)
    )


def _check(
    name: str, graph: Any, communicator: Communicator, key: Any, **needs: bool
) -> None:
    """Raises unless the graph fits the communicator and the key is a key or None."""
    check_graph_kind(name, graph, **needs)
    check_sizes(name, graph, communicator)
    check_key(name, key)


def _known_step(
    name: str, graph: Graph | None, communicator: Communicator, step: ArrayLike | None
) -> ArrayLike:
    """Returns the step, or raises ValueError if it is needed but was not given."""
    if step is not None:
        return step
    for depends, what in (
        (graph is not None and graph.period > 1, "the graph changes with time"),
        (communicator.drop_probability > 0, "messages get lost"),
        (communicator.rounding_seed is not None, "messages are rounded at random"),
    ):
        if depends:
            raise ValueError(
                f"{name}: {what}, which depends on the step: pass step=, the number "
                "of steps so far, which a mechanism counts in its state."
            )
    return 0


def _own_weight(graph: Graph, communicator: Communicator, step: ArrayLike) -> jax.Array:
    """`float[]`, the weight that this worker gives to its own model in a step."""
    diagonals = np.diagonal(graph.matrices, axis1=1, axis2=2)
    return _mine(diagonals, communicator, jnp.asarray(step) % graph.period)


def _rounds(
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
        if communicator.message_dtype is None:
            return sent, sent
        return sent, narrow(sent, communicator, step)

    once = None if is_function(message) else with_wire(message)
    drop_key = key_of_step(key, step)
    now = _place(steps, graph.period, step)
    for r in range(max(len(graph.rounds_at(t)) for t in steps)):
        sources, weights = zip(*(_round(graph, t, r) for t in steps), strict=True)
        sent, wire = once or with_wire(message(r))
        if len(set(sources)) == 1:
            source, index = sources[0], None
            received = communicator.permute(wire, source)
        else:
            source, index = sources, now
            received = communicator.permute_one_of(wire, source, index)
        own = wire
        if wire is not sent:
            received, own = _read(received, sent), _read(wire, sent)
        arrived = communicator.arrived(source, drop_key, step=step, index=index)
        weight = _mine(np.array(weights), communicator, now)
        if arrived is not True:
            weight = jnp.where(arrived, weight, 0)
        yield Heard(received, own, weight, arrived)


def _round(graph: Graph, t: int, r: int) -> tuple[Sequence[int], np.ndarray]:
    """The senders and weights of round `r` of step `t`; beyond the last, of silence."""
    if r < len(rounds := graph.rounds_at(t)):
        return rounds[r], graph.round_weights_at(t)[r]
    return tuple(range(graph.size)), np.zeros(graph.size)


def _mine(table: np.ndarray, communicator: Communicator, now: ArrayLike) -> jax.Array:
    """Looks up this worker's entry for a step in a table `[steps, n]`."""
    rank = communicator.rank()
    if len(table) == 1:
        return jnp.asarray(table[0])[rank]
    return jnp.asarray(table)[now, rank]


def _place(steps: Sequence[int], period: int, step: ArrayLike) -> ArrayLike:
    """`int32[]`, the position of the present step of the period within `steps`."""
    now = jnp.asarray(step, jnp.int32) % period
    if len(steps) == period:
        return now
    places = np.zeros(period, np.int32)
    places[list(steps)] = np.arange(len(steps))
    return jnp.asarray(places)[now]


def _read(wire: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), wire, like)
