"""What neighbours exchange in a step: the one place where messages leave a worker.

Whatever concerns all mechanisms that talk to neighbours is done here: the rounds of a
step, on graphs that may change with time; the weights; messages that get lost; and the
dtype in which messages travel. A mechanism says what it sends, and what it reads out of
a message. :func:`displacement` is gossip's whole step, :func:`weighted_sum` the same
for messages of any kind, and :func:`exchange` the loop below both.

A worker calculates with its own message *as it was sent*: rounded to the
communicator's `message_dtype`, like the messages of its neighbours. Only then does one
end of an edge lose what the other gains. If just the messages were rounded, the mean of
the models would drift by the rounding errors.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._arguments import check_sizes
from djax._arrays.keys import (
    check_key,
    key_of_step,
)
from djax._arrays.precision import promote
from djax._interfaces import (
    Communicator,
    PyTree,
)
from djax.topologies import Graph
from djax.topologies._kinds import check_graph_kind

from ._alternate import alternate
from ._narrow import narrow


class Heard(NamedTuple):
    """What a worker hears in one round.

    Attributes:
      message: the neighbour's, as it was sent; the worker's own where it meets nobody.
      own: the worker's own, as it was sent.
      weight: `float[]`, the weight of the neighbour in this step; 0 where the worker
        meets nobody, and where the message was lost.
      arrived: whether the message came through; True where none can be lost.
    """

    message: PyTree
    own: PyTree
    weight: jax.Array
    arrived: jax.Array | bool


class Sum(NamedTuple):
    """A weighted sum over what a worker hears in one step.

    Attributes:
      own: the worker's message as it was sent.
      total: the sum of what was read out of the messages, by weight.
      weight: `float[]`, the sum of the weights of the messages that came through; None
        where none can be lost.
    """

    own: PyTree
    total: PyTree
    weight: jax.Array | None


def displacement(
    model: PyTree,
    graph: Graph,
    communicator: Communicator,
    *,
    step: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> PyTree:
    r"""How far one averaging over the neighbourhood moves a worker's model.

    .. math:: \textstyle\sum_j w_{ij} (x_j - x_i)

    Where messages are lost, the weights of those that came are divided by their sum,
    the own weight included. An entry of a neighbour's model that is NaN or infinite
    counts as the worker's own value, so that a diverged model does not spread.

    Args:
      model: this worker's :math:`x_i`, a tree of arrays of floats.
      graph: who is whose neighbour, and with which weight; the rows of its matrices sum
        to one.
      communicator: how messages travel.
      step: `int32[]`, number of steps so far, the same on all workers. It decides which
        matrix of a schedule is used, which messages are lost, and how numbers are
        rounded at random. Without any of these it may be left away.
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
    # A worker that gives itself no weight may have heard nobody.
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
    r"""Returns :math:`\sum_{j \ne i} w_{ij} \operatorname{read}(m_j, m_i)` of one step.

    The sum is over the neighbours. A worker's own message has no part in it, so that
    `read` mostly returns a difference.

    Args:
      message: what this worker sends to all its neighbours, :math:`m_i`; a tree of
        arrays.
      read: what a worker makes of a neighbour's message and its own, both as they were
        sent: a tree of arrays in float32 or wider.
      graph: who is whose neighbour, and with which weight.
      communicator: how messages travel.
      step: see :func:`displacement`.
      key: PRNG key that decides which messages are lost; `jax.random.key(0)` by
        default.

    Returns:
      A :class:`Sum`; what is lost counts as zero.
    """
    _check("mixing.weighted_sum", graph, communicator, key)
    step = _known_step("mixing.weighted_sum", graph, communicator, step)
    counts = [len(graph.rounds_at(t)) for t in range(graph.period)]
    own = as_sent(message, communicator, step)
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
        if total is None:  # Nobody meets anybody.
            total = jax.tree.map(jnp.zeros_like, read(own, own))
        if weight is None and communicator.drop_probability:
            weight = jnp.zeros(())
        return total, weight

    branches = [functools.partial(over_rounds, i) for i in range(len(kinds))]
    total, weight = alternate(
        step, [kinds.index(n) for n in counts], branches, message, step
    )
    return Sum(own, total, weight)


