"""Local steps: workers that average in every k-th step only, to send less."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._arguments import check_static
from djax._calls import by_its_call
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.order import observing, report_call
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation
from djax._values import check_integer
from djax.mixing import alternate


class EveryState(NamedTuple):
    """State of :func:`every`.

    Attributes:
      step: `int32[]`, the number of updates so far.
      mechanism_state: the state of the wrapped mechanism.
    """

    step: ArrayLike
    mechanism_state: optax.OptState


@by_its_call
def every(k: int, mechanism: optax.GradientTransformation) -> Mechanism:
    r"""Lets a mechanism communicate in every k-th step only.

    The steps :math:`k, 2k, 3k, \dots` (counted from one) are averaging steps, in which
    `mechanism` is applied. All others are local steps, in which the updates stay as
    they are. Wrap the mechanism alone, without the optimizer, which has to act in every
    step. `every(1, mechanism)` is `mechanism`. With :func:`djax.all_reduce` it is local
    SGD.

    Args:
      k: the period, in steps.
      mechanism: any mechanism.

    Returns:
      A :class:`djax.Mechanism` with an :class:`EveryState`.

    Raises:
      ValueError: if `k` is not a positive integer; or if the mechanism is
        :func:`djax.d2` or :func:`djax.gradient_tracking`, which have to be around
        `every` instead; or if it is an optimizer such as
        :func:`djax.quasi_global_momentum`.

    Examples:
      >>> import djax, optax
      >>> communicator = djax.communicators.simulated(4)
      >>> averaging = djax.every(8, djax.all_reduce(communicator))
      >>> local_sgd = optax.chain(optax.sgd(0.1), averaging)

    References:
      Stich, `Local SGD Converges Fast and Communicates Little
      <https://arxiv.org/abs/1805.09767>`_, 2019
    """
    check_static("every", k=k)
    k = check_integer(k, "every: k")
    mechanism = as_transformation("every", mechanism)

    if k > 1:
        refuse("every", parts_of(mechanism), "optimizer", "every_step")

    def init(params):
        with around(f"every({k}, {{}})"):
            mechanism_state = mechanism.init(params)
        return EveryState(jnp.zeros((), jnp.int32), mechanism_state)

    def update(updates, state, params=None, **extra_args):
        check_state("every", state, EveryState, params)

        def communicate(updates, mechanism_state):
            with observing() as observer:
                found = mechanism.update(updates, mechanism_state, params, **extra_args)
                observer.compare_given(updates)
            model = observer.model_after(found[0], params)
            report_call(updates, found[0], params, model)
            return found

        updates, mechanism_state = alternate(
            state.step,
            [0] * (k - 1) + [1],
            (lambda *same: same, communicate),
            updates,
            state.mechanism_state,
        )
        return updates, EveryState(optax.safe_increment(state.step), mechanism_state)

    parts = [
        part._replace(matrices=_every_kth(k, part.matrices))
        for part in parts_of(mechanism)
    ]
    return wrap("every", mechanism, init, update, parts=parts)


def _every_kth(k: int, matrices: Callable[[], np.ndarray] | None) -> Any:
    """Makes the matrices of all steps, with the identity in local steps.

    Returns:
      A function that returns the matrices; None if the mechanism's are not known.
    """
    if matrices is None:
        return None

    def stretched():
        period = matrices()
        local = np.eye(period.shape[1])
        return np.array([m for each in period for m in [*[local] * (k - 1), each]])

    return stretched
