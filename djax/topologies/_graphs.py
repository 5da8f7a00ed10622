"""Graphs with cycles, and the exponential graph with one partner a step."""

from math import isqrt

import numpy as np

from djax import _networkx as nx
from djax._values import check_integer

from ._from_networkx import Weights, from_links, from_networkx
from ._schedule import Schedule
from ._steps import hearing_one
from ._topology import Topology
from ._topology_checks import check_power_of_two, check_size


def ring(size: int, *, weights: Weights = "metropolis") -> Topology:
    r"""Each worker talks to the worker before it and the worker after it.

    .. math:: \mathcal N_i = \{i - 1, i + 1\} \bmod n

    A ring of two workers has one edge, not two.

    Args:
      size: number of workers.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology` of 2 rounds, or 3 for an odd number of workers.

    Raises:
      ValueError: the size is not a positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.ring(4).rounds
      ((1, 0, 3, 2), (3, 2, 1, 0))
    """
    size = check_size("ring", size)
    links = [(i, (i + 1) % size) for i in range(size if size > 2 else size - 1)]
    return from_links("ring", size, links, weights)


def complete(size: int, *, weights: Weights = "metropolis") -> Topology:
    r"""Every worker talks to all others, so that one step averages exactly.

    The Metropolis weights are all `1 / n`.

    .. math:: \mathcal N_i = \{j : j \neq i\}

    Args:
      size: number of workers.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology` of `size - 1` rounds, or `size` for an odd number of workers.

    Raises:
      ValueError: the size is not a positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.complete(8)
      Topology(complete, 8 workers, 28 edges, 7 rounds, spectral gap 1)
    """
    size = check_size("complete", size)
    links = [(i, j) for i in range(size) for j in range(i)]
    return from_links("complete", size, links, weights)


def torus(
    size: int, rows: int | None = None, *, weights: Weights = "metropolis"
) -> Topology:
    r"""A grid of workers, closed to a ring along each row and each column.

    Worker :math:`i = r c + k` sits in row :math:`r` and column :math:`k` of
    :math:`c` columns. Its neighbours are

    .. math:: r c + (k \pm 1 \bmod c), \quad i \pm c \bmod n

    In a row or column of two, both directions lead to the same neighbour: that edge has
    multiplicity 2.

    Args:
      size: number of workers.
      rows: a divisor of the size. By default the grid is as square as possible, with
        at least as many rows as columns.
      weights: as in :func:`from_networkx`. For three and more rows and columns, the
        Metropolis weights are all `1 / 5`.

    Returns:
      A :class:`Topology`.

    Raises:
      ValueError: there are not at least two full rows and two full columns.

    Examples:
      >>> from djax import topologies
      >>> topologies.torus(32)
      Topology(torus, 32 workers, 64 edges, 4 rounds, spectral gap 0.117)
      >>> topologies.torus(32).neighbors(0)
      (1, 3, 4, 28)

    References:
      Vogels, Karimireddy and Jaggi, `PowerGossip: Practical Low-Rank Communication
      Compression in Decentralized Deep Learning <https://arxiv.org/abs/2008.01425>`_,
      2020
    """
    size = check_size("torus", size)
    if rows is None:
        divisors = (c for c in range(isqrt(size), 0, -1) if size % c == 0)
        rows = size // next(divisors)
    columns, rest = divmod(size, check_integer(rows, "torus: rows"))
    if rest or (size > 1 and min(rows, columns) < 2):
        raise ValueError(
            f"torus: {size} workers are not {rows} rows (at least 2) of equally many "
            f"workers (at least 2); choose other numbers, or ring({size})"
        )
    links = []
    for i in range(size if size > 1 else 0):
        row, column = divmod(i, columns)
        right, below = row * columns + (column + 1) % columns, (i + columns) % size
        links += [(i, right), (i, below)]
    return from_links("torus", size, links, weights)


