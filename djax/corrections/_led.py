r"""LED, local exact diffusion: several local steps without a drift of the workers.

Between two averagings, each worker makes several steps on its own data, and is thereby
drawn to its own optimum. If the workers' data differ, local SGD with a constant step
size therefore does not reach the common optimum. LED adds to every local step a
correction :math:`c_i`. In each averaging, the correction learns how far the averaging
has moved the model. At the optimum, correction and update cancel, so that neither a
local step nor an averaging moves anything. With the update :math:`u_i` of the links
before it and any mechanism, a local step is

.. math:: x_i \leftarrow x_i + u_i + c_i, \qquad c_i = 0 \text{ at first}.

In every :math:`\tau`-th step, the workers average as well:

.. math::
   z_i &= x_i + u_i + c_i, \\
   x_i &\leftarrow \operatorname{average}_i(z_1, \dots, z_n), \\
   c_i &\leftarrow c_i + \beta (\text{new } x_i - z_i).

The paper's dual variable is :math:`y_i = -c_i / \beta`.

Alghunaim, `Local Exact-Diffusion for Decentralized Optimization and Learning
<https://arxiv.org/abs/2302.00620>`_, 2023.
"""

from typing import NamedTuple

import jax
import optax
from jax.typing import ArrayLike

from djax._arguments import check_flags, check_static
from djax._calls import by_its_call
from djax._mechanism.value import Mechanism
from djax._values import check_integer

from ._dual import dual


class LEDState(NamedTuple):
    r"""State of :func:`led`.

    Attributes:
      correction: :math:`c_i`, a tree like the parameters, which every step adds to the
        model.
      step: `int32[]`, the number of updates so far.
      mechanism_state: the state of the wrapped mechanism.
    """

    correction: optax.Updates
    step: ArrayLike
    mechanism_state: optax.OptState


@by_its_call
def led(
    period: int,
    mechanism: optax.GradientTransformation,
    dual_rate: float | jax.Array = 1.0,
    *,
    check: bool = True,
) -> Mechanism:
    r"""Makes local steps, and corrects them for differences between the workers' data.

    In the steps :math:`\tau, 2\tau, 3\tau, \dots` (counted from one) the workers
    average; all others are local steps:

    .. math::
       z_i &= x_i + u_i + c_i \\
       x_i &\leftarrow z_i \quad\text{(local step)}, \qquad
       x_i \leftarrow \operatorname{average}_i(z_1, \dots, z_n)
       \quad\text{(averaging step)} \\
       c_i &\leftarrow c_i + \beta (\text{new } x_i - z_i)
       \quad\text{(averaging step)}

    A local step adds the correction to the update, and costs nothing else. `led(1,
    mechanism)` is :func:`djax.d2`: over gossip at half the consensus rate, that is
    exact diffusion.

    The longer the workers are alone, the smaller :math:`\beta` has to be. Over gossip
    whose mixing matrix has the smallest eigenvalue :math:`\lambda`, LED is stable if

    .. math:: \tau \beta < 2 (1 + \lambda) / (1 - \lambda).

    At half the consensus rate :math:`\lambda` is not negative, so that :math:`\beta =
    1 / \tau` is always stable. Rates above the bound are refused. The bound itself is
    allowed, as in :func:`djax.d2`, although differences between the workers may then
    change their signs without shrinking. Over schedules, `led` refuses every rate with
    which the differences do not shrink.

    The correction is in the unit of updates. If the learning rate falls suddenly, the
    corrections are too large for some averagings, and move the workers apart: let it
    fall smoothly.

    Args:
      period: :math:`\tau`, the number of steps from one averaging to the next.
      mechanism: any mechanism without `overlap` that averages nearly exactly, and loses
        no messages. It cannot be :func:`djax.relay`, whose averages contain older
        models.
      dual_rate: :math:`\beta`, a float or a scalar array.
      check: whether to refuse rates with which LED diverges. A traced rate, as
        `optax.inject_hyperparams` passes it, cannot be checked.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`LEDState`.

    Raises:
      ValueError: if the period is not a positive integer; if the rate is not positive,
        or too large for this mechanism; if the mechanism overlaps, loses messages, or
        averages older models, updates or only some coordinates in a step; or if it is
        :func:`djax.push_sum` with weights that are not 1, another correction, or an
        optimizer such as :func:`djax.quasi_global_momentum`.

    Examples:
      >>> import djax, optax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> gossip = djax.gossip(ring, communicator, consensus_rate=0.5)
      >>> averaging = djax.led(4, gossip, dual_rate=0.25)
      >>> local_exact_diffusion = optax.chain(optax.sgd(0.1), averaging)

    References:
      Alghunaim, `Local Exact-Diffusion for Decentralized Optimization and Learning
      <https://arxiv.org/abs/2302.00620>`_, 2023
    """
    check_static("led", period=period)
    period = check_integer(period, "led: period")
    check_flags("led", check=check)

    def largest_rate(smallest):
        return 2 * (1 + smallest) / (1 - smallest) / period

    return dual(
        "led",
        f"{period}",
        mechanism,
        LEDState,
        [0] * (period - 1) + [1],
        dual_rate,
        largest_rate=largest_rate,
        check=check,
    )
