"""NoLoCo: DiLoCo without all-reduce, between random pairs of workers."""

import jax
import optax

from djax._arguments import check_communicator, check_rate, check_static
from djax._arrays.precision import add
from djax._calls import by_its_call
from djax._interfaces import Communicator
from djax._mechanism.adapter import wrap
from djax._mechanism.value import Mechanism
from djax._transformations import as_transformation
from djax.corrections import AnchorDtype, Memory, outer
from djax.mechanisms import gossip
from djax.topologies import Graph, random_matchings

from ._outer import behind, outer_sgd


def noloco(
    optimizer: optax.GradientTransformation,
    communicator: Communicator,
    *,
    period: int = 50,
    outer_learning_rate: optax.ScalarOrSchedule = 0.7,
    outer_momentum: float = 0.5,
    consensus_rate: float | None = None,
    schedule: Graph | None = None,
    anchor_dtype: AnchorDtype = None,
    anchor_memory: Memory = "device",
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
      consensus_rate: :math:`\gamma`; None is :math:`\eta`, which may then also be a
        schedule.
      schedule: who averages with whom in each outer step, if it is not
        `djax.topologies.random_matchings(communicator.size, period=256)`.
      anchor_dtype: see :func:`djax.outer`; `"bfloat16"` halves the anchors.
      anchor_memory: see :func:`djax.outer`; `"host"` keeps them in the host's memory.

    Returns:
      `chain(optimizer, outer(period, sgd, gossip))`.

    Raises:
      TypeError: if `communicator` is not a communicator.
      ValueError: if a number is out of its range, or if the outer learning rate is a
        schedule and `consensus_rate` is given.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> optimizer = djax.noloco(optax.adam(1e-3), workers)

    References:
      Kolehmainen et al., `NoLoCo: No-all-reduce Low Communication Training Method for
      Large Models <https://arxiv.org/abs/2506.10911>`_, 2025
    """
    check_static("noloco", period=period)
    check_communicator("noloco", communicator)
    sgd = outer_sgd("noloco", outer_learning_rate, outer_momentum, nesterov=False)
    if schedule is None:
        schedule = random_matchings(communicator.size, period=256)
    pairs = gossip(schedule, communicator)
    if consensus_rate is not None:
        check_rate("noloco: consensus_rate", consensus_rate)
        if callable(outer_learning_rate):  # The ratio of the rates would vary.
            raise ValueError(
                "noloco: with a consensus_rate, outer_learning_rate must be a number; "
                "a schedule goes through optax.inject_hyperparams."
            )
        pairs = _with_anchors(pairs, consensus_rate / outer_learning_rate)
    anchors = {"anchor_dtype": anchor_dtype, "anchor_memory": anchor_memory}
    return behind("noloco", optimizer, outer(period, sgd, pairs, **anchors))


@by_its_call
def _with_anchors(mechanism: Mechanism, ratio: float | jax.Array) -> Mechanism:
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
