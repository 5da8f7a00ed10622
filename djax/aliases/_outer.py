"""Algorithms that average rarely, by the names of their papers.

Each of them is a base optimizer and :func:`djax.outer`, in one call. They differ in the
outer optimizer, in the mechanism, and in when fragments of the model are averaged.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import (
    check_choice,
    check_communicator,
    check_decay,
    check_flags,
    check_rate,
)
from djax._arrays.checks import check_params
from djax._arrays.precision import add
from djax._calls import by_its_call
from djax._interfaces import Communicator
from djax._mechanism.adapter import wrap
from djax._mechanism.value import Mechanism, collecting
from djax._transformations import as_transformation
from djax._values import check_integer
from djax.corrections import Fragments, every, outer
from djax.mechanisms import all_reduce, gossip
from djax.mixing import alternate
from djax.optimizers import decentralized
from djax.topologies import Graph, random_matchings

BaseState = Literal["keep", "reset", "average"]
Averaging = Communicator | optax.GradientTransformation

# SlowMo divides by the learning rate of the local steps, which may decay to zero.
SMALLEST_LEARNING_RATE = 1e-8


def diloco(
    optimizer: optax.GradientTransformation,
    averaging: Averaging,
    *,
    period: int = 500,
    outer_learning_rate: optax.ScalarOrSchedule = 0.7,
    outer_momentum: float = 0.9,
    nesterov: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""DiLoCo: many local steps, then a step of Nesterov momentum along their average.

    .. math::
       \Delta &= \varphi - \tfrac1n \textstyle\sum_j x_j, \qquad
       u \leftarrow \mu u + \Delta, \\
       \varphi &\leftarrow \varphi - \eta (\Delta + \mu u), \qquad
       x_i \leftarrow \varphi

    The defaults are those of the paper, which uses AdamW for the local steps. Its state
    stays with the worker; `djax.decentralized` averages it, too.

    Args:
      optimizer: the optimizer of the local steps, such as `optax.adamw(4e-4)`.
      averaging: a communicator, over whose workers the average is exact, as published;
        or any mechanism that takes the place of the exact average, such as
        :func:`djax.gossip` or :func:`djax.power_gossip`.
      period: the number H of local steps between two averagings.
      outer_learning_rate: :math:`\eta`, a number, or a schedule that is given the
        number of outer steps so far.
      outer_momentum: :math:`\mu`.
      nesterov: whether the outer momentum is Nesterov's, as published, or heavy ball.

    Returns:
      `chain(optimizer, outer(period, sgd, mechanism))`.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> optimizer = djax.diloco(optax.adamw(4e-4), workers)
      >>> ring = djax.topologies.ring(8)
      >>> over_gossip = djax.diloco(optax.adamw(4e-4), djax.gossip(ring, workers))

    References:
      Douillard et al., `DiLoCo: Distributed Low-Communication Training of Language
      Models <https://arxiv.org/abs/2311.08105>`_, 2023
    """
    sgd = _outer_sgd("diloco", outer_learning_rate, outer_momentum, nesterov)
    mechanism = _mechanism("diloco", averaging)
    return _behind("diloco", optimizer, outer(period, sgd, mechanism))


