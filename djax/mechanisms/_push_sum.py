r"""Push-sum: averaging over directed and time-varying graphs, as in SGP.

On a directed graph a worker cannot know with which weights all others send, so that the
weights of what it receives need not sum to one. But each worker can split what it has
among its receivers: the *columns* of the mixing matrices :math:`A^t` sum to one. The
sum of the models :math:`z_i` is then kept, while the single models are scaled by
unknown factors. A scalar :math:`w_i` that is averaged like the models measures these
factors:

.. math::
   z_i \leftarrow \textstyle\sum_j a_{ij}^t z_j, \qquad
   w_i \leftarrow \textstyle\sum_j a_{ij}^t w_j, \quad w_i = 1 \text{ at first},

so that :math:`z_i / w_i` converges to the mean. Gradients are taken at this point.

Kempe, Dobra and Gehrke, `Gossip-Based Computation of Aggregate Information
<https://doi.org/10.1109/SFCS.2003.1238221>`_, 2003; Assran et al., `Stochastic Gradient
Push for Distributed Deep Learning <https://arxiv.org/abs/1811.10792>`_, 2019.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax import mixing
from djax._arguments import check_flags, check_sizes, check_static
from djax._arrays.finite import all_finite
from djax._arrays.keys import check_key
from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import Communicator, PyTree
from djax._mechanism.adapter import build
from djax._mechanism.states import InterleaveState, check_state
from djax._mechanism.value import Mechanism
from djax._values import check_integer
from djax.mixing import difference, finite_difference
from djax.topologies import Graph, Topology
from djax.topologies.checks import check_directed


class PushSumState(NamedTuple):
    """State of :func:`push_sum`.

    Attributes:
      weight: `float[]`, :math:`w_i`; the worker's model is `params / weight`.
      exchanges: `int32[]`, the number of exchanges so far.
      averaged: a tree like the parameters, without arrays. It has `optax.MaskedNode` in
        place of the leaves that `optax.masked` excludes from averaging. None if all
        leaves are averaged.
      uneven: `()` if the weights may differ from 1 and have to travel; None if all of
        them are 1.
    """

    weight: jax.Array
    exchanges: ArrayLike
    averaged: PyTree = None
    uneven: PyTree = None


@by_its_call
def push_sum(
    schedule: Graph,
    communicator: Communicator,
    *,
    rounds: int = 1,
    overlap: bool = False,
    key: jax.Array | None = None,
) -> Mechanism:
    r"""Averages over directed graphs, which may change with time.

    Placed last in a chain, it turns SGD into SGP. The parameters are the :math:`z_i`.
    Take the gradients at :math:`z_i / w_i`, which :func:`djax.push_sum_eval_params`
    returns. With the updates :math:`u_i` of the links before it,

    .. math::
       z_i \leftarrow \textstyle\sum_j a_{ij}^t (z_j + u_j), \qquad
       w_i \leftarrow \textstyle\sum_j a_{ij}^t w_j
       \qquad\text{(with overlap: } z_i \leftarrow \textstyle\sum_j a_{ij}^t z_j + u_i
       \text{)}

    If the rows of all matrices sum to one as well, as those of
    :func:`djax.topologies.one_peer_exponential` do, the weights stay 1. The weights are
    then not sent, and the parameters are the models themselves.

    If a message is dropped (`drop_probability` of the communicator), or if it is NaN or
    infinite, the receiver uses its own value instead.

    Args:
      schedule: a Schedule, with one matrix for each exchange; or a Topology, with the
        same matrix for all exchanges.
      communicator: how messages travel.
      rounds: the number of exchanges in each step, each with the schedule's next
        matrix.
      overlap: average the parameters before this step's updates.
      key: PRNG key that decides which messages are dropped; `jax.random.key(0)` by
        default.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`PushSumState`.
      Updates keep their dtypes; sums are in float32 or wider.

    Raises:
      TypeError: if `schedule` is not a graph, or `key` is not a key.
      ValueError: if the sizes differ, or `rounds` is not a positive integer.

    Examples:
      >>> import djax, optax
      >>> communicator = djax.communicators.simulated(8)
      >>> schedule = djax.topologies.one_peer_exponential(8)
      >>> averaging = djax.push_sum(schedule, communicator, rounds=2)
      >>> optimizer = optax.chain(optax.sgd(0.1), averaging)

    References:
      Assran et al., `Stochastic Gradient Push for Distributed Deep Learning
      <https://arxiv.org/abs/1811.10792>`_, 2019, Algorithm 1
    """
    if not isinstance(schedule, Topology):
        check_directed("push_sum", schedule)
    check_key("push_sum", key)
    check_sizes("push_sum", schedule, communicator)
    check_static("push_sum", rounds=rounds)
    check_flags("push_sum", overlap=overlap)
    rounds = check_integer(rounds, "push_sum: rounds")
    steps, balanced = range(schedule.period), schedule.doubly_stochastic
    received = np.array([schedule.weights_at(t).sum(axis=1) for t in steps])

    def init(params):
        averaged = jax.tree.map(lambda _: optax.EmptyState(), params)
        uneven = None if balanced else ()
        return PushSumState(jnp.ones(()), jnp.zeros((), jnp.int32), averaged, uneven)

    def mix(start, state, /):
        check_state("push_sum", state, PushSumState, start)
        model, weight, exchanges = start, state.weight, state.exchanges
        # This schedule needs no weights, but a state of another one may have some.
        uneven = state.uneven if balanced else ()
        for _ in range(rounds):
            if uneven is None:
                model = push(model, model, finite_difference, exchanges)
            else:
                model, weight = push_with_weight(model, weight, exchanges)
            exchanges = optax.safe_increment(exchanges)
        state = state._replace(weight=weight, exchanges=exchanges, uneven=uneven)
        return difference(model, start), state

    def push_with_weight(model, weight, exchanges):
        # A weight that is NaN tells the receivers that the model is not finite.
        message = model, jnp.where(all_finite(model), weight, jnp.nan)

        def read(theirs, own):
            own_weight = jnp.where(jnp.isfinite(own[1]), own[1], weight)
            found = difference(theirs, (own[0], own_weight))
            nothing = optax.tree.zeros_like(found)
            return optax.tree.where(jnp.isfinite(theirs[1]), found, nothing)

        return push((model, weight), message, read, exchanges)

    def push(mine, message, read, exchanges):
        r"""Returns :math:`r_i z_i + \sum_j a_{ij} (z_j - z_i)` with the row sums r.

        If messages are rounded, :math:`z` is the rounded value, and the worker keeps
        what the rounding leaves out. In this way the sum over all workers is kept.
        """
        values = mixing.as_sent(message, communicator, exchanges)
        options = {"values": values, "step": exchanges, "key": key}
        heard = mixing.weighted_sum(message, read, schedule, communicator, **options)
        now = jnp.asarray(exchanges) % schedule.period
        share = jnp.asarray(received)[now, communicator.rank()]

        def of_leaf(x, z, d):
            kept = promote(x)
            if not balanced:  # Otherwise the share is 1.
                z = promote(jnp.where(jnp.isfinite(z), z, x))
                kept = kept - z + share.astype(z.dtype) * z
            return (kept + d).astype(x.dtype)

        return jax.tree.map(of_leaf, mine, heard.own, heard.total)

    return build(
        "push_sum",
        init,
        communicator,
        schedule,
        mix=mix,
        overlap=overlap,
        facts={"rounded_sums": not balanced, "weighted": not balanced},
        matrices=(lambda: schedule.matrices) if rounds == 1 else None,
        per_rank=["key"],
    )


def push_sum_eval_params(state: Any, params: PyTree) -> PyTree:
    r"""Returns the model :math:`z_i / w_i` of a worker that uses :func:`push_sum`.

    Take gradients and evaluate models there. Leaves that `optax.masked` or
    `optax.partition` excludes from averaging are returned as they are.

    Args:
      state: the :class:`PushSumState`, or the state of a chain that contains it.
      params: the worker's :math:`z_i`.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if the state contains no :class:`PushSumState` or several, or belongs
        to other parameters; or if push_sum is inside of a :func:`djax.interleave` of
        several mechanisms, since the weight then belongs to a part of each leaf.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> communicator = djax.communicators.simulated(2)
      >>> schedule = djax.topologies.from_matrices([[[0.5, 1.0], [0.5, 0.0]]])
      >>> averaging = djax.push_sum(schedule, communicator)
      >>> def worker(z):  # averages 40 times
      ...     state = averaging.init(z)
      ...     for _ in range(40):
      ...         updates, state = averaging.update(0 * z, state, z)
      ...         z += updates
      ...     return z, djax.push_sum_eval_params(state, z)
      >>> z, x = communicator.spmd(worker)(jnp.asarray([1.0, 5.0]))
      >>> print(z.round(2), x.round(2))
      [4. 2.] [3. 3.]

    References:
      Assran et al., `Stochastic Gradient Push for Distributed Deep Learning
      <https://arxiv.org/abs/1811.10792>`_, 2019, Algorithm 1, line 7
    """
    found = _push_sums(state)
    if len(found) != 1:
        raise ValueError(
            "push_sum_eval_params needs a state with exactly one PushSumState, got "
            f"{len(found)}: pass the one of the chain in question."
        )
    shares = _shares(state)
    if shares > 1:
        raise ValueError(
            "push_sum_eval_params needs the parameters that push_sum averaged, but "
            f"djax.interleave gave it one of {shares} shares of their coordinates: use "
            "push_sum without interleave."
        )
    weight, averaged = found[0].weight, found[0].averaged

    def divide(z):
        return (promote(z) / weight.astype(promote(z).dtype)).astype(z.dtype)

    if averaged is None:
        return jax.tree.map(divide, params)
    leaves, treedef = jax.tree.flatten(params)
    try:
        divided = jax.tree.map(
            lambda place, z: z if isinstance(place, optax.MaskedNode) else divide(z),
            averaged,
            leaves if shares else params,  # Interleave deals out a list of all leaves.
            is_leaf=_is_place,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "push_sum_eval_params needs the parameters that push_sum averaged, but got "
            "a tree of another structure."
        ) from error
    return treedef.unflatten(divided) if shares else divided


def _push_sums(state: Any) -> list[PushSumState]:
    """All states of push-sum within another state."""
    leaves = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, PushSumState))
    return [leaf for leaf in leaves if isinstance(leaf, PushSumState)]


def _shares(state: Any) -> int:
    """Counts the mechanisms among which :func:`djax.interleave` deals out coordinates.

    Returns:
      The number of mechanisms; 0 if push-sum is not inside of :func:`djax.interleave`.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, InterleaveState))
    for node in nodes:
        if isinstance(node, InterleaveState) and _push_sums(node):
            mechanisms = node.mechanism_states
            return len(mechanisms) * max(1, _shares(mechanisms))
    return 0


def _is_place(node: Any) -> bool:
    """Whether a node of `averaged` stands for an averaged leaf or masked leaves."""
    return isinstance(node, (optax.EmptyState, optax.MaskedNode))
