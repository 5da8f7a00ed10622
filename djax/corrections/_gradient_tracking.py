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

import jax
import jax.numpy as jnp
import optax

from djax._arrays.checks import check_params
from djax._arrays.precision import add
from djax._calls import by_its_call
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation

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

    It sends twice what the mechanism sends, since it averages models and updates. No
    message may be lost: the corrections would no longer sum to zero, and the workers
    would settle at a wrong point.

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
    average_models = as_transformation("gradient_tracking", mechanism)
    refused = ("opaque", "overlap", "losses", "uneven_sums", "optimizer", "correction")
    refuse("gradient_tracking", parts_of(mechanism), *refused)
    average_updates = on_updates(mechanism)

    def init(params):
        check_params("gradient_tracking", params)
        with around("gradient_tracking({})"):
            return GradientTrackingState(
                jax.tree.map(jnp.zeros_like, params),
                average_models.init(params),
                average_updates.init(params),
            )

    def update(updates, state, params=None, **extra_args):
        params = check_params("gradient_tracking", params)
        check_state(
            "gradient_tracking", state, GradientTrackingState, params, "correction"
        )
        corrected = add(updates, state.correction, like=updates)
        averaged, model_state = average_models.update(
            corrected, state.model_state, params, **extra_args
        )
        tracked, update_state = average_updates.update(
            corrected, state.update_state, **extra_args
        )
        correction = add(tracked, updates, like=state.correction, sign=-1)
        return averaged, GradientTrackingState(correction, model_state, update_state)

    facts = {"needs_every_message": True, "correction": True, "every_step": True}
    return wrap("gradient_tracking", mechanism, init, update, facts)
