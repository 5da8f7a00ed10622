"""The names that papers use, as chains."""

from typing import Any

import optax

from ._base import Communicator
from .topologies import Topology
from .transforms import all_reduce, gossip, on_updates


def dpsgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    communicator: Communicator,
    *,
    momentum: Any = None,
    nesterov: bool = False,
    consensus_rate: float = 1.0,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""D-PSGD: local SGD steps, each followed by an average over the neighbourhood.

    .. math:: x_i \leftarrow \textstyle\sum_j w_{ij} (x_j - \gamma g_j)
       \qquad\text{(with overlap: } \textstyle\sum_j w_{ij} x_j - \gamma g_i\text{)}

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      consensus_rate: see :func:`djax.gossip`.
      overlap: see :func:`djax.gossip`.

    Returns:
      `chain(sgd, gossip)`.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.dpsgd(0.1, ring, communicator, momentum=0.9)

    References:
      Lian et al., `Can Decentralized Algorithms Outperform Centralized Algorithms?
      <https://arxiv.org/abs/1705.09056>`_, 2017
    """
    return optax.chain(
        optax.sgd(learning_rate, momentum, nesterov),
        gossip(topology, communicator, consensus_rate=consensus_rate, overlap=overlap),
    )


def all_reduce_sgd(
    learning_rate: optax.ScalarOrSchedule,
    communicator: Communicator,
    *,
    momentum: Any = None,
    nesterov: bool = False,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Data-parallel SGD: every worker steps along the mean of all gradients.

    .. math:: x \leftarrow x - \gamma \tfrac1n \textstyle\sum_j g_j

    The workers have to start equal and then stay so. It is the baseline that papers
    call AR-SGD or centralized SGD.

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      communicator: how messages travel.
      momentum: decay of the momentum, the same on every worker.
      nesterov: whether it is Nesterov's.
      overlap: step along the gradients of the step before; see
        :func:`djax.all_reduce`.

    Returns:
      `chain(on_updates(all_reduce), sgd)`.

    Examples:
      >>> import djax
      >>> optimizer = djax.all_reduce_sgd(0.1, djax.communicators.simulated(8))

    References:
      Goyal et al., `Accurate, Large Minibatch SGD <https://arxiv.org/abs/1706.02677>`_,
      2017
    """
    return optax.chain(
        on_updates(all_reduce(communicator, overlap=overlap)),
        optax.sgd(learning_rate, momentum, nesterov),
    )
