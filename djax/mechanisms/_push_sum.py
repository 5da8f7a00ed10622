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

so that :math:`z_i / w_i` converges to the mean. Gradients are taken there.

Kempe, Dobra and Gehrke, `Gossip-Based Computation of Aggregate Information
<https://doi.org/10.1109/SFCS.2003.1238221>`_, 2003; Assran et al., `Stochastic Gradient
Push for Distributed Deep Learning <https://arxiv.org/abs/1811.10792>`_, 2019.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism
from djax._values import check_integer
from djax.corrections._interleave import InterleaveState
from djax.mixing import difference, finite_difference
from djax.topologies import Graph, Topology
from djax.topologies.checks import check_directed


class PushSumState(NamedTuple):
    """State of :func:`push_sum`.

    Attributes:
      weight: `float[]`, :math:`w_i`; the worker's model is `params / weight`.
      exchanges: `int32[]`, number of exchanges so far.
      averaged: a tree like the parameters with no arrays in it, which tells the leaves
        that are averaged from those that `optax.masked` keeps out (`optax.MaskedNode`);
        None if all leaves are averaged.
      uneven: `()` once the weights are other than 1, and have to travel; None before.
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
    r"""Averages over directed, possibly changing, graphs.

    Placed last in a chain it makes SGP of SGD. The parameters are the :math:`z_i`, and
    the gradients are to be taken at :math:`z_i / w_i`, which
    :func:`djax.push_sum_eval_params` returns. With the updates :math:`u_i` of the links
    before it,

    .. math::
       z_i \leftarrow \textstyle\sum_j a_{ij}^t (z_j + u_j), \qquad
       w_i \leftarrow \textstyle\sum_j a_{ij}^t w_j
       \qquad\text{(with overlap: } z_i \leftarrow \textstyle\sum_j a_{ij}^t z_j + u_i
       \text{)}

    If the rows of the matrices sum to one too, as those of
    :func:`djax.topologies.one_peer_exponential`, the weights stay 1, do not travel, and
    the parameters are the models themselves.

    Where messages are lost (`drop_probability` of the communicator), the receiver puts
    its own value in their place; likewise where a message is NaN or infinite.

    Args:
      schedule: a Schedule, whose matrices are taken one after the other; or a Topology,
        whose one matrix serves all steps.
      communicator: how messages travel.
      rounds: exchanges in each step, each with the schedule's next matrix.
      overlap: average the parameters before this step's updates.
      key: PRNG key of the losses, where messages are lost; `jax.random.key(0)` by
        default.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`PushSumState`.
      Updates keep their dtypes; sums are in float32 or wider.

    Raises:
      TypeError: if `schedule` is no graph, or `key` is no key.
      ValueError: if the sizes differ, or `rounds` is no positive integer.

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
    received, balanced = schedule.matrices.sum(axis=2), schedule.doubly_stochastic

    def init(params):
        averaged = jax.tree.map(lambda _: optax.EmptyState(), params)
        uneven = None if balanced else ()
        return PushSumState(jnp.ones(()), jnp.zeros((), jnp.int32), averaged, uneven)

    def mix(start, state, /, **extra):
        del extra
        check_state("push_sum", state, PushSumState, start)
        model, weight, exchanges = start, state.weight, state.exchanges
        # Weights of another schedule, which are not 1, go on to be averaged.
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
        # A weight that is no number says that something in the model is none.
        message = model, jnp.where(all_finite(model), weight, jnp.nan)

        def read(theirs, own):
            own_weight = jnp.where(jnp.isfinite(own[1]), own[1], weight)
            found = difference(theirs, (own[0], own_weight))
            nothing = optax.tree.zeros_like(found)
            return optax.tree.where(jnp.isfinite(theirs[1]), found, nothing)

        return push((model, weight), message, read, exchanges)

    def push(mine, message, read, exchanges):
        r"""Returns :math:`r_i z_i + \sum_j a_{ij} (z_j - z_i)` with the row sums r.

        Where messages are rounded, :math:`z` is what is sent, and what the rounding
        leaves out stays with the worker. So the sum over the workers is kept.
        """
        heard = mixing.weighted_sum(
            message, read, schedule, communicator, step=exchanges, key=key
        )
        now = jnp.asarray(exchanges) % schedule.period
        share = jnp.asarray(received)[now, communicator.rank()]

        def keep(x, z):
            if balanced:  # The share is 1.
                return promote(x)
            z = promote(jnp.where(jnp.isfinite(z), z, x))
            return promote(x) - z + share.astype(z.dtype) * z

        return jax.tree.map(
            lambda x, z, d: (keep(x, z) + d).astype(x.dtype),
            mine,
            heard.own,
            heard.total,
        )

    return build(
        "push_sum",
        init,
        communicator,
        schedule,
        mix=mix,
        overlap=overlap,
        facts={"rounded_sums": not balanced},
        matrices=(lambda: schedule.matrices) if rounds == 1 else None,
        per_rank=["key"],
    )


def push_sum_eval_params(state: Any, params: PyTree) -> PyTree:
    r"""The models :math:`z_i / w_i` of workers that train with :func:`push_sum`.

    Gradients are taken and models evaluated there. Leaves that the mechanism never
    averaged, since `optax.masked` or `optax.partition` kept them out, stay as they are.

    Args:
      state: the :class:`PushSumState`, or the state of a chain that contains it.
      params: the worker's :math:`z_i`.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if the state contains no or several :class:`PushSumState`, is of
        other parameters, or is inside of a :func:`djax.interleave` of several
        mechanisms, where the weight is that of some coordinates of each leaf.

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
    """Among how many mechanisms :func:`djax.interleave` deals out the coordinates.

    Returns:
      The number; 0 if push-sum is not inside of :func:`djax.interleave`.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, InterleaveState))
    for node in nodes:
        if isinstance(node, InterleaveState) and _push_sums(node):
            mechanisms = node.mechanism_states
            return len(mechanisms) * max(1, _shares(mechanisms))
    return 0


def _is_place(node: Any) -> bool:
    """Whether it stands for a leaf, or for what is masked, in a state's `averaged`."""
    return isinstance(node, (optax.EmptyState, optax.MaskedNode))
