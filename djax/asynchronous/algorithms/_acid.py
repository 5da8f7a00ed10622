r"""A²CiD²: pairwise averaging at random times, accelerated by a continuous momentum.

Pairwise averaging spreads information slowly over large sparse graphs. A momentum
accelerates it: every worker has a second copy of its model, :math:`\tilde x_i`. Between
events the two copies flow towards each other. A gradient changes both copies by the
same vector. An averaging with a neighbour changes them by different steps:

.. math::
   dx_i &= \eta (\tilde x_i - x_i)\, dt - \gamma g_i\, dN_i
           - \alpha \textstyle\sum_j (x_i - x_j)\, dM_{ij} \\
   d\tilde x_i &= \eta (x_i - \tilde x_i)\, dt - \gamma g_i\, dN_i
           - \tilde\alpha \textstyle\sum_j (x_i - x_j)\, dM_{ij}

where :math:`N_i` counts the worker's gradients and :math:`M_{ij}` the averagings of a
pair of neighbours. The update of any optimizer may take the place of
:math:`-\gamma g_i`. Mixing, the flow during a time :math:`\Delta` without events, has
the closed form

.. math::
   h = \tfrac12 (1 - e^{-2 \eta \Delta}), \qquad
   x \leftarrow x + h (\tilde x - x), \qquad
   \tilde x \leftarrow \tilde x - h (\tilde x - x).

Hence mixing does not change :math:`x_i + \tilde x_i`, and neither mixing nor averaging
changes :math:`\sum_i x_i + \tilde x_i`. Whenever all workers are mixed up to the same
time, :math:`\sum_i x_i = \sum_i \tilde x_i`. Between such times mixing changes
:math:`\sum_i x_i` alone.

Nabli, Belilovsky and Oyallon, `A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning <https://arxiv.org/abs/2306.08289>`_, 2023. The authors'
code exchanges models before it mixes them, which lets the mean drift and loses most of
the acceleration. Here both workers of a pair mix first, as in the paper.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._arguments import check_rate
from djax._arrays.precision import add, promote
from djax._interfaces import PyTree

from ._constants import AcidConstants, Asked
from ._transformation import (
    EventTransformation,
    check_base,
    displacement,
    event_transformation,
)


class AcidState(NamedTuple):
    r"""State of :func:`acid`.

    Attributes:
      momentum: :math:`\tilde x_i`, the copy that mixes with the parameters.
      base_state: state of the base optimizer.
    """

    momentum: PyTree
    base_state: optax.OptState


def acid(
    base: optax.GradientTransformation, constants: AcidConstants
) -> EventTransformation:
    r"""A²CiD²: pairwise averaging accelerated by a momentum, around any optimizer.

    With :math:`h = \frac12 (1 - e^{-2 \eta \Delta})`, the optimizer's update
    :math:`u_i` and the models :math:`x_i, x_j` that an averaging exchanged:

    .. math::
       \text{mix:} \quad & x_i \leftarrow x_i + h (\tilde x_i - x_i),
           \quad & \tilde x_i &\leftarrow \tilde x_i - h (\tilde x_i - x_i) \\
       \text{update:} \quad & \text{mix, then } x_i \leftarrow x_i + u_i,
           \quad & \tilde x_i &\leftarrow \tilde x_i + u_i \\
       \text{average:} \quad & x_i \leftarrow x_i - \alpha (x_i - x_j),
           \quad & \tilde x_i &\leftarrow \tilde x_i - \tilde\alpha (x_i - x_j)

    An averaging computes the difference of the two models that were exchanged, and adds
    displacements to the two copies that the worker has by then. So a gradient that is
    applied while messages travel is not lost, and the displacements of the two workers
    add up to zero. Only :math:`x_i` is sent. The unit of time is the time in which a
    worker computes one gradient.

    Args:
      base: the optimizer of a worker. It receives the parameters after mixing.
      constants: the constants of the graph, from :func:`djax.acid_constants`. With
        `eta=0` the algorithm is :func:`adpsgd`; the second copy then has no effect.

    Returns:
      An :class:`djax.asynchronous.EventTransformation` with an :class:`AcidState`.
      Parameters and :math:`\tilde x` keep their dtypes; sums are computed in at least
      float32 and then rounded. In 16-bit dtypes this rounding removes a flow of less
      than half a unit in the last place.

    Raises:
      TypeError: if `base` is no optimizer, or `constants` is no :class:`AcidConstants`.
      ValueError: if a constant is negative or not finite, or is an array of several
        numbers.

    Examples:
      >>> import djax, jax.numpy as jnp, optax
      >>> constants = djax.acid_constants(djax.topologies.ring(16))
      >>> acid = djax.acid(optax.sgd(0.1, momentum=0.9), constants)
      >>> params, peer = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 2.0])
      >>> state = acid.init(params)
      >>> params, state = acid.mix(params, state, elapsed=0.3)
      >>> updates, state = acid.average(peer, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(params, state.momentum.round(2))
      [2. 2.] [4.74 2.  ]
      >>> updates, state = acid.update(jnp.ones(2), state, params, elapsed=0.5)

    References:
      Nabli et al., `A²CiD²: Accelerating Asynchronous Communication in Decentralized
      Deep Learning <https://arxiv.org/abs/2306.08289>`_, 2023, Equation 4
    """
    check_base("acid", base)
    _check_constants(constants)
    values = constants.eta, constants.alpha, constants.alpha_tilde
    asked = getattr(constants, "asked", None)  # Constants may be made by hand.
    if any(isinstance(value, jax.core.Tracer) for value in values):
        return _make_acid.__wrapped__(base, *values, asked)
    return _make_acid(base, *map(float, values), asked)


@functools.lru_cache(maxsize=8)
def _make_acid(
    base: optax.GradientTransformation,
    eta: Any,
    alpha: Any,
    alpha_tilde: Any,
    asked: Asked | None,
) -> EventTransformation:
    """Makes the algorithm; equal arguments give the same object.

    Compiled programs are cached for each algorithm object. Algorithms that have equal
    constants and the same optimizer are one object, so that they share their programs.
    """

    def start(params, base_state):
        return AcidState(jax.tree.map(jnp.copy, params), base_state)

    def mix(params, state, elapsed):
        share = -jnp.expm1(-2 * eta * elapsed) / 2
        flow = jax.tree.map(
            lambda x, m: share.astype(promote(x).dtype) * (promote(m) - promote(x)),
            params,
            state.momentum,
        )
        params = add(params, flow, params)
        momentum = add(state.momentum, flow, state.momentum, sign=-1)
        return params, state._replace(momentum=momentum)

    def step(params, mixed, updates, state):
        momentum = optax.apply_updates(state.momentum, updates)
        moved = jax.tree.map(
            lambda x, u, y: promote(x) + promote(u) - promote(y), mixed, updates, params
        )
        return optax.tree.cast_like(moved, params), state._replace(momentum=momentum)

    def average(apart, state, params):
        momentum = jax.tree.map(
            lambda m, d: (promote(m) - alpha_tilde * d).astype(m.dtype),
            state.momentum,
            apart,
        )
        return displacement(apart, alpha, params), state._replace(momentum=momentum)

    return event_transformation(
        "acid", base, start=start, mix=mix, step=step, average=average, asked=asked
    )


def _check_constants(constants: Any) -> None:
    if not isinstance(constants, AcidConstants):
        raise TypeError(
            "acid needs the constants of a graph, djax.acid_constants(topology), got "
            f"{constants!r}."
        )
    for name in ("eta", "alpha", "alpha_tilde"):
        check_rate(f"acid: {name}", getattr(constants, name), zero=True)
