r"""ECD-PSGD: averaging with estimates of the neighbours' models.

An unbiased code makes errors whose mean is zero. If the receivers average over many
messages, these errors cancel. In step :math:`t = 1, 2, \dots` a worker therefore sends
an extrapolated point :math:`z_i` beyond its new model. The receivers move their
estimate :math:`\tilde x_i` of that model only a part of the way to the point, a smaller
part in each step:

.. math::
   x_i^{t+1} &= \textstyle\sum_j w_{ij} \tilde x_j^t + u_i, \\
   z_i &= (1 - \tfrac t2) x_i^t + \tfrac t2 x_i^{t+1}, \\
   \tilde x_i^{t+1} &= (1 - \tfrac 2t) \tilde x_i^t + \tfrac 2t C(z_i).

A worker stores only the weighted sum of its neighbours' estimates.

Tang et al., `Communication Compression for Decentralized Training
<https://arxiv.org/abs/1803.06443>`_, 2018, Algorithm 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import Communicator, Compressor, PyTree
from djax._mechanism.value import Mechanism
from djax.topologies import Graph

from ._compressed import (
    Messages,
    accumulate,
    averaging_by_an_unbiased_code,
    copies,
    first_exchange,
)


class ECDState(NamedTuple):
    r"""State of :func:`ecd`, its models in float32 or wider.

    Attributes:
      average: a tree like the parameters, :math:`\sum_j w_{ij} \tilde x_j`.
      model: a tree like the parameters, the worker's own model :math:`x_i` after the
        last average.
      compressor_state: the state of the compressor.
      step: `int32[]`, the number of updates so far.
      graph: a static label of the graph that the state belongs to. If it is None, the
        graph is not checked.
    """

    average: PyTree
    model: PyTree
    compressor_state: PyTree
    step: ArrayLike
    graph: PyTree = None


@by_its_call
def ecd(
    topology: Graph, communicator: Communicator, compressor: Compressor
) -> Mechanism:
    r"""Averages estimates of the neighbours' models, sending extrapolated ones.

    Placed last in a chain, it turns SGD into ECD-PSGD. With the updates :math:`u_i` of
    the links before it, in step :math:`t`,

    .. math::
       x_i^{t+1} &= \textstyle\sum_j w_{ij} \tilde x_j^t + u_i, \\
       z_i &= (1 - \tfrac t2) x_i^t + \tfrac t2 x_i^{t+1}, \\
       \tilde x_i^{t+1} &= (1 - \tfrac 2t) \tilde x_i^t + \tfrac 2t C(z_i).

    Anything else that has changed the parameters since the last average counts as an
    update. In `init`, and only there, the neighbours exchange their uncompressed
    models. With the code `identity()`, the mechanism is :func:`djax.gossip` with
    overlap. What a `message_dtype` leaves out of a message is lost, too: on a ring of 8
    the models move by 0.5 % of their norm with bfloat16.

    Args:
      topology: the graph and its weights.
      communicator: how messages travel; it must not lose any.
      compressor: the code C, unbiased. The paper assumes that its error is bounded,
        however large :math:`z_i` is. The error of :func:`djax.compressors.quantize` is
        proportional to :math:`z_i`, which grows with t unless the updates shrink like
        1/t. If they do not, prefer :func:`djax.dcd`.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with an
      :class:`ECDState`. Updates keep their dtypes.

    Raises:
      TypeError: if `topology` is not a graph, or `compressor` is not a compressor, for
        example a function that was not called.
      ValueError: if the graph changes with time, the sizes differ, messages get lost,
        or the code is declared to be biased. Corrections such as :func:`djax.d2` raise
        it, since the models are averaged before this step's updates.

    Examples:
      >>> import djax, optax
      >>> ring = djax.topologies.ring(8)
      >>> communicator = djax.communicators.simulated(8)
      >>> averaging = djax.ecd(ring, communicator, djax.compressors.quantize(8))
      >>> optimizer = optax.chain(optax.sgd(0.1), averaging)

    References:
      Tang et al., `Communication Compression for Decentralized Training
      <https://arxiv.org/abs/1803.06443>`_, 2018, Algorithm 2
    """
    messages = Messages("ecd", ECDState, topology, communicator, compressor)

    def start(params):
        _, displacement = first_exchange(messages, params)
        return accumulate(displacement, params), copies(params)

    def step(params, updates, state, send):
        t = optax.safe_increment(state.step)

        def of_leaf(average, u, x, before):
            return average + promote(u) + (promote(x) - before)

        model = jax.tree.map(of_leaf, state.average, updates, params, state.model)
        beyond = jax.tree.map(
            lambda new, old: old + jnp.asarray(t, new.dtype) / 2 * (new - old),
            model,
            state.model,
        )
        own, displacement, next_state = send(
            optax.tree.cast_like(beyond, params), state
        )
        average = jax.tree.map(
            lambda old, new: old + 2 / jnp.asarray(t, old.dtype) * (new - old),
            state.average,
            accumulate(displacement, own),
        )
        return model, next_state._replace(average=average, model=model)

    return averaging_by_an_unbiased_code(messages, start, step)
