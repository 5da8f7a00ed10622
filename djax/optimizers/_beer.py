r"""BEER: gradient tracking over compressed messages, on any graph.

Compressed messages alone leave an error that depends on how much the workers' data
differ: CHOCO-SGD steps along each worker's own gradient. Gradient tracking would remove
that error, but sends models and estimates of the mean gradient uncompressed. BEER
sends both as CHOCO-Gossip sends models. Every worker keeps a public copy :math:`h_i` of
its model and a public copy :math:`q_i` of its estimate :math:`v_i`, and sends
compressed changes of these copies. With the gradient :math:`g_i` at the model
:math:`x_i`, the learning rate :math:`\eta` and the code C,

.. math::
   x_i &\leftarrow x_i + \gamma \textstyle\sum_j w_{ij} (h_j - h_i) - \eta v_i,
   & h_i &\leftarrow h_i + C(x_i - h_i), \\
   v_i &\leftarrow v_i + \gamma \textstyle\sum_j w_{ij} (q_j - q_i)
      + (\text{new } g_i) - g_i,
   & q_i &\leftarrow q_i + C(v_i - q_i).

The copies begin with 0, and :math:`v_i` begins with the first gradient. A worker does
not store its neighbours' copies, but only the weighted sum of their differences to its
own.

Zhao et al., `BEER: Fast O(1/T) Rate for Decentralized Nonconvex Optimization with
Communication Compression <https://arxiv.org/abs/2201.13320>`_, 2022.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import check_consensus_rate
from djax._arrays.precision import add, scale
from djax._calls import by_its_call
from djax._interfaces import Communicator, Compressor, PyTree
from djax._learning_rate import check_learning_rate, per_rank_of, rate_at
from djax._mechanism.adapter import build
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism
from djax.compressors.checks import check_class
from djax.mechanisms._compressed import Messages, follow, zeros
from djax.topologies import Graph


class BeerState(NamedTuple):
    r"""State of :func:`beer`, in float32 or wider.

    Attributes:
      estimate: the public copies :math:`(h_i, q_i)` of the model and of the estimate
        of the mean gradient, a pair of trees like the parameters.
      displacement: the weighted sums of the neighbours' differences to these copies, a
        pair of trees like the parameters.
      compressor_state: the state of the compressor.
      step: `int32[]`, the number of updates so far.
      correction: :math:`v_i - g_i`, a tree like the parameters: the estimate of the
        mean of all workers' gradients minus the worker's own gradient.
      graph: a static label of the graph that the state belongs to. If it is None, the
        graph is not checked.
    """

    estimate: PyTree
    displacement: PyTree
    compressor_state: PyTree
    step: ArrayLike
    correction: PyTree
    graph: PyTree = None


@by_its_call
def beer(
    learning_rate: optax.ScalarOrSchedule,
    topology: Graph,
    communicator: Communicator,
    compressor: Compressor,
    consensus_rate: float,
) -> Mechanism:
    r"""SGD with gradient tracking, whose messages are all compressed.

    .. math::
       c_i &\leftarrow c_i + \gamma \textstyle\sum_j w_{ij} (q_j - q_i),
       \qquad v_i = g_i + c_i \\
       x_i &\leftarrow x_i + \gamma \textstyle\sum_j w_{ij} (h_j - h_i) - \eta v_i \\
       h_i &\leftarrow h_i + C(x_i - h_i), \qquad q_i \leftarrow q_i + C(v_i - q_i)

    The copies :math:`h_i` and :math:`q_i` and the corrections :math:`c_i` begin with 0.
    The copies :math:`q_i` follow from the second step on, as published. The two changes
    travel in one message, so that a worker sends twice a compressed model to each
    neighbour. With the code `identity()` and :math:`\gamma = 1`, BEER is gradient
    tracking that averages before each step, except for the first one.

    Args:
      learning_rate: :math:`\eta`, a number that is not negative, or a schedule of the
        learning rate.
      topology: the graph and its weights.
      communicator: how messages travel; it must not lose any.
      compressor: the code C, a contraction; see :mod:`djax.compressors`. It may be
        coarse, and :math:`\gamma` then has to be small.
      consensus_rate: :math:`\gamma`, a float or a scalar array. It has to be tuned: a
        coarser code needs a smaller rate.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs `params`, with a
      :class:`BeerState`. It has to be the last link of a chain.

    Raises:
      TypeError: if `topology` is not a graph, or `compressor` is not a compressor, for
        example a function that was not called.
      ValueError: if the graph changes with time, the sizes differ, messages get lost,
        the code is declared not to be a contraction, the learning rate is negative or
        not finite, or the consensus rate is not positive.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> code = djax.compressors.top_k(0.1)
      >>> optimizer = djax.beer(0.1, ring, communicator, code, 0.2)

    References:
      Zhao et al., `BEER: Fast O(1/T) Rate for Decentralized Nonconvex Optimization with
      Communication Compression <https://arxiv.org/abs/2201.13320>`_, 2022, Algorithm 1
    """
    messages = Messages("beer", BeerState, topology, communicator, compressor)
    check_class("beer", compressor, "contraction")
    check_learning_rate("beer", learning_rate)
    check_consensus_rate("beer: consensus_rate", consensus_rate, topology)

    def init(params):
        pairs = [(zeros(params), zeros(params)) for _ in range(2)]
        return messages.state(pairs, (params, params), correction=zeros(params))

    def update(grads, state, params, /):
        messages.check(state, (params, params))
        check_state("beer", state, BeerState, params, "correction")
        to_models, to_directions = scale(consensus_rate, state.displacement)
        correction = add(state.correction, to_directions, like=state.correction)
        direction = add(grads, correction, like=correction)
        rate = rate_at(learning_rate, state.step)
        updates = add(to_models, scale(-rate, direction), like=grads)
        model = optax.apply_updates(params, updates)
        unknown = add((model, direction), state.estimate, like=(params,) * 2, sign=-1)
        # In the first step the direction is not sent yet: a contraction sends zeros as
        # zeros, with which the public copy stays at 0.
        sends = state.step > 0
        unknown = unknown[0], jax.tree.map(lambda x: jnp.where(sends, x, 0), unknown[1])
        own, change, state = messages.send(unknown, state)
        state = follow(state, own, change)
        return updates, state._replace(correction=correction)

    return build(
        "beer",
        init,
        communicator,
        topology,
        update=update,
        facts={"optimizer": True, "needs_every_message": True},
        conditions={"contraction": compressor},
        per_rank=per_rank_of(learning_rate),
    )
