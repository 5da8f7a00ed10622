"""Schedules of few partners a step that average exactly after a period."""

import numpy as np

from ._base_steps import (
    base_graph_steps,
    hyper_hypercube_steps,
    is_smooth,
    simple_base_graph_steps,
)
from ._checks import (
    check_integer,
    check_size,
)
from ._schedule import Schedule


def hyper_hypercube(size: int, max_degree: int = 1) -> Schedule:
    r"""Averages exactly after a period, in groups of few workers, for suitable sizes.

    With :math:`n = f_1 f_2 \cdots f_P`, where :math:`f_l \le k + 1` for the degree
    :math:`k`, a worker is a number of :math:`P` digits, the :math:`l`-th of which is
    below :math:`f_l`. In step :math:`l` those average who differ in this digit only:

    .. math:: x_i \leftarrow \frac 1 {f_l} \sum_{d = 0}^{f_l - 1} x_{i_1 \dots d \dots
              i_P}

    After a period all workers have the mean. With a degree of 1 the schedule is that of
    :func:`one_peer_hypercube`.

    Args:
      size: number of workers, a product of numbers of at most `max_degree + 1`.
      max_degree: the largest number of partners of a worker in a step, :math:`k`.

    Returns:
      A symmetric :class:`Schedule` whose period is the number of factors.

    Raises:
      ValueError: the size or the degree is no positive integer, or the size has a prime
        factor above `max_degree + 1`.

    Examples:
      >>> from djax import topologies
      >>> topologies.hyper_hypercube(12, max_degree=2)
      Schedule(hyper_hypercube, 12 workers, period 3, 5 rounds, spectral gap 1)

    References:
      Takezawa et al., `Beyond Exponential Graph: Communication-Efficient Topologies for
      Decentralized Learning <https://arxiv.org/abs/2305.11420>`_, 2023, Algorithm 1
    """
    size, degree = _arguments("hyper_hypercube", size, max_degree)
    if not is_smooth(size, degree):
        raise ValueError(
            f"hyper_hypercube: {size} workers are no product of numbers of at most "
            f"max_degree + 1 = {degree + 1}; base_graph({size}, max_degree={degree}) "
            "takes any number of workers"
        )
    return Schedule(np.array(hyper_hypercube_steps(size, degree)), "hyper_hypercube")


def simple_base_graph(size: int, max_degree: int = 1) -> Schedule:
    r"""Averages exactly after a period, with few partners a step, for any size.

    :func:`hyper_hypercube` averages exactly, but only numbers of workers with small
    prime factors. Other numbers are sums of such: with the degree :math:`k` the size is
    written in base :math:`k + 1`. Each digit that is not zero stands for one part of
    the workers, and the part consists of as many equal subparts as the digit says.

    1. Every part averages by the steps of :func:`hyper_hypercube`.
    2. The parts become donors one after the other, the largest first. In the step of a
       donor, every worker of the smaller parts averages with one worker of each subpart
       of the donor. After that the mean of each subpart is the mean of the donor and
       the smaller parts together. Workers of the donor without such a partner average
       with one another.
    3. After its step as a donor, each subpart averages by :func:`hyper_hypercube`.

    Args:
      size: number of workers.
      max_degree: the largest number of partners of a worker in a step, :math:`k`.

    Returns:
      A symmetric :class:`Schedule`; that of :func:`hyper_hypercube` if the size has no
      prime factor above `max_degree + 1`. :func:`base_graph` is never longer.

    Raises:
      ValueError: the size or the degree is no positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.simple_base_graph(6)
      Schedule(simple_base_graph, 6 workers, period 5, 5 rounds, spectral gap 1)

    References:
      Takezawa et al., `Beyond Exponential Graph: Communication-Efficient Topologies for
      Decentralized Learning <https://arxiv.org/abs/2305.11420>`_, 2023, Algorithm 2
    """
    size, degree = _arguments("simple_base_graph", size, max_degree)
    matrices = simple_base_graph_steps(size, degree)
    return Schedule(np.array(matrices), "simple_base_graph")


def base_graph(size: int, max_degree: int = 1) -> Schedule:
    r"""Averages exactly after a short period, with few partners a step, for any size.

    Gossip on a fixed graph with few neighbours only comes closer to the average. These
    steps reach it, whatever the number of workers, with at most :math:`k` partners for
    each worker in a step.

    The size is split into :math:`n = P R`: all prime factors of :math:`P` are at most
    :math:`k + 1`, and those of :math:`R` are larger. First the workers average within
    :math:`P` runs of :math:`R` consecutive ones, by :func:`simple_base_graph`. Then
    those that have the same place in their runs average by :func:`hyper_hypercube`.
    Where :func:`simple_base_graph` of all workers is shorter, it is used instead.

    Args:
      size: number of workers.
      max_degree: the largest number of partners of a worker in a step, :math:`k`.

    Returns:
      A symmetric :class:`Schedule`. Its period grows with the logarithm of the size, in
      base :math:`k + 1`.

    Raises:
      ValueError: the size or the degree is no positive integer.

    Examples:
      >>> from djax import topologies
      >>> schedule = topologies.base_graph(6)
      >>> schedule
      Schedule(base_graph, 6 workers, period 4, 4 rounds, spectral gap 1)
      >>> (schedule.matrices[3] @ schedule.matrices[2] @ schedule.matrices[1]
      ...  @ schedule.matrices[0] @ [6, 0, 0, 0, 0, 0]).round(12).tolist()
      [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]

    References:
      Takezawa et al., `Beyond Exponential Graph: Communication-Efficient Topologies for
      Decentralized Learning <https://arxiv.org/abs/2305.11420>`_, 2023, Algorithm 3
    """
    size, degree = _arguments("base_graph", size, max_degree)
    return Schedule(np.array(base_graph_steps(size, degree)), "base_graph")


def _arguments(name: str, size: int, max_degree: int) -> tuple[int, int]:
    return check_size(name, size), check_integer(max_degree, f"{name}: max_degree")
