r"""Quasi-global momentum and Adam: optimizers that remember how averaged models move.

A local momentum points where the worker's own data lead. Where the workers' data
differ, these directions differ too, and the models are driven apart. Here the buffers
follow the change of the model from one averaging to the next, in which all workers'
gradients have a part. The worker's own gradient enters only the step that is then
averaged. With learning rate :math:`\gamma`, gradient :math:`g_i` and any mechanism,

.. math::
   x_i' &= \operatorname{average}_i(x_1 - \gamma d_1, \dots, x_n - \gamma d_n), \\
   m_i &\leftarrow \mu m_i + (1 - \mu) (x_i - x_i') / \gamma,

and the direction :math:`d_i` made of :math:`g_i` and :math:`m_i`.

Lin et al., `Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
Heterogeneous Data <https://arxiv.org/abs/2102.04761>`_, 2021.
"""

# This file is longer than 300 lines because it describes two algorithms of one paper,
# which share their code.

from collections.abc import Callable
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
from djax._arrays.checks import check_params, check_real
from djax._arrays.precision import add, promote, scale
from djax._calls import by_its_call
from djax._interfaces import PyTree
from djax._learning_rate import SMALLEST_LEARNING_RATE, check_learning_rate, rate_at
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.levels import check_whole
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation

Form = Literal["nesterov", "heavy_ball", "normalized"]


class QuasiGlobalMomentumState(NamedTuple):
    """State of :func:`quasi_global_momentum`.

    Attributes:
      momentum: :math:`m_i`, a tree like the parameters, in the unit of gradients.
      step: `int32[]`, the number of updates so far.
      mechanism_state: the state of the mechanism.
    """

    momentum: optax.Updates
    step: ArrayLike
    mechanism_state: optax.OptState


