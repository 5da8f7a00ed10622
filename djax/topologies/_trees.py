"""Graphs without cycles, on which RelaySGD passes sums from worker to worker."""

from djax import _networkx as nx
from djax._values import check_integer

from ._from_networkx import Weights, from_links
from ._topology import Topology
from ._topology_checks import check_size
from .checks import check_undirected


def chain(size: int, *, weights: Weights = "metropolis") -> Topology:
    r"""A ring without the edge that closes it: the tree with the largest diameter.

    .. math:: \mathcal N_i = \{i - 1, i + 1\} \cap \{0, \dots, n - 1\}

    Args:
      size: number of workers.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology` of 2 rounds.

    Raises:
      ValueError: the size is not a positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.chain(16)
      Topology(chain, 16 workers, 15 edges, 2 rounds, spectral gap 0.0128)
    """
    size = check_size("chain", size)
    return from_links("chain", size, [(i, i + 1) for i in range(size - 1)], weights)


def star(size: int, *, weights: Weights = "metropolis") -> Topology:
    r"""All workers talk to worker 0 only: the tree with the smallest diameter.

    .. math:: \mathcal N_0 = \{1, \dots, n - 1\}, \quad \mathcal N_i = \{0\}

    Args:
      size: number of workers.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology` of `size - 1` rounds, since the hub talks to one worker at a
      time.

    Raises:
      ValueError: the size is not a positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.star(5)
      Topology(star, 5 workers, 4 edges, 4 rounds, spectral gap 0.2)
    """
    size = check_size("star", size)
    return from_links("star", size, [(0, i) for i in range(1, size)], weights)


def binary_tree(size: int, *, weights: Weights = "metropolis") -> Topology:
    r"""A binary heap whose root is worker 1, with worker 0 as a neighbour of the root.

    .. math:: \text{parent}(i) = \lfloor i / 2 \rfloor \text{ for } i \ge 2, \quad
              \mathcal N_0 = \{1\}

    Args:
      size: number of workers.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology` of at most 3 rounds.

    Raises:
      ValueError: the size is not a positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.binary_tree(8).neighbors(2)
      (1, 4, 5)

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021
    """
    size = check_size("binary_tree", size)
    links = [(i // 2, i) for i in range(1, size)]
    return from_links("binary_tree", size, links, weights)


def double_binary_trees(
    size: int, *, weights: Weights = "metropolis"
) -> tuple[Topology, Topology]:
    r"""Two binary trees: the leaves of one are mostly inner nodes of the other.

    The second tree is the first one with worker :math:`i` renamed to
    :math:`n - 1 - i`. When each carries half of the coordinates, every worker except
    the first and the last one sends as much as on a ring.

    Args:
      size: number of workers.
      weights: as in :func:`from_networkx`.

    Returns:
      The tree of :func:`binary_tree` and its reverse.

    Raises:
      ValueError: the size is not a positive integer.

    Examples:
      >>> from djax import topologies
      >>> tree, reverse = topologies.double_binary_trees(16)
      >>> [len(tree.neighbors(i) + reverse.neighbors(i)) for i in range(5)]
      [2, 4, 4, 4, 4]

    References:
      Sanders, Speck and Träff, `Two-tree algorithms for full bandwidth broadcast,
      reduction and scan <https://doi.org/10.1016/j.parco.2009.09.001>`_, 2009

      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021
    """
    size = check_size("double_binary_trees", size)
    links = [(size - 1 - i // 2, size - 1 - i) for i in range(1, size)]
    return (
        binary_tree(size, weights=weights),
        from_links("reversed_binary_tree", size, links, weights),
    )


def regular_tree(
    size: int, degree: int = 3, *, weights: Weights = "metropolis"
) -> Topology:
    r"""A tree whose inner workers all have the same number of neighbours.

    Worker 0 is the root and has :math:`d` children, all others have :math:`d - 1`;
    they are numbered breadth first, until the size is reached:

    .. math:: \text{parent}(i) = \max\bigl(0, \lfloor (i - 2) / (d - 1) \rfloor\bigr)

    Args:
      size: number of workers.
      degree: the number of neighbours of an inner worker, :math:`d \ge 2`.
      weights: as in :func:`from_networkx`.

    Returns:
      A :class:`Topology` of at most `degree` rounds.

    Raises:
      ValueError: the size is not a positive integer, or the degree is below 2.

    Examples:
      >>> from djax import topologies
      >>> tree = topologies.regular_tree(10)
      >>> [tree.neighbors(i) for i in range(4)]
      [(1, 2, 3), (0, 4, 5), (0, 6, 7), (0, 8, 9)]

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021
    """
    size = check_size("regular_tree", size)
    degree = check_integer(degree, "regular_tree: degree", minimum=2)
    links = [(max(0, (i - 2) // (degree - 1)), i) for i in range(1, size)]
    return from_links("regular_tree", size, links, weights)


def spanning_tree(
    topology: Topology, root: int = 0, *, weights: Weights = "metropolis"
) -> Topology:
    r"""The shortest paths from one worker to all others.

    Where several shortest paths lead to a worker, the tree contains the path whose
    workers come first in lexicographic order.

    Args:
      topology: any topology.
      root: the worker at which the paths start.
      weights: as in :func:`from_networkx`. Every edge of the tree has multiplicity 1.

    Returns:
      A :class:`Topology` without cycles, in which each worker is as far from the root
      as before.

    Raises:
      TypeError: `topology` is not a topology, but for example a graph of networkx.
      ValueError: the topology has no such root.

    Examples:
      >>> from djax import topologies
      >>> topologies.spanning_tree(topologies.social_network(), root=5)
      Topology(spanning_tree, 32 workers, 31 edges, 7 rounds, spectral gap 0.00915)

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021
    """
    check_undirected("spanning_tree", topology)
    if isinstance(root, bool) or root not in range(topology.size):
        raise ValueError(
            f"spanning_tree: root must be one of 0, ..., {topology.size - 1}, "
            f"got {root!r}"
        )
    # A breadth-first search reaches each worker first by the path that comes first in
    # lexicographic order, since it visits neighbours in ascending order.
    links = nx.bfs_edges(topology.graph, int(root))
    return from_links("spanning_tree", topology.size, links, weights)
