r"""Quasi-global momentum: momentum of how the averaged model moves.

A local momentum points where the worker's own data lead. Here the buffers are fed by
the difference of the model between two averagings, in which all workers' gradients
have a part; the worker's gradient enters only the step that is then averaged. With
learning rate :math:`\gamma`, gradient :math:`g_i` and any mechanism,

.. math::
   x_i' &= \operatorname{average}_i(x_1 - \gamma d_1, \dots, x_n - \gamma d_n), \\
   m_i &\leftarrow \mu m_i + (1 - \mu) (x_i - x_i') / \gamma,

and the direction :math:`d_i` made of :math:`g_i` and :math:`m_i`.

Lin et al., `Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
Heterogeneous Data <https://arxiv.org/abs/2102.04761>`_, 2021.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import (
    check_choice,
    check_decay,
    check_flags,
    check_rate,
)
from djax._arrays.checks import (
    check_params,
    check_real,
)
from djax._arrays.precision import (
    add,
    promote,
)
from djax._calls import by_its_call
from djax._interfaces import PyTree
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import (
    Mechanism,
    parts_of,
)
from djax._transformations import as_transformation

Form = Literal["nesterov", "heavy_ball", "normalized"]

# A movement cannot be divided by a smaller learning rate, such as the zeros at the
# start and the end of a schedule: such a step tells nothing about the gradients.
SMALLEST_LEARNING_RATE = 1e-8


class QuasiGlobalMomentumState(NamedTuple):
    """State of :func:`quasi_global_momentum`.

    Attributes:
      momentum: :math:`m_i`, in the unit of gradients.
      step: `int32[]`, number of updates so far.
      mechanism_state: state of the mechanism.
    """

    momentum: optax.Updates
    step: ArrayLike
    mechanism_state: optax.OptState


class QuasiGlobalAdamState(NamedTuple):
    """State of :func:`quasi_global_adam`.

    Attributes:
      mu: first moment of the normalized movements of the averaged model.
      nu: their second moment.
      step: `int32[]`, number of updates so far.
      mechanism_state: state of the mechanism.
    """

    mu: optax.Updates
    nu: optax.Updates
    step: ArrayLike
    mechanism_state: optax.OptState


@by_its_call
def quasi_global_momentum(
    learning_rate: optax.ScalarOrSchedule,
    mechanism: optax.GradientTransformation,
    *,
    momentum: float = 0.9,
    form: Form = "nesterov",
    overlap: bool = False,
) -> Mechanism:
    r"""SGD with a momentum that the averaging feeds: optimizer and mechanism in one.

    .. math::
       x_i' &= \operatorname{average}_i(x_1 - \gamma d_1, \dots, x_n - \gamma d_n) \\
       m_i &\leftarrow \mu m_i + (1 - \mu) (x_i - x_i') / \gamma
       \qquad\text{(kept where } \gamma < 10^{-8} \text{)}

    where the direction :math:`d_i` is, by `form`,

    * `"nesterov"`: :math:`g_i + \mu (\mu m_i + g_i)`, QG-DSGDm-N, what is trained with;
    * `"heavy_ball"`: :math:`\mu m_i + g_i`, QG-DSGDm;
    * `"normalized"`: :math:`(\mu m_i + g_i) / (1 + \mu)`, the form of the RelaySGD
      paper's simulations.

    With `overlap` the parameters are averaged first, :math:`m_i` is fed by that, and
    then the step :math:`-\gamma d_i` is taken.

    A schedule may pass 0. What the averaging alone moves says nothing about gradients,
    so that such a step leaves the momentum as it is; the authors' code divides by
    :math:`10^{-8}` there. At other small rates the differences between the workers'
    models do enter the momentum, divided by the rate: start a warm-up from 0 or from
    equal models.

    Args:
      learning_rate: :math:`\gamma`, a number that is not negative, or a schedule.
      mechanism: any mechanism without `overlap`.
      momentum: :math:`\mu`.
      form: how the direction is made.
      overlap: average the parameters before this step's gradients.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs
      `params`, with a :class:`QuasiGlobalMomentumState`. It is the last of a chain.

    Raises:
      ValueError: if `form` is unknown, the learning rate is negative or not finite, or
        the mechanism overlaps.

    Examples:
      >>> import djax, optax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> gossip = djax.gossip(ring, communicator)
      >>> optimizer = optax.chain(
      ...     optax.add_decayed_weights(1e-4), djax.quasi_global_momentum(0.1, gossip)
      ... )

    References:
      Lin et al., `Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
      Heterogeneous Data <https://arxiv.org/abs/2102.04761>`_, 2021, Algorithm 1
    """
    check_choice("quasi_global_momentum: form", form, Form)
    mechanism = _checked("quasi_global_momentum", mechanism)
    _check_learning_rate("quasi_global_momentum", learning_rate)
    check_decay("quasi_global_momentum: momentum", momentum)
    check_flags("quasi_global_momentum", overlap=overlap)

    def init(params):
        check_params("quasi_global_momentum", params)
        return QuasiGlobalMomentumState(
            jax.tree.map(jnp.zeros_like, params),
            jnp.zeros((), jnp.int32),
            _init(mechanism, params, "quasi_global_momentum"),
        )

    def direction(g, m):
        g, m = promote(g), promote(m)
        heavy_ball = momentum * m + g
        if form == "nesterov":
            return g + momentum * heavy_ball
        return heavy_ball / (1 + momentum) if form == "normalized" else heavy_ball

    def update(updates, state, params=None, **extra_args):
        params = check_params("quasi_global_momentum", params)
        check_state(
            "quasi_global_momentum", state, QuasiGlobalMomentumState, params, "momentum"
        )
        grads, rate = updates, _value(learning_rate, state.step)

        def step_along(m):
            return jax.tree.map(
                lambda g, m: _scale(-rate, direction(g, m)).astype(g.dtype), grads, m
            )

        if overlap:
            step = jax.tree.map(jnp.zeros_like, grads)
        else:
            step = step_along(state.momentum)
        averaged, mechanism_state = mechanism.update(
            step, state.mechanism_state, params, **extra_args
        )
        feed = (1 - momentum) / jnp.maximum(rate, SMALLEST_LEARNING_RATE)

        def fed(m, a):
            new = (momentum * promote(m) - _scale(feed, promote(a))).astype(m.dtype)
            return jnp.where(rate < SMALLEST_LEARNING_RATE, m, new)

        new_momentum = jax.tree.map(fed, state.momentum, averaged)
        if overlap:
            averaged = add(averaged, step_along(new_momentum), like=grads)
        return averaged, QuasiGlobalMomentumState(
            new_momentum, optax.safe_increment(state.step), mechanism_state
        )

    return wrap("quasi_global_momentum", mechanism, init, update, {"optimizer": True})


@by_its_call
def quasi_global_adam(
    learning_rate: optax.ScalarOrSchedule,
    mechanism: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Mechanism:
    r"""Adam with moments that the averaging feeds: optimizer and mechanism in one.

    .. math::
       d_i &= \frac{\beta_1 m_i + (1 - \beta_1) g_i}{1 - \beta_1^{t+1}} \Big/ \Bigl(
         \sqrt{\frac{\beta_2 v_i + (1 - \beta_2) g_i^2}{1 - \beta_2^{t+1}}}
         + \epsilon \Bigr) \\
       x_i' &= \operatorname{average}_i(x_1 - \gamma d_1, \dots, x_n - \gamma d_n),
       \qquad \delta_i = \frac{x_i - x_i'}{\|x_i - x_i'\|_2 + 10^{-8}} \\
       m_i &\leftarrow \beta_1 m_i + (1 - \beta_1) \delta_i, \qquad
       v_i \leftarrow \beta_2 v_i + (1 - \beta_2) \delta_i^2
       \qquad\text{(kept where } \gamma < 10^{-8} \text{)}

    The norm is over all parameters of the worker. The authors' code does without the
    factor :math:`1 - \beta_1` of :math:`g_i`. Where a schedule passes 0 the moments
    stay as they are, since what the averaging alone moves says nothing about gradients.

    Args:
      learning_rate: :math:`\gamma`, a number that is not negative, or a schedule.
      mechanism: any mechanism without `overlap`.
      b1: :math:`\beta_1`, decay of the first moment.
      b2: :math:`\beta_2`, decay of the second moment.
      eps: :math:`\epsilon`.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs
      `params`, with a :class:`QuasiGlobalAdamState`. It is the last of a chain.

    Raises:
      TypeError: in `init`, if a parameter is complex: nobody has defined the algorithm
        for complex numbers.
      ValueError: if the learning rate is negative or not finite, or the mechanism
        overlaps.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.quasi_global_adam(1e-3, djax.gossip(ring, communicator))

    References:
      Lin et al., `Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
      Heterogeneous Data <https://arxiv.org/abs/2102.04761>`_, 2021, QG-Adam
    """
    mechanism = _checked("quasi_global_adam", mechanism)
    _check_learning_rate("quasi_global_adam", learning_rate)
    check_decay("quasi_global_adam: b1", b1)
    check_decay("quasi_global_adam: b2", b2)
    check_rate("quasi_global_adam: eps", eps, zero=True)

    def init(params):
        check_real("quasi_global_adam", check_params("quasi_global_adam", params))
        return QuasiGlobalAdamState(
            optax.tree.zeros_like(params),
            optax.tree.zeros_like(params),
            jnp.zeros((), jnp.int32),
            _init(mechanism, params, "quasi_global_adam"),
        )

    def feed(old, decay, new):
        """The moments with one more value, in float32 or wider."""
        return jax.tree.map(lambda m, x: decay * promote(m) + (1 - decay) * x, old, new)

    def update(updates, state, params=None, **extra_args):
        params = check_params("quasi_global_adam", params)
        check_state(
            "quasi_global_adam", state, QuasiGlobalAdamState, params, "mu", "nu"
        )
        grads, rate = updates, _value(learning_rate, state.step)
        time = jnp.asarray(optax.safe_increment(state.step))
        promoted = jax.tree.map(promote, grads)
        mu = feed(state.mu, b1, promoted)
        nu = feed(state.nu, b2, _square(promoted))

        def step_along(g, m, v):
            m = m / (1 - b1 ** time.astype(m.dtype))
            v = v / (1 - b2 ** time.astype(v.dtype))
            return _scale(-rate, m / (jnp.sqrt(v) + eps)).astype(g.dtype)

        step = jax.tree.map(step_along, grads, mu, nu)
        averaged, mechanism_state = mechanism.update(
            step, state.mechanism_state, params, **extra_args
        )
        moved = jax.tree.map(lambda a: -promote(a), averaged)
        norm = optax.tree.norm(moved) + 1e-8
        moved = jax.tree.map(lambda d: d / norm.astype(d.dtype), moved)
        new = feed(state.mu, b1, moved), feed(state.nu, b2, _square(moved))
        old = state.mu, state.nu
        mu, nu = optax.tree.where(
            rate < SMALLEST_LEARNING_RATE, old, optax.tree.cast_like(new, old)
        )
        return averaged, QuasiGlobalAdamState(mu, nu, time, mechanism_state)

    facts = {"optimizer": True, "moves_mean": True}  # Its steps have a length of 1.
    return wrap("quasi_global_adam", mechanism, init, update, facts)


def _checked(name: str, mechanism: Any) -> optax.GradientTransformationExtraArgs:
    transformation = as_transformation(name, mechanism)
    refuse(name, parts_of(transformation), "opaque", "overlap", "optimizer")
    return transformation


def _init(mechanism, params: PyTree, name: str) -> optax.OptState:
    with around(f"{name}({{}})"):
        return mechanism.init(params)


def _square(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.square, tree)


def _check_learning_rate(name: str, learning_rate: optax.ScalarOrSchedule) -> None:
    if not callable(learning_rate):
        check_rate(f"{name}: learning_rate", learning_rate, zero=True)


def _scale(factor: ArrayLike, x: jax.Array) -> jax.Array:
    return jnp.asarray(factor, x.dtype) * x


def _value(learning_rate: optax.ScalarOrSchedule, step: ArrayLike) -> jax.Array:
    """The learning rate of a step, in float32 or wider."""
    rate = learning_rate(step) if callable(learning_rate) else learning_rate
    check_rate("the learning rate", rate, zero=True)
    rate = jnp.asarray(rate)
    # Half precision rounds the smallest rates to zero.
    return promote(rate) if jnp.issubdtype(rate.dtype, jnp.floating) else rate
