"""SlowMo: local steps of any base optimizer, and slow steps with a momentum."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from optax.schedules import InjectHyperparamsState, InjectStatefulHyperparamsState

from djax._arguments import check_choice, check_decay, check_rate, check_static
from djax._arrays.checks import check_params
from djax._learning_rate import SMALLEST_LEARNING_RATE, check_learning_rate
from djax._mechanism.value import Mechanism, collecting
from djax._transformations import as_transformation
from djax._values import check_integer
from djax.corrections import AnchorDtype, Memory, every, outer
from djax.mechanisms import all_reduce
from djax.mixing import alternate
from djax.optimizers import decentralized

from ._outer import Averaging, behind, mechanism_of

BaseState = Literal["keep", "reset", "average"]

_INJECTED = InjectHyperparamsState, InjectStatefulHyperparamsState


def slowmo(
    optimizer: optax.GradientTransformation,
    averaging: Averaging | None,
    *,
    period: int = 12,
    outer_learning_rate: float = 1.0,
    outer_momentum: float = 0.7,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    base_state: BaseState = "keep",
    anchor_dtype: AnchorDtype = None,
    anchor_memory: Memory = "device",
) -> optax.GradientTransformationExtraArgs:
    r"""SlowMo: local steps, then a slow momentum step.

    .. math::
       u_i &\leftarrow \beta u_i + (\varphi_i - \bar x_i) / \gamma_t, \\
       \varphi_i &\leftarrow \varphi_i - \alpha \gamma_t u_i, \qquad
       x_i \leftarrow \varphi_i

    The buffers :math:`u_i` are in the unit of gradients, so that a change of the
    learning rate :math:`\gamma_t` scales them.

    The optimizer in front may communicate itself. With
    `optax.chain(optax.sgd(0.1), djax.push_sum(schedule, workers))` it is the paper's
    SGP with SlowMo.

    Args:
      optimizer: the base optimizer, which makes the local steps.
      averaging: a communicator or a mechanism, as for :func:`djax.diloco`; or None, if
        every worker makes its slow step from its own model, since the base optimizer
        averages already ("no average" in the paper).
      period: the number :math:`\tau` of steps between two slow steps.
      outer_learning_rate: :math:`\alpha`, the slow learning rate.
      outer_momentum: :math:`\beta`, the slow momentum. The paper uses 0.4 to 0.8.
      learning_rate: :math:`\gamma_t`, the schedule of the base optimizer's learning
        rate. A constant has no effect. Where the rate is below 1e-8, the buffers
        stay as they are, since the change of the model says nothing about gradients.
      base_state: what becomes of the base optimizer's state in a slow step: it is kept,
        reset to its first value, or averaged exactly over the workers. A reset leaves
        schedules of the learning rate and injected hyperparameters as they are.
      anchor_dtype: see :func:`djax.outer`; `"bfloat16"` halves the anchors.
      anchor_memory: see :func:`djax.outer`; `"host"` keeps them in the host's memory.

    Returns:
      `chain(optimizer, outer(period, slow_momentum, mechanism))`.

    Raises:
      ValueError: if an argument is out of its range, or if the state of the base
        optimizer is to be averaged without a communicator.

    Warns:
      UserWarning: as :func:`djax.diloco`, which the default momentum of 0.7 does with
        compressed messages.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> base = optax.sgd(0.1, momentum=0.9, nesterov=True)
      >>> optimizer = djax.slowmo(base, workers, period=12, base_state="reset")

    References:
      Wang et al., `SlowMo: Improving Communication-Efficient Distributed SGD with Slow
      Momentum <https://arxiv.org/abs/1910.00643>`_, 2020, Algorithm 1
    """
    check_static("slowmo", period=period)
    period = check_integer(period, "slowmo: period")
    check_rate("slowmo: outer_learning_rate", outer_learning_rate)
    check_decay("slowmo: outer_momentum", outer_momentum)
    check_choice("slowmo: base_state", base_state, BaseState)
    rate = _rate_of_slow_steps(learning_rate, period)
    slow = _slow_momentum(rate, outer_learning_rate, outer_momentum)
    mechanism = (
        _nothing()
        if averaging is None
        else mechanism_of("slowmo", averaging, outer_momentum)
    )
    anchors = {"anchor_dtype": anchor_dtype, "anchor_memory": anchor_memory}
    slow_steps = outer(period, slow, mechanism, **anchors)
    if base_state == "reset":
        optimizer = _reset_every(period, as_transformation("slowmo", optimizer))
    if base_state != "average":
        return behind("slowmo", optimizer, slow_steps)
    communicator = getattr(mechanism, "communicator", None)
    if communicator is None:
        raise ValueError(
            "slowmo: base_state='average' needs a communicator: pass one as averaging, "
            "or a mechanism that has one."
        )
    exact = every(period, all_reduce(communicator))
    return decentralized(optimizer, slow_steps, average_state=exact)


def _rate_of_slow_steps(
    learning_rate: optax.ScalarOrSchedule, period: int
) -> Callable[[ArrayLike], ArrayLike]:
    """Returns the learning rate in the last local step before each slow step."""
    check_learning_rate("slowmo", learning_rate, zero=False)
    if not callable(learning_rate):
        return lambda count: learning_rate

    def rate(count):
        return learning_rate((count + 1) * period - 1)

    return rate


class SlowMomentumState(NamedTuple):
    """State of the outer optimizer of :func:`slowmo`.

    Attributes:
      trace: :math:`u_i`, a tree like the parameters, in the unit of gradients.
      count: `int32[]`, the number of slow steps so far.
    """

    trace: optax.Updates
    count: ArrayLike


def _slow_momentum(
    rate: Callable[[ArrayLike], ArrayLike], learning_rate: float, decay: float
) -> optax.GradientTransformation:
    r"""Makes SlowMo's outer optimizer.

    With the change :math:`\Delta` of the model, the step is :math:`-\alpha (\gamma_t
    \beta u + \Delta)`, in which nothing is divided by the rate.
    """

    def init(params):
        trace = jax.tree.map(jnp.zeros_like, params)
        return SlowMomentumState(trace, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        now = jnp.asarray(rate(state.count))
        known = now >= SMALLEST_LEARNING_RATE
        inverse = 1 / jnp.where(known, now, 1)

        def step(u, d):
            moved = now.astype(u.dtype) * decay * u + d
            return (-learning_rate * moved).astype(d.dtype)

        def remember(u, d):
            followed = decay * u + inverse.astype(u.dtype) * d
            return jnp.where(known, followed, u).astype(u.dtype)

        steps = jax.tree.map(step, state.trace, updates)
        trace = jax.tree.map(remember, state.trace, updates)
        return steps, SlowMomentumState(trace, optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _nothing() -> Mechanism:
    """A mechanism in which every worker stays alone."""
    return Mechanism(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, **extra: (updates, state),
        name="no_average",
    )


class ResetState(NamedTuple):
    """State of a base optimizer that is reset from time to time.

    Attributes:
      step: `int32[]`, the number of updates so far.
      inner_state: the state of the base optimizer.
    """

    step: ArrayLike
    inner_state: optax.OptState


def _reset_every(
    period: int, optimizer: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """Resets the state of an optimizer after every `period`-th step."""

    def init(params):
        with collecting() as parts:
            inner = optimizer.init(params)
        if parts:
            raise ValueError(
                f"slowmo: base_state='reset' would reset {parts[0].name}, too, which "
                "is a part of the base optimizer: use 'keep' or 'average'."
            )
        return ResetState(jnp.zeros((), jnp.int32), inner)

    def update(updates, state, params=None, **extra):
        params = check_params("slowmo", params)
        updates, inner = optimizer.update(updates, state.inner_state, params, **extra)
        inner = alternate(
            state.step,
            [0] * (period - 1) + [1],
            (lambda inner: inner, lambda inner: _reset(inner, optimizer.init(params))),
            inner,
        )
        return updates, ResetState(optax.safe_increment(state.step), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _reset(state: optax.OptState, first: optax.OptState) -> optax.OptState:
    """Resets the buffers of an optimizer, but not its hyperparameters.

    A schedule of the learning rate would otherwise start again after each slow step,
    and never come to its end.

    Args:
      state: the present state of the optimizer.
      first: the state from which it started.
    """

    def of_node(old, new):
        if isinstance(old, _INJECTED):
            return old._replace(inner_state=_reset(old.inner_state, new.inner_state))
        return old if isinstance(old, optax.ScaleByScheduleState) else new

    def is_node(x):
        return isinstance(x, (optax.ScaleByScheduleState, *_INJECTED))

    return jax.tree.map(of_node, state, first, is_leaf=is_node)
