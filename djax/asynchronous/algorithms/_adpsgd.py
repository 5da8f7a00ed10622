"""AD-PSGD: asynchronous pairwise averaging, where no worker waits for a slow one."""

import functools
from typing import NamedTuple

import optax

from ._transformation import (
    EventTransformation,
    check_base,
    check_elapsed,
    check_model,
    difference,
    displacement,
    init_alone,
    known_elapsed,
)


class ADPSGDState(NamedTuple):
    """State of :func:`adpsgd`.

    Attributes:
      base_state: state of the base optimizer.
    """

    base_state: optax.OptState


def adpsgd(base: optax.GradientTransformation) -> EventTransformation:
    r"""AD-PSGD: asynchronous pairwise averaging, around any optimizer.

    .. math::
       \text{update:} \quad x_i \leftarrow x_i + u_i, \qquad
       \text{average:} \quad x_i \leftarrow x_i - \tfrac12 (x_i - x_j)

    This is the baseline of A²CiD²: it is :func:`acid` with :math:`\eta = 0` and without
    the second copy of the model. An averaging does not change the mean over the
    workers.

    Args:
      base: the optimizer of a worker.

    Returns:
      An :class:`djax.asynchronous.EventTransformation` with an :class:`ADPSGDState`.

    Raises:
      TypeError: if `base` is no optimizer.

    Examples:
      >>> import djax, jax.numpy as jnp, optax
      >>> adpsgd = djax.adpsgd(optax.sgd(0.1))
      >>> params, peer = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 2.0])
      >>> updates, state = adpsgd.average(peer, adpsgd.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [2. 2.]

    References:
      Lian et al., `Asynchronous Decentralized Parallel Stochastic Gradient Descent
      <https://arxiv.org/abs/1710.06952>`_, 2018, Algorithm 1
    """
    check_base("adpsgd", base)
    return _make_adpsgd(base)


@functools.lru_cache(maxsize=8)
def _make_adpsgd(base: optax.GradientTransformation) -> EventTransformation:
    """Makes the algorithm; the same optimizer gives the same object."""
    base = optax.with_extra_args_support(base)

    def init_fn(params):
        check_model("adpsgd", params)
        return ADPSGDState(init_alone("adpsgd", base, params))

    def mix_fn(params, state, elapsed):
        check_elapsed(elapsed)
        return params, state

    def update_fn(grads, state, params=None, *, elapsed=None, **extra_args):
        elapsed = known_elapsed("adpsgd", elapsed)
        params, state = mix_fn(check_model("adpsgd", params), state, elapsed)
        step, base_state = base.update(grads, state.base_state, params, **extra_args)
        return step, ADPSGDState(base_state)

    def average_fn(peer, state, params, *, sent=None):
        apart = difference(params if sent is None else sent, peer)
        return displacement(apart, 0.5, params), state

    return EventTransformation(init_fn, mix_fn, update_fn, average_fn)
