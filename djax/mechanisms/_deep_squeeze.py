r"""DeepSqueeze: averaging over compressed models, with error compensation.

The model itself is compressed, and what the code leaves out is added to the next
message:

.. math::
   v_i = x_i + \delta_i, \qquad \delta_i \leftarrow v_i - C(v_i), \qquad
   x_i \leftarrow x_i + \eta \textstyle\sum_j w_{ij} (C(v_j) - C(v_i)).

Nothing is remembered of the neighbours; the errors are of the size of the model, hence
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
      error: like the parameters, in float32 or wider, :math:`\delta_i`: what the codes
        have left out.
      compressor_state: state of the compressor.
      step: `int32[]`, number of updates so far.
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
    r"""Averages the parameters with the neighbours', sending compressed models.

    With the updates :math:`u_i` of the links before it,

    .. math::
       y_i &= x_i + u_i \qquad\text{(with overlap: } y_i = x_i\text{)} \\
       v_i &= y_i + \delta_i, \qquad \delta_i \leftarrow v_i - C(v_i) \\
       x_i &\leftarrow x_i + u_i + \eta \textstyle\sum_j w_{ij} (C(v_j) - C(v_i))

    With `identity()` it is :func:`djax.gossip` at the consensus rate :math:`\eta`.

    Args:
      topology: the graph and its weights: a Topology, or a Schedule whose matrices are
        doubly stochastic, of which each step takes the next one.
      communicator: how messages travel; it must not lose any.
      compressor: the code C, a contraction; see :mod:`djax.compressors`. A code
        that is declared to be none, such as `quantize(4)`, is refused, since the models
        would diverge: use `quantize(4, unbiased=False)`.
      consensus_rate: :math:`\eta`, which has to be tuned. A float, or a scalar array.
      overlap: average the parameters before this step's updates.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a
      :class:`DeepSqueezeState`. Updates keep their dtypes.

    Raises:
      TypeError: if `topology` is no graph, or `compressor` is none, for example a
        function that was not called.
      ValueError: if a matrix is not doubly stochastic, the sizes differ, the rate is
        not positive, messages get lost, or the code is declared to be no contraction;
        in `init`, with overlap inside of a correction such as :func:`djax.d2`.

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