def exchange(
    message: PyTree | Callable[[int], PyTree],
    graph: Graph,
    communicator: Communicator,
    *,
    step: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> Iterator[Heard]:
    """Sends messages to the neighbours of one step, one after the other.

    All steps of a period have as many rounds here as the busiest one. In a round that a
    step does not need, every worker hears itself, with the weight 0.

    Args:
      message: what this worker sends, a tree of arrays; or, if each neighbour is sent
        something else, a function that makes it of the number of the round.
      graph: who is whose neighbour, and with which weight.
      communicator: how messages travel.
      step: see :func:`displacement`.
      key: PRNG key that decides which messages are lost; `jax.random.key(0)` by
        default.

    Returns:
      An iterator over what the worker hears in each round.
    """
    _check("mixing.exchange", graph, communicator, key)
    step = _known_step("mixing.exchange", graph, communicator, step)
    return _rounds(message, graph, communicator, range(graph.period), step, key)


def as_sent(
    message: PyTree, communicator: Communicator, step: ArrayLike | None = None
) -> PyTree:
    """The message as its receivers get it: rounded, in its own dtypes.

    Args:
      message: a tree of arrays.
      communicator: which says to what floats are rounded.
      step: `int32[]`, number of steps so far, if it is rounded at random.
    """
    if communicator.message_dtype is None:
        return message
    step = _known_step("mixing.as_sent", None, communicator, step)
    return _read(narrow(message, communicator, step), message)


def check_weights(name: str, graph: Graph, communicator: Communicator) -> None:
    """Raises ValueError if weights are negative where messages may be lost."""
    if communicator.drop_probability and (graph.matrices < 0).any():
        raise ValueError(
            f"{name}: some weights of {graph!r} are negative. Where messages are lost, "
            "the weights of the others are divided by their sum, which takes weights "
            "that are not: use weights='metropolis', or a communicator without "
            "drop_probability."
        )


def difference(theirs: PyTree, mine: PyTree) -> PyTree:
    """Returns `theirs - mine` in float32 or wider."""
    return jax.tree.map(lambda x, y: promote(x) - promote(y), theirs, mine)


def finite_difference(theirs: PyTree, mine: PyTree) -> PyTree:
    """Returns `theirs - mine` as :func:`difference`, and 0 where that is not finite.

    One worker's NaN or infinity would otherwise reach all others within a few steps.
    An entry that is not finite counts as the receiver's own value, which costs no pass
    over the model, and keeps the mean of the workers that are finite.
    """
    return jax.tree.map(
        lambda x: jnp.where(jnp.isfinite(x), x, 0), difference(theirs, mine)
    )


def _check(
    name: str, graph: Any, communicator: Communicator, key: Any, **needs: bool
) -> None:
    """Raises unless the graph fits the communicator, and the key is one or None."""
    check_graph_kind(name, graph, **needs)
    check_sizes(name, graph, communicator)
    check_key(name, key)


def _known_step(
    name: str, graph: Graph | None, communicator: Communicator, step: ArrayLike | None
) -> ArrayLike:
    """Returns the step, or raises ValueError if it is needed and was not given."""
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
    """The rounds of a step that is known to be one of `steps` of the period."""

    def with_wire(sent):
        """The message, and what travels of it: the same if nothing is rounded."""
        if communicator.message_dtype is None:
            return sent, sent
        return sent, narrow(sent, communicator, step)

    once = None if callable(message) else with_wire(message)
    drop_key = key_of_step(key, step)
    now = _place(steps, graph.period, step)
    for r in range(max(len(graph.rounds_at(t)) for t in steps)):
        sources, weights = zip(*(_round(graph, t, r) for t in steps), strict=True)
        source, index = sources, now
        if len(set(sources)) == 1:
            source, index = sources[0], None
        sent, wire = once or with_wire(message(r))
        received, own = _travel(wire, source, communicator, index), wire
        if wire is not sent:
            received, own = _read(received, sent), _read(wire, sent)
        arrived = communicator.arrived(source, drop_key, step=step, index=index)
        weight = _mine(np.array(weights), communicator, now)
        if arrived is not True:
            weight = jnp.where(arrived, weight, 0)
        yield Heard(received, own, weight, arrived)


def _round(graph: Graph, t: int, r: int) -> tuple[Sequence[int], np.ndarray]:
    """Whom each worker hears in a round of a step, itself if there is no such round."""
    if r < len(rounds := graph.rounds_at(t)):
        return rounds[r], graph.round_weights_at(t)[r]
    return tuple(range(graph.size)), np.zeros(graph.size)


def _mine(table: np.ndarray, communicator: Communicator, now: ArrayLike) -> jax.Array:
    """This worker's entry of `[steps, n]` in a step."""
    rank = communicator.rank()
    if len(table) == 1:
        return jnp.asarray(table[0])[rank]
    return jnp.asarray(table)[now, rank]


def _travel(
    wire: PyTree,
    source: Sequence[Any],
    communicator: Communicator,
    index: ArrayLike | None,
) -> PyTree:
    """What comes along a permutation of the workers, or along one of several."""
    if index is None:
        return communicator.permute(wire, source)
    return communicator.permute_one_of(wire, source, index)


def _place(steps: Sequence[int], period: int, step: ArrayLike) -> ArrayLike:
    """`int32[]`, the place of a step of the period among `steps`."""
    now = jnp.asarray(step, jnp.int32) % period
    if len(steps) == period:
        return now
    places = np.zeros(period, np.int32)
    places[list(steps)] = np.arange(len(steps))
    return jnp.asarray(places)[now]


def _read(wire: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), wire, like)