def streaming_diloco(
    optimizer: optax.GradientTransformation,
    averaging: Averaging,
    *,
    fragments: Fragments = 4,
    period: int = 100,
    delay: int = 5,
    blend: float = 0.5,
    outer_learning_rate: optax.ScalarOrSchedule = 0.4,
    outer_momentum: float = 0.9,
    nesterov: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Streaming DiLoCo: one fragment of the model after the other, without waiting.

    In place of the whole model after H steps, one of its F fragments is sent every H/F
    steps. The outer step is made `delay` local steps later, so that messages travel
    while the workers compute. It is blended with what the worker has learnt meanwhile,
    :math:`x_i \leftarrow \beta \varphi + (1 - \beta) x_i`. The paper also sends
    messages in 4 bits: give the communicator a `message_dtype`, or use a mechanism that
    compresses.

    Args:
      optimizer: the optimizer of the local steps, such as `optax.adamw(4e-4)`.
      averaging: a communicator or a mechanism, as for :func:`djax.diloco`.
      fragments: the number F of fragments, or which leaf belongs to which; see
        :func:`djax.outer`. The paper makes fragments of three layers each, and takes
        the layers of a fragment from the whole depth of the network.
      period: the number H of steps in which every fragment is averaged once. It has to
        be a multiple of the number of fragments.
      delay: the number of local steps between sending a fragment and its outer step.
      blend: :math:`\beta`, the weight of the outer model; 1 minus the mixing factor of
        the paper.
      outer_learning_rate: as for :func:`djax.diloco`.
      outer_momentum: as for :func:`djax.diloco`.
      nesterov: as for :func:`djax.diloco`.

    Returns:
      `chain(optimizer, outer(period, sgd, mechanism, fragments, delay, blend))`.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> optimizer = djax.streaming_diloco(optax.adamw(4e-4), workers, fragments=2)

    References:
      Douillard et al., `Streaming DiLoCo with overlapping communication
      <https://arxiv.org/abs/2501.18512>`_, 2025
    """
    name = "streaming_diloco"
    sgd = _outer_sgd(name, outer_learning_rate, outer_momentum, nesterov)
    streaming = outer(
        period,
        sgd,
        _mechanism(name, averaging),
        fragments=fragments,
        delay=delay,
        blend=blend,
    )
    return _behind(name, optimizer, streaming)


def slowmo(
    optimizer: optax.GradientTransformation,
    averaging: Averaging | None,
    *,
    period: int = 12,
    outer_learning_rate: float = 1.0,
    outer_momentum: float = 0.7,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    base_state: BaseState = "keep",
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
        rate. A constant has no effect. A rate below 1e-8 counts as 1e-8.
      base_state: what becomes of the base optimizer's state in a slow step: it is kept,
        reset to its first value, or averaged exactly over the workers.

    Returns:
      `chain(optimizer, outer(period, slow_momentum, mechanism))`.

    Raises:
      ValueError: if an argument is out of its range, or if the state of the base
        optimizer is to be averaged without a communicator.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> base = optax.sgd(0.1, momentum=0.9, nesterov=True)
      >>> optimizer = djax.slowmo(base, workers, period=12, base_state="reset")

    References:
      Wang et al., `SlowMo: Improving Communication-Efficient Distributed SGD with Slow
      Momentum <https://arxiv.org/abs/1910.00643>`_, 2020, Algorithm 1
    """
    period = check_integer(period, "slowmo: period")
    check_rate("slowmo: outer_learning_rate", outer_learning_rate)
    check_decay("slowmo: outer_momentum", outer_momentum)
    check_choice("slowmo: base_state", base_state, BaseState)
    rate = _rate_of_slow_steps(learning_rate, period)
    slow = optax.chain(
        optax.scale_by_schedule(lambda count: 1 / rate(count)),
        optax.trace(outer_momentum),
        optax.scale_by_schedule(lambda count: -outer_learning_rate * rate(count)),
    )
    mechanism = _nothing() if averaging is None else _mechanism("slowmo", averaging)
    slow_steps = outer(period, slow, mechanism)
    if base_state == "reset":
        optimizer = _reset_every(period, as_transformation("slowmo", optimizer))
    if base_state != "average":
        return _behind("slowmo", optimizer, slow_steps)
    communicator = getattr(mechanism, "communicator", None)
    if communicator is None:
        raise ValueError(
            "slowmo: base_state='average' needs a communicator: pass one as averaging, "
            "or a mechanism that has one."
        )
    exact = every(period, all_reduce(communicator))
    return decentralized(optimizer, slow_steps, average_state=exact)


def noloco(
    optimizer: optax.GradientTransformation,
    communicator: Communicator,
    *,
    period: int = 50,
    outer_learning_rate: float = 0.7,
    outer_momentum: float = 0.5,
    consensus_rate: float | None = None,
    schedule: Graph | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""NoLoCo: DiLoCo between random pairs of workers, without all-reduce.

    With :math:`\operatorname{pair}` for the mean over a worker and its partner, which
    are drawn anew for each outer step,

    .. math::
       u_i &\leftarrow \mu u_i + \eta \operatorname{pair}(x - \varphi)
          + \gamma (\operatorname{pair}(\varphi) - \varphi_i), \\
       \varphi_i &\leftarrow \varphi_i + u_i, \qquad x_i \leftarrow \varphi_i.

    The term with :math:`\gamma` draws the anchors of the workers together. If
    :math:`\gamma = \eta`, as in the published code, both terms make up
    :math:`\eta (\operatorname{pair}(x) - \varphi_i)`, and one model is sent in an outer
    step; otherwise two. The momentum is heavy ball, as in the published code.

    Args:
      optimizer: the optimizer of the local steps; the published code uses
        `optax.adam`.
      communicator: how messages travel.
      period: the number of local steps between two outer steps.
      outer_learning_rate: :math:`\eta`.
      outer_momentum: :math:`\mu`.
      consensus_rate: :math:`\gamma`; None is :math:`\eta`.
      schedule: who averages with whom in each outer step, if it is not
        `djax.topologies.random_matchings(communicator.size, period=256)`.

    Returns:
      `chain(optimizer, outer(period, sgd, gossip))`.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> optimizer = djax.noloco(optax.adam(1e-3), workers)

    References:
      Kolehmainen et al., `NoLoCo: No-all-reduce Low Communication Training Method for
      Large Models <https://arxiv.org/abs/2506.10911>`_, 2025
    """
    sgd = _outer_sgd("noloco", outer_learning_rate, outer_momentum, nesterov=False)
    if schedule is None:
        schedule = random_matchings(communicator.size, period=256)
    pairs = gossip(schedule, communicator)
    if consensus_rate is not None:
        check_rate("noloco: consensus_rate", consensus_rate)
        pairs = _with_anchors(pairs, consensus_rate / outer_learning_rate)
    return _behind("noloco", optimizer, outer(period, sgd, pairs))


def _mechanism(name: str, averaging: Averaging) -> optax.GradientTransformation:
    """Returns a mechanism; a communicator stands for the exact average."""
    if isinstance(averaging, optax.GradientTransformation):
        return as_transformation(name, averaging)
    check_communicator(name, averaging)
    return all_reduce(averaging)


def _behind(
    name: str, optimizer: optax.GradientTransformation, mechanism: Mechanism
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(as_transformation(name, optimizer), mechanism)


def _outer_sgd(
    name: str, learning_rate: optax.ScalarOrSchedule, momentum: float, nesterov: bool
) -> optax.GradientTransformationExtraArgs:
    if not callable(learning_rate):
        check_rate(f"{name}: outer_learning_rate", learning_rate)
    check_decay(f"{name}: outer_momentum", momentum)
    check_flags(name, nesterov=nesterov)
    return optax.sgd(learning_rate, momentum, nesterov)


def _rate_of_slow_steps(
    learning_rate: optax.ScalarOrSchedule, period: int
) -> Callable[[ArrayLike], ArrayLike]:
    """Returns the learning rate in the last local step before each slow step."""
    if not callable(learning_rate):
        check_rate("slowmo: learning_rate", learning_rate)
        return lambda count: learning_rate

    def rate(count):
        last = learning_rate((count + 1) * period - 1)
        return jnp.maximum(last, SMALLEST_LEARNING_RATE)

    return rate


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
            (lambda inner: inner, lambda inner: optimizer.init(params)),
            inner,
        )
        return updates, ResetState(optax.safe_increment(state.step), inner)

    return optax.GradientTransformationExtraArgs(init, update)


@by_its_call
def _with_anchors(mechanism: Mechanism, ratio: float) -> Mechanism:
    r"""Averages models, and moves them by the averages of the anchors as well.

    .. math::
       x_i \leftarrow \operatorname{average}_i(x)
          + (r - 1) (\operatorname{average}_i(\varphi) - \varphi_i)

    Args:
      mechanism: averages the models, and with a state of its own the anchors.
      ratio: :math:`r`, the consensus rate divided by the outer learning rate.
    """
    average = as_transformation("noloco", mechanism)

    def init(params):
        return average.init(params), average.init(params)

    def update(updates, state, params, **extra):
        # The parameters that an outer optimizer gives to its mechanism are the anchor.
        nothing = optax.tree.zeros_like(updates)
        updates, models = average.update(updates, state[0], params, **extra)
        consensus, anchors = average.update(nothing, state[1], params, **extra)
        scaled = jax.tree.map(lambda c: (ratio - 1) * c, consensus)
        return add(updates, scaled, like=updates), (models, anchors)

    return wrap("noloco", mechanism, init, update)
