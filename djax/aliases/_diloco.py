"""DiLoCo and Streaming DiLoCo: rare averagings, and an outer optimizer with momentum.

Each of them is a base optimizer and :func:`djax.outer`, in one call.
"""

import optax

from djax._arguments import check_static
from djax.corrections import AnchorDtype, Fragments, Memory, outer

from ._outer import Averaging, behind, mechanism_of, outer_sgd


def diloco(
    optimizer: optax.GradientTransformation,
    averaging: Averaging,
    *,
    period: int = 500,
    outer_learning_rate: optax.ScalarOrSchedule = 0.7,
    outer_momentum: float = 0.9,
    nesterov: bool = True,
    anchor_dtype: AnchorDtype = None,
    anchor_memory: Memory = "device",
) -> optax.GradientTransformationExtraArgs:
    r"""DiLoCo: many local steps, then a step of Nesterov momentum along their average.

    .. math::
       \Delta &= \varphi - \tfrac1n \textstyle\sum_j x_j, \qquad
       u \leftarrow \mu u + \Delta, \\
       \varphi &\leftarrow \varphi - \eta (\Delta + \mu u), \qquad
       x_i \leftarrow \varphi

    The defaults are those of the paper, which uses AdamW for the local steps. Its state
    stays with the worker; :func:`djax.decentralized` averages it, too.

    A mechanism that compresses its messages, such as :func:`djax.power_gossip`, needs a
    smaller outer momentum, of at most 0.5. What its averages leave out changes from one
    averaging to the next, and a larger momentum drives the models apart.

    Args:
      optimizer: the optimizer of the local steps, such as `optax.adamw(4e-4)`.
      averaging: a communicator, over whose workers the average is exact, as published;
        or any mechanism that takes the place of the exact average, such as
        :func:`djax.gossip` or :func:`djax.power_gossip`.
      period: the number H of local steps between two averagings.
      outer_learning_rate: :math:`\eta`, a number, or a schedule that is given the
        number of outer steps so far.
      outer_momentum: :math:`\mu`; at most 0.5 with compressed messages.
      nesterov: whether the outer momentum is Nesterov's, as published, or heavy ball.
      anchor_dtype: see :func:`djax.outer`; `"bfloat16"` halves the anchors.
      anchor_memory: see :func:`djax.outer`; `"host"` keeps them in the host's memory.

    Returns:
      `chain(optimizer, outer(period, sgd, mechanism))`.

    Warns:
      UserWarning: if the mechanism compresses, and the outer momentum is above 0.5.

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
    check_static("diloco", period=period)
    sgd = outer_sgd("diloco", outer_learning_rate, outer_momentum, nesterov)
    mechanism = mechanism_of("diloco", averaging, outer_momentum)
    anchors = {"anchor_dtype": anchor_dtype, "anchor_memory": anchor_memory}
    return behind("diloco", optimizer, outer(period, sgd, mechanism, **anchors))


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
    anchor_dtype: AnchorDtype = None,
    anchor_memory: Memory = "device",
) -> optax.GradientTransformationExtraArgs:
    r"""Streaming DiLoCo: one fragment of the model after the other, without waiting.

    In place of the whole model after H steps, one of its F fragments is sent every H/F
    steps. The outer step is made `delay` local steps later, so that messages travel
    while the workers compute. It is blended with what the worker has learnt meanwhile,
    :math:`x_i \leftarrow \beta \varphi + (1 - \beta) x_i`. The paper also sends
    messages in 4 bits. An exact average sends at least 32 bits; for narrower messages
    use a mechanism that sends to neighbours, such as :func:`djax.gossip` over a
    communicator with a `message_dtype`, or one that compresses.

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
      anchor_dtype: see :func:`djax.outer`; `"bfloat16"` halves the anchors.
      anchor_memory: see :func:`djax.outer`; `"host"` keeps them in the host's memory.

    Returns:
      `chain(optimizer, outer(period, sgd, mechanism, fragments, delay, blend))`.

    Warns:
      UserWarning: as :func:`djax.diloco`.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> optimizer = djax.streaming_diloco(optax.adamw(4e-4), workers, fragments=2)

    References:
      Douillard et al., `Streaming DiLoCo with overlapping communication
      <https://arxiv.org/abs/2501.18512>`_, 2025
    """
    name = "streaming_diloco"
    check_static(name, period=period, delay=delay, fragments=fragments)
    sgd = outer_sgd(name, outer_learning_rate, outer_momentum, nesterov)
    streaming = outer(
        period,
        sgd,
        mechanism_of(name, averaging, outer_momentum),
        fragments=fragments,
        delay=delay,
        blend=blend,
        anchor_dtype=anchor_dtype,
        anchor_memory=anchor_memory,
    )
    return behind(name, optimizer, streaming)
