"""AD-PSGD: asynchronous pairwise averaging, where no worker waits for a slow one."""

import functools
from typing import NamedTuple

import optax

from ._transformation import (
    EventTransformation,
    check_base,
    displacement,
    event_transformation,
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
    return event_transformation(
        "adpsgd",
        base,
        start=lambda params, base_state: ADPSGDState(base_state),
        mix=lambda params, state, elapsed: (params, state),
        step=lambda params, mixed, updates, state: (updates, state),
        average=lambda apart, state, params: (displacement(apart, 0.5, params), state),
    )
