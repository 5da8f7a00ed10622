r"""ProxSkip: a coin decides in each step whether the workers average.

Averagings are often slower than steps, so that most of them should be left out. As in
LED, a correction :math:`c_i` keeps the workers from drifting apart meanwhile. Here a
coin, which is tossed once for all workers, decides whether a step ends with an
averaging. For strongly convex problems it is proven that, with the right probability,
the number of averagings grows with the square root of the condition number only, while
the number of steps stays that of gradient descent. With the update :math:`u_i` of the
links before it and any mechanism,

.. math::
   z_i &= x_i + u_i + c_i, \qquad c_i = 0 \text{ at first}, \\
   \text{tails: } x_i &\leftarrow z_i, \\
   \text{heads: } x_i &\leftarrow z_i + \tfrac{1}{2 \chi}
       \bigl(\operatorname{average}_i(z_1, \dots, z_n) - z_i\bigr), \qquad
   c_i \leftarrow c_i + \beta (\text{new } x_i - z_i).

The paper's dual variable is :math:`y_i = -c_i`.

Mishchenko et al., `ProxSkip: Yes! Local Gradient Steps Provably Lead to Communication
Acceleration! Finally! <https://arxiv.org/abs/2202.09357>`_, 2022; Guo et al.,
`Revisiting Decentralized ProxSkip: Achieving Linear Speedup
<https://arxiv.org/abs/2310.07983>`_, 2023.
"""

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._arguments import check_flags, check_rate
from djax._arrays.keys import check_key, shared_key
from djax._calls import by_its_call
from djax._mechanism.agreement import text_of
from djax._mechanism.value import Mechanism
from djax._values import check_share

from ._dual import dual

# The coins are drawn once, and then repeated. With at least these numbers of coins and
# of expected heads, the share of heads is near the probability.
FEWEST_COINS, FEWEST_HEADS = 1024, 16


