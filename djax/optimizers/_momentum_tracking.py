r"""Momentum Tracking: every worker follows an estimate of all workers' mean momentum.

If the workers' data differ, so do their momenta, and the larger the decay of the
momentum is, the farther D-PSGD with momentum ends from the optimum. Momentum Tracking
ends at the optimum, whatever the decay is. Each worker steps along an estimate of the
mean of all momenta. Its correction :math:`c_i` is the difference of its own momentum
:math:`u_i` and this estimate. With the gradient :math:`g_i` and the learning rate
:math:`\gamma`,

.. math::
   u_i &\leftarrow \beta u_i + g_i, \\
   x_i &\leftarrow \textstyle\sum_j w_{ij} x_j - \gamma (u_i - c_i), \\
   c_i &\leftarrow u_i - \textstyle\sum_j w_{ij} (u_j - c_j).

The corrections sum to zero over the workers, so that the mean of all models moves along
the mean of all momenta.

:func:`djax.gradient_tracking_sgd` with a momentum tracks momenta, too, but times the
learning rate, and it averages the models after the step. Here the corrections do not
contain the learning rates of earlier steps, and the models are averaged before the
step.

Takezawa et al., `Momentum Tracking: Momentum Acceleration for Decentralized Deep
Learning on Heterogeneous Data <https://arxiv.org/abs/2209.15505>`_, 2022.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax import mixing
from djax._arguments import (
    check_decay,
    check_flags,
    check_mixing,
    check_rate,
    check_reliable,
)
from djax._arrays.precision import add, promote, scale
from djax._calls import by_its_call
from djax._counting import present_counter
from djax._interfaces import Communicator
from djax._learning_rate import check_learning_rate, per_rank_of, rate_at
from djax._mechanism.adapter import build
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism
from djax.topologies import Graph


class MomentumTrackingState(NamedTuple):
    """State of :func:`momentum_tracking`.

    Attributes:
      momentum: :math:`u_i`, a tree like the parameters.
      correction: :math:`c_i`, a tree like the parameters: the worker's momentum minus
        its estimate of the mean of all workers' momenta.
      step: `int32[]`, the number of updates so far.
    """

    momentum: optax.Updates
    correction: optax.Updates
    step: ArrayLike


@by_its_call
def momentum_tracking(
    learning_rate: optax.ScalarOrSchedule,
    topology: Graph,
    communicator: Communicator,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    first_mean: bool = True,
) -> Mechanism:
    r"""SGD with a momentum that tracks the mean of all workers' momenta.

    .. math::
       u_i &\leftarrow \beta u_i + g_i + \lambda x_i \\
       x_i &\leftarrow \textstyle\sum_j w_{ij} x_j - \gamma (u_i - c_i) \\
       c_i &\leftarrow u_i - \textstyle\sum_j w_{ij} (u_j - c_j)
       \qquad (u_j \text{ new}, c_j \text{ old})

    The paper begins with :math:`u_i = c_i = (g_i - \bar g) / (1 - \beta)`, where
    :math:`\bar g` is the mean of all workers' first gradients. The first step of all
    workers is then the same, :math:`-\gamma \bar g`. This mean costs one all-reduce in
    the first step. Without `first_mean` both begin with 0, and the estimates become
    good in the course of the first steps.

    A worker sends twice the size of its model to each neighbour: the model and
    :math:`u_i - c_i` travel in one message. No message may be lost: the corrections
    would no longer sum to zero, and the workers would settle at a wrong point.

    Args:
      learning_rate: :math:`\gamma`, a number that is not negative, or a schedule of the
        learning rate.
      topology: the graph and its weights: a Topology, or a Schedule with doubly
        stochastic matrices, one for each step.
      communicator: how messages travel; it must not lose any.
      momentum: :math:`\beta`, the decay of the momentum.
      weight_decay: :math:`\lambda`, the decay of the parameters, which becomes a part
        of the momentum. The authors' code has 0.001.
      first_mean: whether to begin with the mean of all workers' first gradients.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs `params`, with a
      :class:`MomentumTrackingState`. It has to be the last link of a chain.

    Raises:
      TypeError: if `topology` is not a graph.
      ValueError: if the sizes differ, a matrix is not doubly stochastic, messages get
        lost, or a number is out of range.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.momentum_tracking(0.1, ring, communicator, momentum=0.9)

    References:
      Takezawa et al., `Momentum Tracking: Momentum Acceleration for Decentralized Deep
      Learning on Heterogeneous Data <https://arxiv.org/abs/2209.15505>`_, 2022
    """
    name = "momentum_tracking"
    check_mixing(name, topology, communicator)
    check_reliable(name, communicator)
    check_learning_rate(name, learning_rate)
    check_decay(f"{name}: momentum", momentum)
    check_rate(f"{name}: weight_decay", weight_decay, zero=True)
    check_flags(name, first_mean=first_mean)

    def init(params):
        momentum, correction = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return MomentumTrackingState(momentum, correction, jnp.zeros((), jnp.int32))

    def begin(state, grads):
        """Returns momentum and correction, which the first step begins anew."""
        buffers = state.momentum, state.correction
        # What one step of a run sends is nothing in the mean over all steps.
        if not first_mean or present_counter() is not None:
            return buffers

        def from_mean(old, correction):
            apart = add(grads, communicator.mean(grads), like=old, sign=-1)
            apart = scale(1 / (1 - momentum), apart)
            return apart, optax.tree.cast_like(apart, correction)

        branches = (lambda *same: same), from_mean
        return mixing.alternate(jnp.minimum(state.step, 1), [1, 0], branches, *buffers)

    def update(grads, state, params, /):
        check_state(
            name, state, MomentumTrackingState, params, "momentum", "correction"
        )
        old, correction = begin(state, grads)
        if isinstance(weight_decay, jax.Array) or weight_decay:
            decay = scale(weight_decay, jax.tree.map(promote, params))
            grads = add(grads, decay, like=grads)
        new = jax.tree.map(
            lambda u, g: scale(momentum, promote(u)) + promote(g), old, grads
        )
        direction = add(new, correction, like=grads, sign=-1)
        moved: Any = mixing.displacement(
            (params, direction), topology, communicator, step=state.step
        )
        averaged, towards_mean = moved
        rate = rate_at(learning_rate, state.step)
        updates = add(averaged, scale(-rate, direction), like=grads)
        # Since u - c is mixed, u - W (u - c) is c minus the displacement of u - c.
        correction = add(correction, towards_mean, like=correction, sign=-1)
        step = optax.safe_increment(state.step)
        momenta = optax.tree.cast_like(new, old)
        return updates, MomentumTrackingState(momenta, correction, step)

    return build(
        name,
        init,
        communicator,
        topology,
        update=update,
        facts={"optimizer": True, "needs_every_message": True},
        per_rank=per_rank_of(learning_rate),
    )
