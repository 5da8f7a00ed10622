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
mean of all models stays where it is, but for the rounding of sums. If a worker used its
own model without rounding, the mean would drift by the rounding errors of messages.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._arguments import check_sizes, check_weights
from djax._arrays.keys import check_key
from djax._arrays.precision import promote
from djax._interfaces import Communicator, PyTree
from djax.topologies import Graph
from djax.topologies.checks import check_graph_kind

from ._alternate import alternate
from ._many_rounds import by_loop, by_product, choose
from ._narrow import narrow
from ._rounds import Heard, by_rounds, mine, read_back, rounds

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
    values: PyTree | None = None,
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
      values: a tree :math:`v_i` like the result of `read`, if
        :math:`\operatorname{read}(m_j, m_i) = v_j - v_i` wherever all numbers are
        finite. In simulation, a step of many rounds may be a single matrix product.
        With :func:`difference` and :func:`finite_difference` the messages are these
        values, and need not be passed.
      step: see :func:`displacement`.
      key: PRNG key that decides which messages are lost; `jax.random.key(0)` by
        default.

    Returns:
      A :class:`Sum`, to which lost messages contribute nothing.
    """
    _check("mixing.weighted_sum", graph, communicator, key)
    step = _known_step("mixing.weighted_sum", graph, communicator, step)
    own = as_sent(message, communicator, step)
    if read in (difference, finite_difference):
        values = own
    # Steps that are computed in the same way share one compiled branch.
    counts = [len(graph.rounds_at(t)) for t in range(graph.period)]
    ways = [choose(count, values is not None, communicator) for count in counts]
    kinds = list(dict.fromkeys(ways))

    def add_up(way, message, step):
        steps = [t for t, chosen in enumerate(ways) if chosen == way]
        given = message, own, read, graph, communicator, steps, step
        if way == "product":
            repair = None if read is finite_difference else lambda: by_loop(*given)
            return by_product(values, graph, communicator, steps, step, repair), None
        if way == "loop":
            return by_loop(*given), None
        return by_rounds(*given, key)

    branches = [functools.partial(add_up, way) for way in kinds]
    if len(kinds) == 1:
        return Sum(own, *branches[0](message, step))
    schedule = [kinds.index(way) for way in ways]
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
    return rounds(message, graph, communicator, range(graph.period), step, key)


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
    return read_back(narrow(message, communicator, step), message)


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
    diagonals = [graph.weights_at(t).diagonal() for t in range(graph.period)]
    return mine(np.array(diagonals), communicator, jnp.asarray(step) % graph.period)