def hypercube(size: int, *, weights: Weights = "metropolis") -> Topology:
    r"""Workers whose binary numbers differ in one digit are neighbours.

    .. math:: \mathcal N_i = \{i \oplus 2^k : 2^k < n\}

    Args:
      size: number of workers, a power of two.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology` of :math:`\log_2 n` rounds.

    Raises:
      ValueError: the size is not a power of two.

    Examples:
      >>> from djax import topologies
      >>> topologies.hypercube(8).neighbors(5)
      (1, 4, 7)
    """
    size = check_size("hypercube", size)
    dimension = check_power_of_two("hypercube", size)
    links = [(i, i ^ 2**k) for i in range(size) for k in range(dimension) if i >> k & 1]
    return from_links("hypercube", size, links, weights)


def exponential(size: int, *, weights: Weights = "metropolis") -> Topology:
    r"""Each worker talks to the workers at the distances 1, 2, 4, ... on both sides.

    .. math:: \mathcal N_i = \{i \pm 2^k \bmod n : 2^k \le n / 2\}

    When :math:`2^k = n / 2`, both sides lead to the same neighbour, the antipode. The
    edge between antipodes has multiplicity 2.

    Args:
      size: number of workers.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology`.

    Raises:
      ValueError: the size is not a positive integer.

    Examples:
      >>> from djax import topologies
      >>> exponential = topologies.exponential(16)
      >>> exponential.neighbors(0)
      (1, 2, 4, 8, 12, 14, 15)
      >>> exponential.multiplicity(0, 8)
      2

    References:
      Ying et al., `Exponential Graph is Provably Efficient for Decentralized Deep
      Training <https://arxiv.org/abs/2110.13363>`_, 2021

      Nabli, Belilovsky and Oyallon, `A2CiD2: Accelerating Asynchronous Communication in
      Decentralized Deep Learning <https://arxiv.org/abs/2306.08289>`_, 2023
    """
    size = check_size("exponential", size)
    offsets = [2**k for k in range(size.bit_length()) if 2 * 2**k <= size]
    # An edge between antipodes is found from both of its ends, and so has two links.
    links = [(i, (i + offset) % size) for i in range(size) for offset in offsets]
    return from_links("exponential", size, links, weights)


def one_peer_exponential(size: int) -> Schedule:
    r"""Each worker hears one worker a step, at the distances 1, 2, 4, ... in turn.

    .. math:: x_i \leftarrow \tfrac 1 2 x_i + \tfrac 1 2 x_{(i - 2^k) \bmod n},
              \quad k = t \bmod D, \quad D = \lfloor \log_2 (n - 1) \rfloor + 1

    If the size is a power of two, a period averages exactly.

    Args:
      size: number of workers.

    Returns:
      A :class:`Schedule` of period :math:`D`, with one round per step.

    Raises:
      ValueError: the size is not a positive integer.

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
    # One worker alone has a period of one step, in which it keeps what it has.
    shifts = 2 ** np.arange(max(1, (size - 1).bit_length()))
    sources = (np.arange(size) - shifts[:, np.newaxis]) % size
    return Schedule(hearing_one(sources, 0.5), "one_peer_exponential")


def social_network(size: int = 32, *, weights: Weights = "metropolis") -> Topology:
    """Davis' Southern Women: 18 women and the 14 events that they went to.

    Workers 0 to 17 are the women, 18 to 31 the events, in the order of networkx. The 89
    edges say which woman went to which event: a worker has 2 to 14 neighbours.

    Args:
      size: number of workers, 32.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology` of 14 rounds.

    Raises:
      ValueError: the size is not 32.

    Examples:
      >>> from djax import topologies
      >>> topologies.social_network()
      Topology(social_network, 32 workers, 89 edges, 14 rounds, spectral gap 0.0821)

    References:
      Davis, Gardner and Gardner, Deep South, 1941

      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021
    """
    graph = nx.davis_southern_women_graph()
    if size != len(graph):
        raise ValueError(f"social_network has {len(graph)} workers, got size={size!r}")
    # from_networkx would number the nodes in the order of their names.
    graph = nx.convert_node_labels_to_integers(graph)
    return from_networkx(graph, weights=weights, name="social_network")
