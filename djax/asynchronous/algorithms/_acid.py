r"""A²CiD²: pairwise averaging at random times, accelerated by a continuous momentum.

Every worker has a second copy of its model, :math:`\tilde x_i`. Between events the two
flow towards each other; a gradient moves both alike; an averaging with a neighbour
moves them differently:

.. math::
   dx_i &= \eta (\tilde x_i - x_i)\, dt - \gamma g_i\, dN_i
           - \alpha \textstyle\sum_j (x_i - x_j)\, dM_{ij} \\
   d\tilde x_i &= \eta (x_i - \tilde x_i)\, dt - \gamma g_i\, dN_i
           - \tilde\alpha \textstyle\sum_j (x_i - x_j)\, dM_{ij}

where :math:`N_i` counts the worker's gradients and :math:`M_{ij}` the averagings of a
pair of neighbours. Instead of :math:`-\gamma g_i` any optimizer's update may stand.
For a time :math:`\Delta` without events the flow has the closed form

.. math::
   h = \tfrac12 (1 - e^{-2 \eta \Delta}), \qquad
   x \leftarrow x + h (\tilde x - x), \qquad
   \tilde x \leftarrow \tilde x - h (\tilde x - x).

Hence :math:`x_i + \tilde x_i` is kept by mixing, :math:`\sum_i x_i + \tilde x_i` by
mixing and averaging, and :math:`\sum_i x_i = \sum_i \tilde x_i` whenever all workers
are mixed up to the same time; :math:`\sum_i x_i` alone is not kept before that.

Nabli, Belilovsky and Oyallon, `A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning <https://arxiv.org/abs/2306.08289>`_, 2023. Their code
exchanges models before it mixes them, which lets the mean drift and loses most of the
acceleration; here as in the paper both ends mix first.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._arguments import check_rate
from djax._arrays.checks import check_params
from djax._arrays.precision import add, promote
from djax._interfaces import PyTree
from djax._mechanism.refusals import refuse
from djax._mechanism.value import collecting
from djax._transformations import check_not_in_lockstep

from ._constants import AcidConstants, Asked, asked_of


class EventTransformation(NamedTuple):
    """An asynchronous algorithm: what ONE worker does at each kind of event.

    Pure functions, to be jitted and composed; see :func:`djax.acid`.

    Attributes:
      init: `params -> state`.
      mix: `(params, state, elapsed) -> (params, state)`: the time since the worker's
        previous event passes.
      update: `(grads, state, params, *, elapsed=0, **extra_args) -> (updates, state)`,
        for `optax.apply_updates`: a gradient, after a time in which nothing happened.
        `grads` may have been taken at an earlier model.
      average: `(peer, state, params, *, sent=None) -> (updates, state)`, likewise: an
        averaging with a neighbour that sent its model `peer` and received `sent`, by
        default `params`. Both have to be mixed up to the time when they were sent.
      asked: the rates of averagings that the algorithm is made for, if it is for any.
    """

    init: Callable[[PyTree], PyTree]
    mix: Callable[..., tuple[PyTree, PyTree]]
    update: Callable[..., tuple[PyTree, PyTree]]
    average: Callable[..., tuple[PyTree, PyTree]]
    asked: Asked | None = None


class AcidState(NamedTuple):
    r"""State of :func:`acid`.

    Attributes:
      momentum: :math:`\tilde x_i`, the copy that mixes with the parameters.
      base_state: state of the base optimizer.
    """

    momentum: PyTree
    base_state: optax.OptState


class ADPSGDState(NamedTuple):
    """State of :func:`adpsgd`.

    Attributes:
      base_state: state of the base optimizer.
    """

    base_state: optax.OptState


def acid(
    base: optax.GradientTransformation, constants: AcidConstants
) -> EventTransformation:
    r"""A²CiD², around any optimizer.

    With :math:`h = \frac12 (1 - e^{-2 \eta \Delta})`, the optimizer's update
    :math:`u_i` and the models :math:`x_i, x_j` that an averaging exchanged:

    .. math::
       \text{mix:} \quad & x_i \leftarrow x_i + h (\tilde x_i - x_i),
           & \tilde x_i &\leftarrow \tilde x_i - h (\tilde x_i - x_i) \\
       \text{update:} \quad & \text{mix, then } x_i \leftarrow x_i + u_i,
           & \tilde x_i &\leftarrow \tilde x_i + u_i \\
       \text{average:} \quad & x_i \leftarrow x_i - \alpha (x_i - x_j),
           & \tilde x_i &\leftarrow \tilde x_i - \tilde\alpha (x_i - x_j)

    The difference that an averaging applies is of the models as they were exchanged,
    while the model it is applied to may have moved on: a gradient that lands while
    messages travel is kept, and what one end gains the other loses. Only :math:`x_i`
    travels. Time is in units in which a worker computes one gradient.

    Args:
      base: what a worker does with its gradients; it sees the mixed parameters.
      constants: of the graph, from :func:`djax.acid_constants`. With
        `eta=0` it is :func:`adpsgd`, with a copy that is of no use.

    Returns:
      An :class:`djax.asynchronous.EventTransformation` with an :class:`AcidState`.
      Parameters keep their dtypes, and so does :math:`\tilde x`; sums are in float32 or
      wider and rounded to them. In 16 bits a flow of less than half a unit in the last
      place is lost.

    Raises:
      TypeError: if `base` is no optimizer or `constants` are none.
      ValueError: if a constant is negative, not finite, or an array of several.

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
    _check_base("acid", base)
    _check_constants(constants)
    values = constants.eta, constants.alpha, constants.alpha_tilde
    asked = asked_of(constants)
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
    """What :func:`acid` returns; the same for the same arguments.

    Compiled programs are found by the algorithm that they are of. Algorithms of equal
    constants around the same optimizer are one object, so that they share them.
    """
    base = optax.with_extra_args_support(base)

    def init_fn(params):
        _check_params("acid", params)
        base_state = _init_alone("acid", base, params)
        return AcidState(jax.tree.map(jnp.copy, params), base_state)

    def mix_fn(params, state, elapsed):
        _check_elapsed(elapsed)
        share = -jnp.expm1(-2 * eta * elapsed) / 2
        flow = jax.tree.map(
            lambda x, m: share.astype(promote(x).dtype) * (promote(m) - promote(x)),
            params,
            state.momentum,
        )
        params = add(params, flow, params)
        momentum = add(state.momentum, flow, state.momentum, sign=-1)
        return params, state._replace(momentum=momentum)

    def update_fn(grads, state, params=None, *, elapsed=None, **extra_args):
        elapsed = _known_elapsed("acid", elapsed)
        params = _check_params("acid", params)
        mixed, state = mix_fn(params, state, elapsed)
        step, base_state = base.update(grads, state.base_state, mixed, **extra_args)
        momentum = optax.apply_updates(state.momentum, step)
        moved = jax.tree.map(
            lambda x, u, y: promote(x) + promote(u) - promote(y), mixed, step, params
        )
        return optax.tree.cast_like(moved, params), AcidState(momentum, base_state)

    def average_fn(peer, state, params, *, sent=None):
        gap = _gap(params if sent is None else sent, peer)
        momentum = jax.tree.map(
            lambda m, g: (promote(m) - alpha_tilde * g).astype(m.dtype),
            state.momentum,
            gap,
        )
        return _pull(gap, alpha, params), state._replace(momentum=momentum)

    return EventTransformation(init_fn, mix_fn, update_fn, average_fn, asked)


