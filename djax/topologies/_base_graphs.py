"""Schedules that average exactly after a period, with few partners in each step."""

from itertools import count, takewhile
from typing import TYPE_CHECKING

import numpy as np

from djax._values import check_integer

from ._schedule import Schedule
from ._steps import Block, average, block, from_sparse, with_blocks
from ._topology_checks import check_power_of_two, check_size

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def one_peer_hypercube(size: int) -> Schedule:
    r"""Averages in pairs, and exactly after a period, if the size is a power of two.

    In each step, a worker averages with the worker whose binary number differs from its
    own in one digit. The digit changes from step to step:

    .. math:: x_i \leftarrow \tfrac 1 2 x_i + \tfrac 1 2 x_{i \oplus 2^k},
              \quad k = t \bmod \log_2 n

    After a period all workers have the mean.

    Args:
      size: number of workers, a power of two.

    Returns:
      A symmetric :class:`Schedule` of period :math:`\log_2 n`, with one round per step.

    Raises:
      ValueError: the size is not a power of two.

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
    return _schedule(_hyper_hypercube(size, 1), "one_peer_hypercube")


def hyper_hypercube(size: int, max_degree: int = 1) -> Schedule:
    r"""Averages exactly after a period, in groups of few workers, for suitable sizes.

    The size is written as a product :math:`n = f_1 f_2 \cdots f_P`, in which
    :math:`f_l \le k + 1` for the degree :math:`k`. A worker's number then has :math:`P`
    digits, and the :math:`l`-th digit takes the values :math:`0, \dots, f_l - 1`. In
    step :math:`l`, workers average if their numbers differ in the :math:`l`-th digit
    and in no other:

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
      ValueError: the size or the degree is not a positive integer, or the size has a
        prime factor above `max_degree + 1`.

    Examples:
      >>> from djax import topologies
      >>> topologies.hyper_hypercube(12, max_degree=2)
      Schedule(hyper_hypercube, 12 workers, period 3, 5 rounds, spectral gap 1)

    References:
      Takezawa et al., `Beyond Exponential Graph: Communication-Efficient Topologies for
      Decentralized Learning <https://arxiv.org/abs/2305.11420>`_, 2023, Algorithm 1
    """
    size, degree = _arguments("hyper_hypercube", size, max_degree)
    if _factors(size, degree)[1] > 1:
        raise ValueError(
            f"hyper_hypercube: {size} workers are no product of numbers of at most "
            f"max_degree + 1 = {degree + 1}; base_graph({size}, max_degree={degree}) "
            "takes any number of workers"
        )
    return _schedule(_hyper_hypercube(size, degree), "hyper_hypercube")


def simple_base_graph(size: int, max_degree: int = 1) -> Schedule:
    r"""Averages exactly after a period, with few partners a step, for any size.

    The steps of :func:`hyper_hypercube` average exactly, but the number of workers must
    have small prime factors only. Any other number is a sum of such numbers: with the
    degree :math:`k`, the size is written in base :math:`k + 1`. Each digit that is not
    zero stands for one part of the workers. The value of the digit is the number of
    equal subparts of which the part consists.

    1. Every part averages by the steps of :func:`hyper_hypercube`.
    2. The parts become donors one after the other, the largest first. In the step of a
       donor, every worker of the smaller parts averages with one worker of each subpart
       of the donor. After that the mean of each subpart is the mean of the donor and
       the smaller parts together. Those workers of the donor that have no partner in a
       smaller part average with one another.
    3. After its step as a donor, each subpart averages by :func:`hyper_hypercube`.

    Args:
      size: number of workers.
      max_degree: the largest number of partners of a worker in a step, :math:`k`.

    Returns:
      A symmetric :class:`Schedule`. If the size has no prime factor above
      `max_degree + 1`, it is the schedule of :func:`hyper_hypercube`. The schedule of
      :func:`base_graph` is never longer.

    Raises:
      ValueError: the size or the degree is not a positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.simple_base_graph(6)
      Schedule(simple_base_graph, 6 workers, period 5, 5 rounds, spectral gap 1)

    References:
      Takezawa et al., `Beyond Exponential Graph: Communication-Efficient Topologies for
      Decentralized Learning <https://arxiv.org/abs/2305.11420>`_, 2023, Algorithm 2
    """
    size, degree = _arguments("simple_base_graph", size, max_degree)
    return _schedule(simple_base_graph_steps(size, degree), "simple_base_graph")


def base_graph(size: int, max_degree: int = 1) -> Schedule:
    r"""Averages exactly after a short period, with few partners a step, for any size.

    Gossip on a fixed graph with few neighbours only comes closer to the average. The
    steps of this schedule reach the average exactly, whatever the number of workers,
    with at most :math:`k` partners for each worker in a step.

    The size is split into :math:`n = P R`: all prime factors of :math:`P` are at most
    :math:`k + 1`, and those of :math:`R` are larger. The workers are divided into
    :math:`P` groups of :math:`R` consecutive workers. First each group averages, by the
    steps of :func:`simple_base_graph`. Then the workers at the same position of their
    groups average, by the steps of :func:`hyper_hypercube`. If
    :func:`simple_base_graph` of all workers has fewer steps, it is used instead.

    Args:
      size: number of workers.
      max_degree: the largest number of partners of a worker in a step, :math:`k`.

    Returns:
      A symmetric :class:`Schedule`. Its period grows with the logarithm of the size, in
      base :math:`k + 1`.

    Raises:
      ValueError: the size or the degree is not a positive integer.

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
    rough = _factors(size, degree)[1]
    runs = np.arange(size).reshape(-1, rough)
    joined = [
        with_blocks(size, [block(groups, matrix)])
        for groups, matrices in (
            (runs, simple_base_graph_steps(rough, degree)),
            (runs.T, _hyper_hypercube(size // rough, degree)),
        )
        for matrix in matrices
    ]
    simple = simple_base_graph_steps(size, degree)
    steps = simple if len(simple) < len(joined) else joined
    return _schedule(steps, "base_graph")


def _schedule(steps: "list[csr_array]", name: str) -> Schedule:
    return Schedule(from_sparse(steps), name)


def _arguments(name: str, size: int, max_degree: int) -> tuple[int, int]:
    return check_size(name, size), check_integer(max_degree, f"{name}: max_degree")


def _factors(size: int, degree: int) -> tuple[list[int], int]:
    """Splits a size into ascending factors of at most `degree + 1`, and a rest."""
    factors = []
    for factor in range(degree + 1, 1, -1):
        while size % factor == 0:
            factors.append(factor)
            size //= factor
    return factors[::-1], size


def _hyper_hypercube(size: int, degree: int) -> "list[csr_array]":
    """The steps of :func:`hyper_hypercube`."""
    matrices, stride = [], 1
    for factor in _factors(size, degree)[0]:
        workers = np.arange(size).reshape(-1, factor, stride)
        groups = workers.transpose(0, 2, 1).reshape(-1, factor)
        matrices.append(with_blocks(size, [average(groups)]))
        stride *= factor
    # One worker alone has a step in which it is silent.
    return matrices or [with_blocks(1, [])]


def simple_base_graph_steps(
    size: int, degree: int, *, inner_edges: bool = True
) -> "list[csr_array]":
    """The steps of :func:`simple_base_graph`.

    The workers of a donor that have no partner in a smaller part average with one
    another if `inner_edges` is True. The result of a period does not depend on these
    edges, and one of the published variants leaves them out.
    """
    if _factors(size, degree)[1] == 1:
        return _hyper_hypercube(size, degree)
    parts = _parts(size, degree + 1)
    first = [_hyper_hypercube(part.size, degree) for part in parts]
    last = [_last_steps(part, degree) for part in parts]
    starts = [min(place, len(parts) - 1) for place in range(1, len(parts) + 1)]
    matrices = []
    for t in range(len(first[0])):
        steps = [steps[t % len(steps)] for steps in first]
        blocks = map(block, (part.reshape(1, -1) for part in parts), steps)
        matrices.append(with_blocks(size, blocks))
    for t in range(1 + len(last[0][1])):
        # A part makes its last steps after its step as the donor, the smallest part,
        # which never is a donor, after the step of the last donor.
        done = [place for place, start in enumerate(starts) if t >= start]
        blocks = [
            block(groups, steps[(t - starts[p]) % len(steps)])
            for p in done
            for groups, steps in [last[p]]
        ]
        if t < len(parts) - 1:
            blocks += _donation(parts[t], parts[t + 1 :], degree + 1, inner_edges)
        matrices.append(with_blocks(size, blocks))
    return matrices


def _parts(size: int, base: int) -> list[np.ndarray]:
    """For each digit that is not zero its part: `int[digit, base**place]` workers."""
    parts, start = [], 0
    for width in reversed([*takewhile(size.__ge__, (base**q for q in count()))]):
        if digit := size // width % base:
            stop = start + digit * width
            parts.append(np.arange(start, stop).reshape(digit, width))
            start = stop
    return parts


def _last_steps(part: np.ndarray, degree: int) -> "tuple[np.ndarray, list[csr_array]]":
    """By which steps a part averages after each subpart has the mean of all.

    Returns:
      The groups that average, and their steps.
    """
    # Subparts of one worker each agree but for rounding.
    groups = part.T if part.shape[1] == 1 else part
    return groups, _hyper_hypercube(groups.shape[1], degree)


def _donation(
    donor: np.ndarray, smaller: list[np.ndarray], base: int, inner_edges: bool
) -> list[Block]:
    """Makes each worker of the smaller parts average with one of each subpart."""
    receivers = np.concatenate([part.ravel() for part in reversed(smaller)])
    share = donor.size / (donor.size + len(receivers))
    weight = share / len(donor)
    # A receiver, and its givers.
    groups = np.column_stack([receivers, donor.T[::-1][: len(receivers)]])
    matrix = np.diag([1 - share, *[1 - weight] * len(donor)])
    matrix[0, 1:] = matrix[1:, 0] = weight
    rest = donor[:, : donor.shape[1] - len(receivers)].ravel()
    if not inner_edges:
        return [block(groups, matrix)]
    whole = len(rest) // base * base
    tail = rest[whole:].reshape(-1, max(len(rest) - whole, 1))
    return [
        block(groups, matrix),
        average(rest[:whole].reshape(-1, base)),
        average(tail),
    ]
