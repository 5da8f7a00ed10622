r"""DeMo: each worker keeps its momentum, and sends only what changes fast in it.

Data-parallel training averages gradients of the size of the model in every step. DeMo
lets every worker keep a momentum of its own, its residual, which is never averaged. In
each step a worker takes the largest coefficients of a cosine transform of the residual
out of it and sends them to all others. All workers make the same step along the sign of
the average of what was sent, so that their models stay equal.

Peng, Quesnelle and Kingma, `DeMo: Decoupled Momentum Optimization
<https://arxiv.org/abs/2411.19870>`_, 2024.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax import mixing
from djax._arguments import (
    check_communicator,
    check_decay,
    check_rate,
    check_reliable,
    check_static,
)
from djax._arrays.checks import check_real
from djax._arrays.precision import add, promote, scale
from djax._calls import by_its_call
from djax._interfaces import Communicator, PyTree
from djax._learning_rate import check_learning_rate, per_rank_of, rate_at
from djax._mechanism.adapter import build
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism
from djax._values import check_integer
from djax.compressors import dct
from djax.compressors._dct import DctMessage, add_to, blocks_shape, inverse
from djax.topologies import Topology, complete


class DemoState(NamedTuple):
    r"""State of :func:`demo`.

    Attributes:
      residual: :math:`d_i`, a tree like the parameters in float32 or wider: the
        momentum of this worker without what it has sent.
      step: `int32[]`, the number of updates so far.
    """

    residual: optax.Updates
    step: ArrayLike


@by_its_call
def demo(
    learning_rate: optax.ScalarOrSchedule,
    communicator: Communicator,
    *,
    decay: float = 0.999,
    chunk: int = 64,
    k: int = 32,
    weight_decay: float = 0.0,
) -> Mechanism:
    r"""SGD along the sign of the workers' fast components: optimizer and mechanism.

    With the learning rate :math:`\gamma`, the decay :math:`\beta`, the gradient
    :math:`g_i` and the code C, :func:`djax.compressors.dct` with these `k` and `chunk`,

    .. math::
       d_i &\leftarrow \beta d_i + \gamma g_i, \qquad
       q_i = C(d_i), \qquad d_i \leftarrow d_i - q_i, \\
       x &\leftarrow (1 - \gamma \lambda) x
          - \gamma \operatorname{sign}(\operatorname{gather}(q_1, \dots, q_n)).

    The gather is the mean of each coefficient over those workers that have sent it, and
    0 for coefficients that nobody has sent, transformed back. The learning rate enters
    twice: the sign makes its size in :math:`d_i` irrelevant, except that gradients of
    steps with a larger rate count more in what is left of the residual.

    There is no graph. Each worker sends its message to all others, as the all-gather of
    the paper does: n - 1 messages in each step, of :math:`k` coefficients with their
    indices for each block. A worker thus receives and sends more, the more workers
    there are. For a few hundred workers, or where links are slow, see
    :func:`djax.choco_gossip` with this code.

    All workers have to start with the same model, as
    :func:`djax.communicators.replicate` makes it. Their models then stay the same, bit
    for bit on devices of one kind, since all workers add up the messages in the same
    order.

    Args:
      learning_rate: :math:`\gamma`, a number that is not negative, or a schedule of the
        learning rate, the same on every worker.
      communicator: how messages travel; it must not lose any.
      decay: :math:`\beta`, the decay of the residual in each step.
      chunk: the largest length of the blocks of a leaf along each of its axes.
      k: the number of coefficients of each block that are sent.
      weight_decay: :math:`\lambda`, a number that is not negative.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs `params`, with a
      :class:`DemoState`. It has to be the last link of a chain.

    Raises:
      TypeError: if `communicator` is not a communicator; in `init`, if a parameter is
        complex, for which signs are not defined.
      ValueError: if a number is out of its range, or messages get lost.

    Examples:
      >>> import djax, jax
      >>> workers = djax.communicators.simulated(8)
      >>> optimizer = djax.demo(1e-3, workers)
      >>> weights = jax.ShapeDtypeStruct((640, 640), "float32")
      >>> djax.communication_cost(optimizer, weights, workers).mean_bytes  # of 1638400
      134400

    References:
      Peng, Quesnelle and Kingma, `DeMo: Decoupled Momentum Optimization
      <https://arxiv.org/abs/2411.19870>`_, 2024, Algorithm 1
    """
    check_communicator("demo", communicator)
    check_reliable("demo", communicator)
    check_learning_rate("demo", learning_rate)
    check_decay("demo: decay", decay)
    check_rate("demo: weight_decay", weight_decay, zero=True)
    check_static("demo", k=k, chunk=chunk)
    k, chunk = check_integer(k, "demo: k"), check_integer(chunk, "demo: chunk")
    code, graph = dct(k, chunk=chunk), complete(communicator.size)

    def init(params):
        check_real("demo", params)
        residual = jax.tree.map(lambda x: jnp.zeros_like(promote(x)), params)
        return DemoState(residual, jnp.zeros((), jnp.int32))

    def update(grads, state, params, /):
        check_state("demo", state, DemoState, params, "residual")
        rate = rate_at(learning_rate, state.step)
        residual = jax.tree.map(
            lambda d, g: scale(decay, d) + scale(rate, promote(g).astype(d.dtype)),
            *(state.residual, grads),
        )
        message, _ = code.compress(residual, code.init(residual))
        message = mixing.as_sent(message, communicator, state.step)
        sent = code.decompress(message, residual)
        residual = add(residual, sent, like=residual, sign=-1)
        everyones = _all_gather(message, graph, communicator, state.step)
        decoded = _mean_over_senders(everyones, residual, chunk)

        def of_leaf(g, x, q):
            step = jnp.sign(q) + scale(weight_decay, promote(x).astype(q.dtype))
            return scale(-rate, step).astype(g.dtype)

        updates = jax.tree.map(of_leaf, grads, params, decoded)
        return updates, DemoState(residual, optax.safe_increment(state.step))

    return build(
        "demo",
        init,
        communicator,
        update=update,
        facts=dict.fromkeys(
            ("optimizer", "needs_every_message", "averages_updates"), True
        ),
        per_rank=per_rank_of(learning_rate),
    )


def _all_gather(
    message: DctMessage, graph: Topology, communicator: Communicator, step: ArrayLike
) -> DctMessage:
    """Sends a message to all workers; returns everybody's, with an axis of ranks."""
    heard = mixing.exchange(message, graph, communicator, step=step)
    messages = [message, *(each.message for each in heard)]
    order = _order(graph.rounds, communicator.size)
    mine = jnp.asarray(order)[communicator.rank()]
    return jax.tree.map(lambda *x: jnp.stack(x)[mine], *messages)


def _order(rounds: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """`int32[receiver, sender]`, by which message a receiver hears of a sender.

    Message 0 is the receiver's own one, and message r + 1 that of round r.
    """
    order = np.zeros((size, size), np.int32)
    for r, source in enumerate(rounds):
        for receiver, sender in enumerate(source):
            if sender != receiver:
                order[receiver, sender] = r + 1
    return order


def _mean_over_senders(everyones: DctMessage, like: PyTree, chunk: int) -> PyTree:
    """Averages coefficients over the workers that sent them, and transforms them back.

    The messages are added one after the other. If they were added at once, the order of
    the sum, and with it the last digits, could differ between the workers.
    """

    def of_leaf(values, indices, x):
        nothing = jnp.zeros(blocks_shape(x, chunk), x.dtype)

        def receive(sums, message):
            total, count = sums
            value, index = message
            total = add_to(total, value, index)
            return (total, add_to(count, jnp.ones_like(value), index)), None

        sums, _ = jax.lax.scan(receive, (nothing, nothing), (values, indices))
        total, count = sums
        return inverse(total / jnp.maximum(count, 1), x, chunk)

    return jax.tree.map(of_leaf, everyones.values, everyones.indices, like)