class QuasiGlobalAdamState(NamedTuple):
    """State of :func:`quasi_global_adam`.

    Attributes:
      mu: :math:`m_i`, a tree like the parameters: the first moment of the normalized
        changes of the averaged model.
      nu: :math:`v_i`, a tree like the parameters: their second moment.
      step: `int32[]`, the number of updates so far.
      mechanism_state: the state of the mechanism.
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
    r"""SGD with a momentum of the averaged model: optimizer and mechanism in one.

    .. math::
       x_i' &= \operatorname{average}_i(x_1 - \gamma d_1, \dots, x_n - \gamma d_n) \\
       m_i &\leftarrow \mu m_i + (1 - \mu) (x_i - x_i') / \gamma
       \qquad\text{(kept where } \gamma < 10^{-8} \text{)}

    The direction :math:`d_i` depends on `form`:

    * `"nesterov"`: :math:`g_i + \mu (\mu m_i + g_i)`, QG-DSGDm-N, the paper's choice
      for training;
    * `"heavy_ball"`: :math:`\mu m_i + g_i`, QG-DSGDm;
    * `"normalized"`: :math:`(\mu m_i + g_i) / (1 + \mu)`, the form of the RelaySGD
      paper's simulations.

    With `overlap` the parameters are averaged first. The change of the model by this
    averaging updates :math:`m_i`, and then the step :math:`-\gamma d_i` is taken.

    A schedule of the learning rate may return 0. The change of the model is then due to
    the averaging alone, and says nothing about gradients, so that the momentum stays as
    it is. (The authors' code divides by :math:`10^{-8}` in that case.) At other small
    rates the differences between the workers' models do enter the momentum, divided by
    the rate. Therefore start a warm-up either at a rate of 0, or from equal models.

    Args:
      learning_rate: :math:`\gamma`, a number that is not negative, or a schedule of the
        learning rate.
      mechanism: any mechanism without `overlap`.
      momentum: :math:`\mu`, the decay of the momentum.
      form: the form of the direction.
      overlap: average the parameters before this step's gradients.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs `params`, with a
      :class:`QuasiGlobalMomentumState`. It has to be the last link of a chain.

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
    check_decay("quasi_global_momentum: momentum", momentum)
    check_flags("quasi_global_momentum", overlap=overlap)

    def direction(grads, buffers, time):
        del time

        def of_leaf(g, m):
            heavy_ball = momentum * promote(m) + promote(g)
            if form == "nesterov":
                return promote(g) + momentum * heavy_ball
            return heavy_ball / (1 + momentum) if form == "normalized" else heavy_ball

        return jax.tree.map(of_leaf, grads, *buffers)

    def fed(buffers, averaged, rate):
        feed = (1 - momentum) / rate
        new = jax.tree.map(
            lambda m, a: momentum * promote(m) - scale(feed, promote(a)),
            *buffers,
            averaged,
        )
        return (new,)

    return _fed_by_averages(
        "quasi_global_momentum",
        QuasiGlobalMomentumState,
        learning_rate,
        mechanism,
        direction,
        fed,
        overlap=overlap,
    )


@by_its_call
def quasi_global_adam(
    learning_rate: optax.ScalarOrSchedule,
    mechanism: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Mechanism:
    r"""Adam with moments of the averaged model: optimizer and mechanism in one.

    .. math::
       d_i &= \frac{\beta_1 m_i + (1 - \beta_1) g_i}{1 - \beta_1^{t+1}} \Big/ \Bigl(
         \sqrt{\frac{\beta_2 v_i + (1 - \beta_2) g_i^2}{1 - \beta_2^{t+1}}}
         + \epsilon \Bigr) \\
       x_i' &= \operatorname{average}_i(x_1 - \gamma d_1, \dots, x_n - \gamma d_n),
       \qquad \delta_i = \frac{x_i - x_i'}{\|x_i - x_i'\|_2 + 10^{-8}} \\
       m_i &\leftarrow \beta_1 m_i + (1 - \beta_1) \delta_i, \qquad
       v_i \leftarrow \beta_2 v_i + (1 - \beta_2) \delta_i^2
       \qquad\text{(kept where } \gamma < 10^{-8} \text{)}

    The norm is over all parameters of the worker. The authors' code lacks the factor
    :math:`1 - \beta_1` of :math:`g_i`. If a schedule of the learning rate returns 0,
    the moments stay as they are, since the change of the model is then due to the
    averaging alone.

    Args:
      learning_rate: :math:`\gamma`, a number that is not negative, or a schedule of the
        learning rate.
      mechanism: any mechanism without `overlap`.
      b1: :math:`\beta_1`, decay of the first moment.
      b2: :math:`\beta_2`, decay of the second moment.
      eps: :math:`\epsilon`, which keeps the divisor away from 0.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs `params`, with a
      :class:`QuasiGlobalAdamState`. It has to be the last link of a chain.

    Raises:
      TypeError: if a parameter is complex, for which the algorithm is not defined;
        `init` raises it.
      ValueError: if the learning rate is negative or not finite, or the mechanism
        overlaps; in `init` inside of :func:`djax.sharded`, which has to be around the
        mechanism, since a share does not know the norm.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.quasi_global_adam(1e-3, djax.gossip(ring, communicator))

    References:
      Lin et al., `Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
      Heterogeneous Data <https://arxiv.org/abs/2102.04761>`_, 2021, QG-Adam
    """
    check_decay("quasi_global_adam: b1", b1)
    check_decay("quasi_global_adam: b2", b2)
    check_rate("quasi_global_adam: eps", eps, zero=True)

    def moments(buffers, x):
        """The two moments with one more value, in float32 or wider."""
        values = x, jax.tree.map(jnp.square, x)
        return tuple(
            jax.tree.map(lambda m, v, b=b: b * promote(m) + (1 - b) * v, old, new)
            for b, old, new in zip((b1, b2), buffers, values, strict=True)
        )

    def direction(grads, buffers, time):
        def of_leaf(m, v):
            m = m / (1 - b1 ** time.astype(m.dtype))
            v = v / (1 - b2 ** time.astype(v.dtype))
            return m / (jnp.sqrt(v) + eps)

        return jax.tree.map(of_leaf, *moments(buffers, jax.tree.map(promote, grads)))

    def fed(buffers, averaged, rate):
        del rate
        moved = jax.tree.map(lambda a: -promote(a), averaged)
        norm = optax.tree.norm(moved) + 1e-8
        moved = jax.tree.map(lambda d: d / norm.astype(d.dtype), moved)
        return moments(buffers, moved)

    return _fed_by_averages(
        "quasi_global_adam",
        QuasiGlobalAdamState,
        learning_rate,
        mechanism,
        direction,
        fed,
        real=True,
        by_norm=True,
        moves_mean=True,  # Each worker divides its steps by a norm of its own.
    )


def _fed_by_averages(
    name: str,
    kind: Any,
    learning_rate: optax.ScalarOrSchedule,
    mechanism: optax.GradientTransformation,
    direction: Callable[[PyTree, tuple[PyTree, ...], jax.Array], PyTree],
    fed: Callable[[tuple[PyTree, ...], PyTree, jax.Array], tuple[PyTree, ...]],
    *,
    overlap: bool = False,
    real: bool = False,
    by_norm: bool = False,
    moves_mean: bool = False,
) -> Mechanism:
    """Makes an optimizer whose buffers follow the changes of the averaged model.

    Args:
      name: the name of the function that makes the optimizer.
      kind: the class of the optimizer's states. Its first fields are the buffers, which
        are like the parameters; then come `step` and `mechanism_state`.
      learning_rate: a number, or a schedule of the learning rate.
      mechanism: the mechanism that averages.
      direction: `(grads, buffers, time) -> direction`, in float32 or wider; `time` is
        the number of this step, from 1.
      fed: `(buffers, averaged, rate) -> buffers`, the next buffers. `averaged` are the
        updates that the averaging returned, and `rate` is the learning rate, but at
        least `SMALLEST_LEARNING_RATE`.
      overlap: whether the parameters are averaged before this step's gradients.
      real: whether the parameters must be real numbers.
      by_norm: whether the buffers need the norm of all parameters of the model.
      moves_mean: whether the mean of the workers' models may move without gradients.
    """
    mechanism = as_transformation(name, mechanism)
    refuse(name, parts_of(mechanism), "opaque", "overlap", "optimizer")
    check_learning_rate(name, learning_rate)
    fields = kind._fields[:-2]

    def init(params):
        check_params(name, params)
        if real:
            check_real(name, params)
        if by_norm:
            check_whole(name)
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in fields]
        with around(f"{name}({{}})"):
            return kind(*zeros, jnp.zeros((), jnp.int32), mechanism.init(params))

    def update(grads, state, params=None, **extra_args):
        params = check_params(name, params)
        check_state(name, state, kind, params, *fields)
        rate, buffers = rate_at(learning_rate, state.step), tuple(state[:-2])
        time = jnp.asarray(optax.safe_increment(state.step))

        def step_along(buffers):
            found = direction(grads, buffers, time)
            return jax.tree.map(
                lambda g, d: scale(-rate, d).astype(g.dtype), grads, found
            )

        nothing = jax.tree.map(jnp.zeros_like, grads)
        averaged, mechanism_state = mechanism.update(
            nothing if overlap else step_along(buffers),
            state.mechanism_state,
            params,
            **extra_args,
        )
        divisor = jnp.maximum(rate, SMALLEST_LEARNING_RATE)
        new = optax.tree.cast_like(fed(buffers, averaged, divisor), buffers)
        buffers = optax.tree.where(rate < SMALLEST_LEARNING_RATE, buffers, new)
        if overlap:
            averaged = add(averaged, step_along(buffers), like=grads)
        return averaged, kind(*buffers, time, mechanism_state)

    facts = {"optimizer": True, "moves_mean": moves_mean}
    return wrap(name, mechanism, init, update, facts)