class ProxSkipState(NamedTuple):
    r"""State of :func:`prox_skip`.

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
def prox_skip(
    probability: float | Sequence[bool],
    mechanism: optax.GradientTransformation,
    dual_rate: float | jax.Array,
    chi: float | jax.Array = 1.0,
    key: jax.Array | None = None,
    *,
    check: bool = True,
) -> Mechanism:
    r"""Averages at random times, and corrects for differences between workers' data.

    .. math::
       z_i &= x_i + u_i + c_i \\
       x_i &\leftarrow z_i \quad\text{(tails)}, \qquad
       x_i \leftarrow z_i + \tfrac{1}{2 \chi}
       \bigl(\operatorname{average}_i(z_1, \dots, z_n) - z_i\bigr)
       \quad\text{(heads)} \\
       c_i &\leftarrow c_i + \beta (\text{new } x_i - z_i) \quad\text{(heads)}

    The coins are drawn when the mechanism is made, :math:`\max(1024, 16 / p)` of them,
    and are then repeated. The workers therefore know which steps are local: such a step
    adds the correction to the update, and sends and computes nothing else.
    :func:`djax.communication_cost` counts the averagings of the coins that were drawn.

    With probability 1, :math:`\chi = 1` and :math:`\beta = 1`, ProxSkip over
    :func:`djax.gossip` is exact diffusion. With heads in every :math:`\tau`-th step, it
    is :func:`djax.led` over gossip whose consensus rate is multiplied by
    :math:`1 / (2 \chi)`.

    The rarer the averagings, the smaller :math:`\beta` has to be. If :math:`\lambda` is
    the smallest eigenvalue of :math:`I - (I - W) / (2 \chi)`, with the mixing matrix
    :math:`W` of gossip, then the mean square of the differences between workers shrinks
    without gradients if

    .. math:: \beta < \frac{2 p (1 + \lambda)}{2 - p (1 + \lambda)},

    which :math:`\beta = p` always fulfils for gossip with a consensus rate of at most
    1. Larger rates are refused. Over schedules, and with coins of your own, `prox_skip`
    refuses a rate with which the differences grow over the steps of these coins.

    The correction is in the unit of updates, as that of :func:`djax.led`, so that the
    learning rate should not fall suddenly.

    Args:
      probability: p, the probability of an averaging in a step, in (0, 1]; or the coins
        themselves, a sequence of booleans, one for each step, which is repeated. True
        is an averaging.
      mechanism: any mechanism without `overlap` that averages nearly exactly, and loses
        no messages. It cannot be :func:`djax.relay`, whose averages contain older
        models.
      dual_rate: :math:`\beta`, a float or a scalar array.
      chi: :math:`\chi`, at least 1, a float or a scalar array. An averaging moves a
        model by the share :math:`1 / (2 \chi)` of its way to the average.
      key: PRNG key of the coins, the same on all workers; `jax.random.key(0)` by
        default. It must be known when programs are compiled.
      check: whether to refuse rates with which ProxSkip diverges. Traced rates, as
        `optax.inject_hyperparams` passes them, cannot be checked.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`ProxSkipState`.

    Raises:
      TypeError: if `key` is not a key.
      ValueError: if the probability is not in (0, 1], or no coin is heads; if the
        probability or the key are traced; if the rate is not positive, or too large for
        this mechanism; if `chi` is below 1; if the mechanism overlaps, loses messages,
        or averages older models, updates or only some coordinates in a step; or if it
        is :func:`djax.push_sum` with weights that are not 1, another correction, or an
        optimizer such as :func:`djax.quasi_global_momentum`.

    Examples:
      >>> import djax, optax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> gossip = djax.gossip(ring, communicator)
      >>> averaging = djax.prox_skip(0.25, gossip, dual_rate=0.25)
      >>> optimizer = optax.chain(optax.sgd(0.1), averaging)

    References:
      Mishchenko et al., `ProxSkip: Yes! Local Gradient Steps Provably Lead to
      Communication Acceleration! Finally! <https://arxiv.org/abs/2202.09357>`_, 2022

      Guo et al., `Revisiting Decentralized ProxSkip: Achieving Linear Speedup
      <https://arxiv.org/abs/2310.07983>`_, 2023
    """
    check_flags("prox_skip", check=check)
    check_key("prox_skip", key)
    _check_known(probability, key)
    check_rate("prox_skip: chi", chi)
    if not isinstance(chi, jax.core.Tracer) and float(chi) < 1:
        raise ValueError(f"prox_skip: chi must be at least 1, got {chi}.")
    if np.ndim(probability):
        coins, when = _checked(probability)
        largest_rate = None
    else:
        probability = check_share(probability, "prox_skip: probability")
        coins, when = _draw(probability, key)
        largest_rate = functools.partial(_largest_rate, probability)
    return dual(
        "prox_skip",
        when,
        mechanism,
        ProxSkipState,
        coins.astype(int).tolist(),
        dual_rate,
        1 / (2 * chi),
        largest_rate=largest_rate,
        check=check,
    )


def _largest_rate(probability: float, smallest: float) -> float:
    r"""The largest dual rate at which the mean square of the differences is stable.

    On the eigenvector of an eigenvalue :math:`\lambda`, a step without gradients maps
    the model and the correction linearly. The map of tails is T, and that of heads is

    .. math:: H = \begin{pmatrix} \lambda & \lambda \\
              \beta (\lambda - 1) & 1 + \beta (\lambda - 1) \end{pmatrix}.

    Their second moments are stable if all eigenvalues of :math:`p H \otimes H + (1 - p)
    T \otimes T` are within the unit circle. The largest of them is positive, and
    reaches 1 at the rate that is returned.
    """
    heads = probability * (1 + smallest)
    return 2 * heads / (2 - heads)


def _check_known(probability: Any, key: Any) -> None:
    """Raises ValueError if the coins depend on a traced value."""
    for name, value in {"probability": probability, "key": key}.items():
        if isinstance(value, jax.core.Tracer) or (
            name == "probability" and isinstance(value, jax.Array)
        ):
            raise ValueError(
                f"prox_skip: {name} must be known before programs are compiled, since "
                f"the coins are drawn once, got {value!r}; make it outside of compiled "
                "functions, and use optax.inject_hyperparams(prox_skip, "
                "static_args=('probability', 'key'))."
            )


def _draw(probability: float, key: jax.Array | None) -> tuple[np.ndarray, str]:
    """Draws the coins; returns them, and a text that processes compare."""
    count = max(FEWEST_COINS, math.ceil(FEWEST_HEADS / probability))
    with jax.ensure_compile_time_eval():
        key = shared_key("prox_skip", key)
        drawn = np.asarray(jax.random.uniform(key, (count,), jnp.float32))
    return _with_heads(drawn < probability), f"{probability}, {text_of(key)}"


def _checked(coins: Any) -> tuple[np.ndarray, str]:
    """Checks a user's coins; returns them, and a text that processes compare."""
    array = np.asarray(coins)
    if array.ndim != 1 or array.dtype != bool:
        raise ValueError(
            "prox_skip: probability must be a number, or a sequence of booleans, one "
            f"for each step, got {coins!r}."
        )
    checksum = zlib.crc32(array.tobytes())
    return _with_heads(array), f"{len(array)} coins of checksum {checksum:x}"


def _with_heads(coins: np.ndarray) -> np.ndarray:
    """Raises ValueError if no coin is heads, with which the workers never average."""
    if not coins.any():
        raise ValueError(
            f"prox_skip: none of the {len(coins)} coins is heads, so that the workers "
            "would never average: pass coins of which one is True, or another key."
        )
    return coins
