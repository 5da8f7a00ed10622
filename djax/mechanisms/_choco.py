r"""CHOCO-Gossip: averaging over compressed messages, on any graph.

A compressed model is far from the model, and an average of compressed models is of
little use. A compressed *change* loses less and less as the changes become small. So
every worker keeps a public copy :math:`\hat x_i` of its model. The neighbours know this
copy, because it changes only by the messages that they receive:

.. math::
   q_i &= C(x_i - \hat x_i), \\
   \hat x_i &\leftarrow \hat x_i + q_i, \\
   x_i &\leftarrow x_i + \gamma \textstyle\sum_j w_{ij} (\hat x_j - \hat x_i).

What a message leaves out remains in :math:`x_i - \hat x_i`, and is sent later. A worker
does not store its neighbours' copies, but only the weighted sum of their differences to
its own, so that memory does not grow with the number of neighbours.

Koloskova, Stich and Jaggi, `Decentralized Stochastic Optimization and Gossip Algorithms
with Compressed Communication <https://arxiv.org/abs/1902.00340>`_, 2019, Algorithms 1
and 2.
"""

from typing import NamedTuple

from jax.typing import ArrayLike

from djax._arrays.precision import add
from djax._calls import by_its_call
from djax._interfaces import Communicator, Compressor, PyTree
from djax._mechanism.value import Mechanism
from djax.topologies import Graph

from ._compressed import Messages, averaging_by_a_contraction, follow, zeros


class ChocoState(NamedTuple):
    r"""State of :func:`choco_gossip`, in float32 or wider.

    Attributes:
      estimate: a tree like the parameters, the public copy :math:`\hat x_i`.
      displacement: a tree like the parameters,
        :math:`\sum_j w_{ij} (\hat x_j - \hat x_i)`.
      compressor_state: the state of the compressor.
      step: `int32[]`, the number of updates so far.
      graph: a static label of the graph that the state belongs to. If it is None, the
        graph is not checked.
    """

    estimate: PyTree
    displacement: PyTree
    compressor_state: PyTree
    step: ArrayLike
    graph: PyTree = None


@by_its_call
def choco_gossip(
    topology: Graph,
    communicator: Communicator,
    compressor: Compressor,
    consensus_rate: float,
    *,
    overlap: bool = False,
) -> Mechanism:
    r"""Averages the parameters with the neighbours' by compressed changes.

    Placed last in a chain, it turns SGD into CHOCO-SGD. With the updates :math:`u_i` of
    the links before it,

    .. math::
       y_i &= x_i + u_i \qquad\text{(with overlap: } y_i = x_i\text{)} \\
       q_i &= C(y_i - \hat x_i), \qquad \hat x_i \leftarrow \hat x_i + q_i \\
       x_i &\leftarrow x_i + u_i
          + \gamma \textstyle\sum_j w_{ij} (\hat x_j - \hat x_i)

    The copies start at zero, as published. Only :math:`q_i` is sent, to each neighbour.
    With the code `identity()` and :math:`\gamma = 1`, the mechanism is
    :func:`djax.gossip`.

    Args:
      topology: the graph and its weights.
      communicator: how messages travel; it must not lose any.
      compressor: the code C, a contraction; see :mod:`djax.compressors`. With a code
        that is not a contraction, such as `quantize(4)`, the models would diverge.
        Codes that are declared not to be contractions are refused: use `quantize(4,
        unbiased=False)`.
      consensus_rate: :math:`\gamma`, a float or a scalar array. It has to be tuned: a
        coarser code needs a smaller rate.
      overlap: average the parameters before this step's updates.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a
      :class:`ChocoState`. Updates keep their dtypes.

    Raises:
      TypeError: if `topology` is not a graph, or `compressor` is not a compressor, for
        example a function that was not called.
      ValueError: if the graph changes with time, the sizes differ, the rate is not
        positive, messages get lost, or the code is declared not to be a contraction;
        `init` raises it for `overlap` inside of a correction such as :func:`djax.d2`.

    Examples:
      >>> import djax, optax
      >>> ring = djax.topologies.ring(8)
      >>> communicator = djax.communicators.simulated(8)
      >>> code = djax.compressors.top_k(0.01)
      >>> averaging = djax.choco_gossip(ring, communicator, code, 0.04)
      >>> choco_sgd = optax.chain(optax.sgd(0.1), averaging)

    References:
      Koloskova, Stich and Jaggi, `Decentralized Stochastic Optimization and Gossip
      Algorithms with Compressed Communication <https://arxiv.org/abs/1902.00340>`_,
      2019, Algorithm 2
    """
    messages = Messages("choco_gossip", ChocoState, topology, communicator, compressor)

    def start(params):
        return zeros(params), zeros(params)

    def mix(model, state, send):
        unknown = add(model, state.estimate, like=model, sign=-1)
        own, change, state = send(unknown, state)
        state = follow(state, own, change)
        return state.displacement, state

    return averaging_by_a_contraction(messages, start, mix, consensus_rate, overlap)
