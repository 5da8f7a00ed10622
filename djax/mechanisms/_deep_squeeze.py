r"""DeepSqueeze: averaging over compressed models, with error compensation.

CHOCO-Gossip needs a sum over fixed neighbours, and memory for copies. DeepSqueeze needs
neither, so that the graph may change with time. It compresses the model itself, and
adds what the code leaves out to the next message:

.. math::
   v_i = x_i + \delta_i, \qquad \delta_i \leftarrow v_i - C(v_i), \qquad
   x_i \leftarrow x_i + \eta \textstyle\sum_j w_{ij} (C(v_j) - C(v_i)).

The errors :math:`\delta_i` are as large as the model itself, hence the consensus rate
:math:`\eta` has to be small.

Tang et al., `DeepSqueeze: Decentralization Meets Error-Compensated Compression
<https://arxiv.org/abs/1907.07346>`_, 2019, Algorithm 1.
"""

from typing import NamedTuple

import jax
import optax
from jax.typing import ArrayLike

from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import Communicator, Compressor, PyTree
from djax._mechanism.value import Mechanism
from djax.topologies import Graph

from ._compressed import Messages, accumulate, averaging_by_a_contraction, zeros


class DeepSqueezeState(NamedTuple):
    r"""State of :func:`deep_squeeze`.

    Attributes:
      error: a tree like the parameters in float32 or wider, :math:`\delta_i`, which is
        what the code has left out so far.
      compressor_state: the state of the compressor.
      step: `int32[]`, the number of updates so far.
    """

    error: PyTree
    compressor_state: PyTree
    step: ArrayLike


@by_its_call
def deep_squeeze(
    topology: Graph,
    communicator: Communicator,
    compressor: Compressor,
    consensus_rate: float,
    *,
    overlap: bool = False,
) -> Mechanism:
    r"""Averages the parameters with the neighbours' by compressed models.

    Placed last in a chain, it turns SGD into DeepSqueeze. With the updates :math:`u_i`
    of the links before it,

    .. math::
       y_i &= x_i + u_i \qquad\text{(with overlap: } y_i = x_i\text{)} \\
       v_i &= y_i + \delta_i, \qquad \delta_i \leftarrow v_i - C(v_i) \\
       x_i &\leftarrow x_i + u_i + \eta \textstyle\sum_j w_{ij} (C(v_j) - C(v_i))

    With the code `identity()`, the mechanism is :func:`djax.gossip` at the consensus
    rate :math:`\eta`.

    Args:
      topology: the graph and its weights: a Topology, or a Schedule with doubly
        stochastic matrices, one for each step.
      communicator: how messages travel; it must not lose any.
      compressor: the code C, a contraction; see :mod:`djax.compressors`. With a code
        that is not a contraction, such as `quantize(4)`, the models would diverge.
        Codes that are declared not to be contractions are refused: use `quantize(4,
        unbiased=False)`.
      consensus_rate: :math:`\eta`, a float or a scalar array. It has to be tuned.
      overlap: average the parameters before this step's updates.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a
      :class:`DeepSqueezeState`. Updates keep their dtypes.

    Raises:
      TypeError: if `topology` is not a graph, or `compressor` is not a compressor, for
        example a function that was not called.
      ValueError: if a matrix is not doubly stochastic, the sizes differ, the rate is
        not positive, messages get lost, or the code is declared not to be
        a contraction; `init` raises it for `overlap` inside of a correction such as
        :func:`djax.d2`.

    Examples:
      >>> import djax, optax
      >>> ring = djax.topologies.ring(8)
      >>> communicator = djax.communicators.simulated(8)
      >>> code = djax.compressors.sign()
      >>> averaging = djax.deep_squeeze(ring, communicator, code, 0.01)
      >>> optimizer = optax.chain(optax.sgd(0.1), averaging)

    References:
      Tang et al., `DeepSqueeze: Decentralization Meets Error-Compensated Compression
      <https://arxiv.org/abs/1907.07346>`_, 2019, Algorithm 1
    """
    messages = Messages(
        "deep_squeeze", DeepSqueezeState, topology, communicator, compressor
    )

    def start(params):
        return (zeros(params),)

    def mix(model, state, send):
        compensated = accumulate(state.error, model)
        sent, displacement, state = send(
            optax.tree.cast_like(compensated, model), state
        )
        error = jax.tree.map(lambda v, c: v - promote(c), compensated, sent)
        return displacement, state._replace(error=error)

    return averaging_by_a_contraction(messages, start, mix, consensus_rate, overlap)
