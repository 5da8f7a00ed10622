r"""Gradient tracking: every worker follows an estimate of all workers' mean update.

If the workers' data differ, so do their updates, and D-PSGD with a constant step size
does not reach the optimum. Here every worker steps along an estimate of the mean of all
updates. Its correction :math:`c_i` is the difference of this estimate and its own
update. Corrections are averaged with the neighbours like the models, and sum to zero
over the workers. With the update :math:`u_i` of the links before it and any mechanism,

.. math::
   x_i &\leftarrow \operatorname{average}_i(x_1 + u_1 + c_1, \dots, x_n + u_n + c_n), \\
   c_i &\leftarrow \operatorname{average}_i(u_1 + c_1, \dots, u_n + c_n) - u_i,
   \qquad c_i = 0 \text{ at first}.

Lorenzo and Scutari, `NEXT: In-Network Nonconvex Optimization
<https://arxiv.org/abs/1602.00591>`_, 2016; Pu and Nedić, `Distributed Stochastic
Gradient Tracking Methods <https://arxiv.org/abs/1805.11454>`_, 2021.
"""

from typing import NamedTuple

import optax

from djax._calls import by_its_call
from djax._mechanism.value import Mechanism

from ._corrected import corrected
from ._on_updates import on_updates


class GradientTrackingState(NamedTuple):
    """State of :func:`gradient_tracking`.

    Attributes:
      correction: :math:`c_i`, a tree like the parameters: the estimate of the mean of
        all updates minus the worker's own update.
      model_state: the state of the mechanism where it averages the models.
      update_state: the state of the mechanism where it averages the updates.
    """

    correction: optax.Updates
    model_state: optax.OptState
    update_state: optax.OptState


@by_its_call
def gradient_tracking(mechanism: optax.GradientTransformation) -> Mechanism:
    r"""Corrects a mechanism by tracking the mean of all workers' updates.

    .. math::
       x_i &\leftarrow \operatorname{average}_i(x_1 + u_1 + c_1, \dots, x_n + u_n + c_n)
       \\ c_i &\leftarrow \operatorname{average}_i(u_1 + c_1, \dots, u_n + c_n) - u_i

    The corrections :math:`c_i` begin with 0. Gradient tracking sends twice what the
    mechanism sends, since it averages models and updates. No message may be lost: the
    corrections would no longer sum to zero, and the workers would settle at a wrong
    point.

    Args:
      mechanism: any mechanism without `overlap` that loses no messages. It is used
        twice, with two states. :func:`djax.relay` is allowed with `missing="initial"`
        or `missing="latest"`.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a
      :class:`GradientTrackingState`.

    Raises:
      ValueError: if the mechanism overlaps or loses messages, is another
        correction, or an optimizer such as :func:`djax.quasi_global_momentum`.

    Examples:
      >>> import djax, optax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> averaging = djax.gradient_tracking(djax.gossip(ring, communicator))
      >>> optimizer = optax.chain(optax.sgd(0.1), averaging)

    References:
      Lorenzo and Scutari, `NEXT: In-Network Nonconvex Optimization
      <https://arxiv.org/abs/1602.00591>`_, 2016

      Pu and Nedić, `Distributed Stochastic Gradient Tracking Methods
      <https://arxiv.org/abs/1805.11454>`_, 2021
    """
    refused = ("losses", "uneven_sums", "optimizer", "correction")
    name = "gradient_tracking"
    return corrected(name, mechanism, GradientTrackingState, refused, on_updates)