def adpsgd(base: optax.GradientTransformation) -> EventTransformation:
    r"""AD-PSGD: asynchronous pairwise averaging, around any optimizer.

    .. math::
       \text{update:} \quad x_i \leftarrow x_i + u_i, \qquad
       \text{average:} \quad x_i \leftarrow x_i - \tfrac12 (x_i - x_j)

    It is :func:`acid` with :math:`\eta = 0` and without the second copy of the model,
    the baseline of that paper. The mean over the workers is kept by every averaging.

    Args:
      base: what a worker does with its gradients.

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
    _check_base("adpsgd", base)
    return _make_adpsgd(base)


@functools.lru_cache(maxsize=8)
def _make_adpsgd(base: optax.GradientTransformation) -> EventTransformation:
    """What :func:`adpsgd` returns; the same for the same optimizer."""
    base = optax.with_extra_args_support(base)

    def init_fn(params):
        _check_params("adpsgd", params)
        return ADPSGDState(_init_alone("adpsgd", base, params))

    def mix_fn(params, state, elapsed):
        _check_elapsed(elapsed)
        return params, state

    def update_fn(grads, state, params=None, *, elapsed=None, **extra_args):
        elapsed = _known_elapsed("adpsgd", elapsed)
        params, state = mix_fn(_check_params("adpsgd", params), state, elapsed)
        step, base_state = base.update(grads, state.base_state, params, **extra_args)
        return step, ADPSGDState(base_state)

    def average_fn(peer, state, params, *, sent=None):
        gap = _gap(params if sent is None else sent, peer)
        return _pull(gap, 0.5, params), state

    return EventTransformation(init_fn, mix_fn, update_fn, average_fn)


def other_rates(algorithm: EventTransformation, asked: Asked | None) -> str | None:
    """Says that an algorithm is not for these rates, if both are known and differ."""
    if algorithm.asked is None or asked is None or algorithm.asked == asked:
        return None
    return (
        f"the constants of acid were made for {algorithm.asked}, and the workers "
        f"average on {asked}: give acid_constants the same topology and rate. With "
        "constants for more averagings than there are training may diverge; with "
        "constants for fewer consensus is slower than it could be."
    )


def _gap(sent: PyTree, peer: PyTree) -> PyTree:
    """What the two ends of an averaging see alike, but for the sign."""
    for ours, theirs in zip(jax.tree.leaves(sent), jax.tree.leaves(peer), strict=True):
        if jnp.shape(ours) != jnp.shape(theirs):
            raise ValueError(
                f"average: the peer sent an array of shape {jnp.shape(theirs)}, and "
                f"received one of shape {jnp.shape(ours)}."
            )
    return jax.tree.map(lambda x, y: promote(x) - promote(y), sent, peer)


def _pull(gap: PyTree, alpha: Any, params: PyTree) -> PyTree:
    return optax.tree.cast_like(optax.tree.scale(-alpha, gap), params)


def _known_elapsed(name: str, elapsed: Any) -> Any:
    """Returns the time that has passed, by default none; refuses synchronous steps.

    In those no time is given: whoever calls the update takes it for an optimizer's.
    """
    if elapsed is not None:
        return elapsed
    check_not_in_lockstep(name)
    return 0.0


def _init_alone(name: str, base: Any, params: PyTree) -> optax.OptState:
    """The optimizer's state; raises ValueError if the optimizer averages by itself."""
    with collecting() as parts:
        state = base.init(params)
    refuse(name, parts, "mechanism")
    return state


def _check_params(name: str, params: PyTree) -> PyTree:
    """Checks parameters; the remedy is one for models that travel whole."""
    remedy = "keep it in the model_state, which gradient_fn carries along unaveraged"
    return check_params(name, params, remedy)


def _check_elapsed(elapsed: Any) -> None:
    if not isinstance(elapsed, jax.Array) and not 0 <= elapsed < float("inf"):
        raise ValueError(
            f"elapsed is the time since the worker's previous event; got {elapsed}."
        )


def _check_base(name: str, base: Any) -> None:
    if not isinstance(base, optax.GradientTransformation):
        raise TypeError(
            f"{name} needs an optimizer, such as optax.sgd(0.1), got {base!r}."
        )


def _check_constants(constants: Any) -> None:
    if not isinstance(constants, AcidConstants):
        raise TypeError(
            "acid needs the constants of a graph, djax.acid_constants(topology), got "
            f"{constants!r}."
        )
    for name in ("eta", "alpha", "alpha_tilde"):
        check_rate(f"acid: {name}", getattr(constants, name), zero=True)
