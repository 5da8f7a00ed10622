r"""K-GT: gradient tracking with several local steps between two averagings.

If the workers' data differ, each local step draws a worker to its own optimum. K-GT
adds to every local step a correction :math:`c_i`, the estimate of the mean of all
workers' updates minus the worker's own update. With the update :math:`u_i` of the links
before it, the model :math:`X_i` at the start of a period of K steps, and any mechanism,
a local step is

.. math:: x_i \leftarrow x_i + u_i + c_i, \qquad c_i = 0 \text{ at first}.

In the last step of a period, the workers average twice: their models, and how far they
have come in a step.

.. math::
   P_i &= x_i + u_i + c_i, \qquad m_i = (P_i - X_i) / K, \\
   x_i &\leftarrow \operatorname{average}_i(X_1 + \eta (P_1 - X_1), \dots), \\
   c_i &\leftarrow c_i - m_i + \operatorname{average}_i(m_1, \dots, m_n).

Liu et al., `Decentralized Gradient Tracking with Local Steps
<https://arxiv.org/abs/2301.01313>`_, 2023.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import check_rate, check_static
from djax._arrays.checks import check_params
from djax._arrays.precision import add, difference, scale
from djax._calls import by_its_call
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around, text_of
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation
from djax._values import check_integer
from djax.mixing import alternate

from ._on_updates import on_updates


class KGTState(NamedTuple):
    """State of :func:`k_gt`.

    Attributes:
      correction: :math:`c_i`, a tree like the parameters, which every step adds to the
        model: the estimate of the mean of all updates minus the worker's own update.
      anchor: :math:`X_i`, a tree like the parameters: the model at the start of the
        period. It is None if the period is 1, since it is the model itself then.
      step: `int32[]`, the number of updates so far.
      model_state: the state of the mechanism where it averages the models.
      update_state: the state of the mechanism where it averages the updates.
    """

    correction: optax.Updates
    anchor: optax.Params | None
    step: ArrayLike
    model_state: optax.OptState
    update_state: optax.OptState


@by_its_call
def k_gt(
    period: int, mechanism: optax.GradientTransformation, rate: float | jax.Array = 1.0
) -> Mechanism:
    r"""Makes local steps, and corrects them by tracking the mean of all updates.

    In the steps :math:`K, 2K, 3K, \dots` (counted from one) the workers average; all
    others are local steps:

    .. math::
       P_i &= x_i + u_i + c_i, \qquad m_i = (P_i - X_i) / K \\
       x_i &\leftarrow P_i \quad\text{(local step)}, \qquad x_i \leftarrow
       \operatorname{average}_i(X_1 + \eta (P_1 - X_1), \dots)
       \quad\text{(averaging step)} \\
       c_i &\leftarrow c_i - m_i + \operatorname{average}_i(m_1, \dots, m_n)
       \quad\text{(averaging step)}

    :math:`X_i` is the model after the last averaging step. A local step adds the
    correction to the update, and costs nothing else. An averaging step sends twice what
    the mechanism sends. With :math:`K = 1` and :math:`\eta = 1`, K-GT is
    :func:`djax.gradient_tracking`. No message may be lost: the corrections would no
    longer sum to zero, and the workers would settle at a wrong point.

    Updates are tracked here, not gradients. With SGD at a constant learning rate that
    is the same. When the learning rate changes, the corrections still have the size of
    the old updates, and follow at the next averagings: let the rate change smoothly.
    The longer the period, the smaller the learning rate has to be.

    The corrections begin with 0. In the paper they begin with the mean of all workers'
    gradients minus the worker's own gradient, which would take an all-reduce.

    Args:
      period: K, the number of steps from one averaging to the next.
      mechanism: any mechanism without `overlap` that loses no messages. It is used
        twice, with two states. :func:`djax.relay` is allowed with `missing="initial"`
        or `missing="latest"`.
      rate: :math:`\eta`, the share of a period's way that counts, a float or a scalar
        array.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`KGTState`.

    Raises:
      ValueError: if the period is not a positive integer, or the rate is not positive;
        or if the mechanism overlaps, loses messages or averages updates, is another
        correction, or an optimizer such as :func:`djax.quasi_global_momentum`.

    Examples:
      >>> import djax, optax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> averaging = djax.k_gt(4, djax.gossip(ring, communicator))
      >>> optimizer = optax.chain(optax.sgd(0.05), averaging)

    References:
      Liu et al., `Decentralized Gradient Tracking with Local Steps
      <https://arxiv.org/abs/2301.01313>`_, 2023
    """
    check_static("k_gt", period=period)
    period = check_integer(period, "k_gt: period")
    check_rate("k_gt: rate", rate)
    average = as_transformation("k_gt", mechanism)
    refused = ("losses", "averages_updates", "uneven_sums", "optimizer", "correction")
    refuse("k_gt", parts_of(mechanism), "opaque", "overlap", *refused)
    tracker = on_updates(mechanism)
    models = ("correction", "anchor") if period > 1 else ("correction",)
    form = f"k_gt({period}, {{}}, {text_of(rate)})"

    def init(params):
        check_params("k_gt", params)
        with around(form):
            states = average.init(params), tracker.init(params)
        anchor = None
        if period > 1:  # A copy, since programs may take over the parameters' memory.
            anchor = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return KGTState(zeros, anchor, jnp.zeros((), jnp.int32), *states)

    def update(updates, state, params=None, **extra_args):
        params = check_params("k_gt", params)
        check_state("k_gt", state, KGTState, params, *models)

        def communicate(both, correction, anchor, model_state, update_state):
            # For the mechanism, a period is one step from the anchor.
            start = params if anchor is None else anchor
            away = difference(params, start)
            moved = add(both, away, like=away)
            way = optax.tree.cast_like(scale(rate, moved), both)
            mean = optax.tree.cast_like(scale(1 / period, moved), both)
            averaged, model_state = average.update(
                way, model_state, start, **extra_args
            )
            tracked, update_state = tracker.update(mean, update_state, **extra_args)
            correction = add(correction, difference(tracked, mean), like=correction)
            found = add(averaged, away, like=both, sign=-1)
            if anchor is not None:
                anchor = optax.apply_updates(params, found)
            return found, correction, anchor, model_state, update_state

        found, correction, anchor, *states = alternate(
            state.step,
            [0] * (period - 1) + [1],
            (lambda *same: same, communicate),
            add(updates, state.correction, like=updates),
            *(state.correction, state.anchor, state.model_state, state.update_state),
        )
        step = optax.safe_increment(state.step)
        return found, KGTState(correction, anchor, step, *states)

    facts = {
        "needs_every_message": True,
        "correction": True,
        "every_step": "k_gt makes local steps by itself, so put it alone behind the "
        "optimizer",
    }
    return wrap("k_gt", mechanism, init, update, facts)
