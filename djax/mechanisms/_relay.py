r"""RelaySum: exactly uniform averages along a tree, after a delay.

Gossip only approaches the mean of the workers' models, which slows training down where
their data differ. On a tree the mean can be computed exactly. A worker sends to each
neighbour the sum of its own model and of everything that its *other* neighbours sent to
it in the step before. In this way each model travels along the tree once, one hop a
step, and every worker gets it with the same weight. With :math:`u_i` the model of
worker i after its own step,

.. math::
   M_{i \to j} &= u_i + \textstyle\sum_{k \ne j} M^{prev}_{k \to i}, \qquad &
   c_{i \to j} &= 1 + \textstyle\sum_{k \ne j} c^{prev}_{k \to i}, \\
   x_i &\leftarrow \tfrac1n \bigl(u_i + \textstyle\sum_j M_{j \to i}
       + (n - \bar n_i) \, x^0\bigr), \qquad &
   \bar n_i &= 1 + \textstyle\sum_j c_{j \to i}.

:math:`M` is a sum of models, and :math:`c` is the number of models in this sum. The
models of :math:`n - \bar n_i` workers have not arrived yet; the initial model
:math:`x^0` takes their places.

A worker sends and keeps the mean :math:`M / c` in place of the sum. The mean stays in
the range of the models, which is what half precision needs. Since only differences
:math:`M / c - u_i` are summed up, equal models stay equal to the last bit.

Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
<https://arxiv.org/abs/2110.04175>`_, 2021, Algorithm 1.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax import mixing
from djax._arguments import check_choice, check_flags, check_sizes
from djax._arrays.keys import check_key
from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import Communicator, OutsideError, PyTree
from djax._mechanism.adapter import build, displaced
from djax._mechanism.states import check_state, label_of
from djax._mechanism.value import Mechanism
from djax.mixing import finite_difference
from djax.topologies import Topology
from djax.topologies.checks import check_tree

Missing = Literal["initial", "latest", "self", "renormalize"]


class RelayState(NamedTuple):
    """State of :func:`relay`. A worker has one neighbour in each round.

    Attributes:
      messages: for each round, the mean of the models that the neighbour of that round
        sent last; a tuple of trees like the parameters.
      counts: `int32[rounds]`, the number of models in each mean; 0 if none arrived.
      initial: the model that replaces missing ones; None unless `missing="initial"`.
      step: `int32[]`, the number of updates so far. It decides which messages are
        dropped.
      graph: a static label of the graph that the state belongs to. If it is None, the
        graph is not checked.
    """

    messages: tuple[PyTree, ...]
    counts: jax.Array
    initial: PyTree
    step: ArrayLike
    graph: PyTree = None


@by_its_call
def relay(
    tree: Topology,
    communicator: Communicator,
    *,
    missing: Missing | None = None,
    overlap: bool = False,
    key: jax.Array | None = None,
) -> Mechanism:
    r"""Averages the parameters uniformly over all workers of a tree, with delay.

    Placed last in a chain, it turns SGD into RelaySGD and Adam into Relay-Adam. With
    :func:`djax.on_updates` around it, the chain is RelaySum/Grad. With the models
    :math:`u_i^t = x_i^t + (\text{update})` and the delay :math:`\tau_{ij}`,

    .. math:: x_i^{t+1} = \tfrac1n \textstyle\sum_j u_j^{t - \tau_{ij}}, \qquad
       \tau_{ij} = \max(\text{hops}_{ij} - 1, 0)
       \quad\text{(with overlap: } \tau_{ij} = \text{hops}_{ij}\text{)}.

    Without `overlap` a neighbour's message is averaged in the step in which it is sent.
    With `overlap` it is averaged in the next step, as in the paper's analysis.

    Some models may be missing. In the first steps the models of distant workers have
    not arrived. If messages are dropped (`drop_probability` of the communicator), the
    models in them do not arrive either. If the initial model took their places in every
    step, it would hold the workers back where they started. The argument `missing` says
    what replaces a missing model:

    * `"initial"`: the model that worker 0 started from, as in the authors' training
      code. It is meant for workers that start equal;
    * `"latest"`: this worker's latest average, which is its parameters before the
      update. The authors use it if messages are dropped;
    * `"self"`: this worker's own model :math:`u_i`, as in the authors' "academic" code;
    * `"renormalize"`: nothing; the sum is divided by the number of models in it.

    Whatever `missing` is, an entry of a message that is NaN or infinite is replaced by
    the receiver's own value, so that one diverged model does not spread to all workers.

    With a `message_dtype` a message is rounded again at each hop, and the errors are
    not compensated. Equal models stay equal, but the averages differ from exact ones:
    on a chain of 8, by 0.6 % of their norm with bfloat16 and 0.07 % with float16. A
    `rounding_seed` is refused, since equal models would not stay equal.

    In each step one model and one integer travel to each neighbour, in both directions
    of every edge. The averages also contain older models, which makes the effective
    learning rate smaller: see :func:`djax.relay_learning_rate_factor`.

    Args:
      tree: a topology without cycles; its mixing weights play no role.
      communicator: how messages travel.
      missing: what replaces a model that has not arrived. The default is `"initial"`,
        or `"latest"` if messages may be dropped.
      overlap: average the messages of the step before, so that the exchange need not
        wait for this step's gradients.
      key: PRNG key that decides which messages are dropped; `jax.random.key(0)` by
        default.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`RelayState`, which
      holds one model for each round (at most the tree's largest degree) and the initial
      one. Updates keep their dtypes; sums are in float32 or wider.

    Raises:
      TypeError: if `tree` is not a topology, for example a Schedule, or `key` is not a
        key.
      ValueError: if the tree has cycles, the sizes differ, or `missing` is unknown.

    Examples:
      >>> import djax, optax
      >>> tree, communicator = djax.topologies.chain(8), djax.communicators.simulated(8)
      >>> relay_sgd = optax.chain(optax.sgd(0.1), djax.relay(tree, communicator))
      >>> relay_adam = optax.chain(optax.adam(1e-3), djax.relay(tree, communicator))

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, Algorithm 1
    """
    check_tree("relay", tree)
    check_sizes("relay", tree, communicator)
    check_key("relay", key)
    if missing is None:
        missing = "latest" if communicator.drop_probability else "initial"
    check_choice("relay: missing", missing, Missing)
    check_flags("relay", overlap=overlap)

    if communicator.rounding_seed is not None:
        raise ValueError(
            "relay: stochastic rounding would part equal models, since messages of "
            "several steps, rounded by different draws, are compared: make the "
            "communicator without rounding_seed."
        )
    label = label_of(tree, weights=False)
    # Fields of the state, besides messages, that are like the parameters.
    kept = ("initial",) if missing == "initial" else ()
    has_neighbor = np.asarray(tree.rounds) != np.arange(tree.size)

    def common_start(params):
        try:
            first = communicator.broadcast(params)
        except OutsideError:  # Called outside of spmd, all workers share one start.
            return params
        return jax.tree.map(
            lambda x, y: jnp.where(jnp.isfinite(x), x, y), first, params
        )

    def init(params):
        return RelayState(
            messages=tuple(optax.tree.zeros_like(params) for _ in tree.rounds),
            counts=jnp.zeros(len(tree.rounds), jnp.int32),
            initial=common_start(params) if missing == "initial" else None,
            step=jnp.zeros((), jnp.int32),
            graph=label,
        )

    def update(updates, state, params, /):
        check_state("relay", state, RelayState, params, *kept, label=label)
        model = optax.apply_updates(params, updates)
        own = mixing.as_sent(model, communicator, state.step)
        messages, counts = exchanged(model, own, state)
        heard = (state.messages, state.counts) if overlap else (messages, counts)
        total, number = _sum(own, *heard), 1 + heard[1].sum(dtype=jnp.int32)
        if missing in ("initial", "latest"):
            stand_in = state.initial if missing == "initial" else params
            total = _add_models(total, tree.size - number, stand_in, model)
        divisor = number if missing == "renormalize" else tree.size
        displacement = jax.tree.map(lambda t: t / jnp.asarray(divisor, t.dtype), total)
        updates = displaced(updates, params, model, displacement)
        step = optax.safe_increment(state.step)
        return updates, RelayState(messages, counts, state.initial, step, label)

    def exchanged(model, own, state):
        """Sends each neighbour what it does not know; returns what they have sent."""
        total = _sum(own, state.messages, state.counts)
        known = 1 + state.counts.sum(dtype=jnp.int32)

        def message(i):
            # Everything that is known, without what this round's neighbour has sent.
            before, count = state.messages[i], known - state.counts[i]
            others = _add_models(total, -state.counts[i], before, own)
            return _divide_and_add(others, count, model, like=before), count

        messages, counts = [], []
        for i, heard in enumerate(
            mixing.exchange(message, tree, communicator, step=state.step, key=key)
        ):
            mean, count = heard.message
            if heard.arrived is not True:
                mean = optax.tree.where(heard.arrived, mean, state.messages[i])
            messages.append(mean)
            meets = jnp.asarray(has_neighbor[i])[communicator.rank()]
            counts.append(jnp.where(meets & heard.arrived, count, 0))
        return tuple(messages), jnp.stack(counts) if counts else state.counts

    return build(
        "relay",
        init,
        communicator,
        tree,
        update=update,
        adds_displacement=missing != "latest",
        facts={
            # With overlap it averages the messages of the step before.
            "overlap": overlap,
            "old_models": True,
            "moves_mean": True,
            "uneven_sums": missing in ("self", "renormalize")
            and f"missing={missing!r}: use missing='latest'",
        },
        per_rank=["key"],
    )


def _sum(model: PyTree, messages: tuple[PyTree, ...], counts: jax.Array) -> PyTree:
    r"""Returns :math:`\sum_k c_k (M_k / c_k - u)`, in float32 or wider."""
    total = jax.tree.map(lambda x: jnp.zeros_like(promote(x)), model)
    for i, message in enumerate(messages):
        total = _add_models(total, counts[i], message, model)
    return total


def _divide_and_add(
    total: PyTree, divisor: ArrayLike, base: PyTree, like: PyTree
) -> PyTree:
    """Returns `base + total / divisor` in the dtypes of `like`."""

    def of_leaf(t, b, x):
        return (promote(b) + t / jnp.asarray(divisor, t.dtype)).astype(x.dtype)

    return jax.tree.map(of_leaf, total, base, like)


def _add_models(total: PyTree, count: jax.Array, mean: PyTree, model: PyTree) -> PyTree:
    """Adds what `count` models with the mean `mean` differ from this worker's model.

    A difference that is not finite counts as 0, as if those models were equal to this
    worker's model.
    """
    differences = finite_difference(mean, model)
    return jax.tree.map(lambda t, d: t + count.astype(t.dtype) * d, total, differences)
