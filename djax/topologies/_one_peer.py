"""Schedules in which each worker sends to one other worker a step."""

import numpy as np

from ._base_steps import hyper_hypercube_steps
from ._checks import (
    check_power_of_two,
    check_size,
)
from ._schedule import Schedule


def one_peer_exponential(size: int) -> Schedule:
    r"""Each worker hears one other per step, at the distances 1, 2, 4, ... in turn.

    .. math:: x_i \leftarrow \tfrac 1 2 x_i + \tfrac 1 2 x_{(i - 2^k) \bmod n},
              \quad k = t \bmod D, \quad D = \lfloor \log_2 (n - 1) \rfloor + 1

    If the size is a power of two, a period averages exactly.

    Args:
      size: number of workers.

    Returns:
      A :class:`Schedule` of period :math:`D`, with one round per step.

    Raises:
      ValueError: the size is no positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.one_peer_exponential(8).matrices.shape
      (3, 8, 8)

    References:
      Assran et al., `Stochastic Gradient Push for Distributed Deep Learning
      <https://arxiv.org/abs/1811.10792>`_, 2019

      Ying et al., `Exponential Graph is Provably Efficient for Decentralized Deep
      Training <https://arxiv.org/abs/2110.13363>`_, 2021
    """
    size = check_size("one_peer_exponential", size)
    own = np.eye(size)
    # One worker alone has a period of one step, in which it keeps what it has.
    steps = max(1, (size - 1).bit_length())
    matrices = [(own + np.roll(own, 2**k, axis=0)) / 2 for k in range(steps)]
    return Schedule(np.array(matrices), "one_peer_exponential")


def one_peer_hypercube(size: int) -> Schedule:
    r"""Averages exactly after a period, in pairs, for powers of two.

    Those workers average whose binary numbers differ in one digit, in turn in each:

    .. math:: x_i \leftarrow \tfrac 1 2 x_i + \tfrac 1 2 x_{i \oplus 2^k},
              \quad k = t \bmod \log_2 n

    After a period all workers have the mean.

    Args:
      size: number of workers, a power of two.

    Returns:
      A symmetric :class:`Schedule` of period :math:`\log_2 n`, with one round per step.

    Raises:
      ValueError: the size is no power of two.

    Examples:
      >>> from djax import topologies
      >>> topologies.one_peer_hypercube(8)
      Schedule(one_peer_hypercube, 8 workers, period 3, 3 rounds, spectral gap 1)

    References:
      Takezawa et al., `Beyond Exponential Graph: Communication-Efficient Topologies for
      Decentralized Learning <https://arxiv.org/abs/2305.11420>`_, 2023
    """
    size = check_size("one_peer_hypercube", size)
    check_power_of_two("one_peer_hypercube", size)
    matrices = hyper_hypercube_steps(size, degree=1)
    return Schedule(np.array(matrices), "one_peer_hypercube")
