"""What the builders share: from any graph, or from a list of links, to a topology."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable

import networkx as nx

from ._checks import (
    check_graph,
    check_is_graph,
)
from ._topology import Topology
from ._weights import (
    Weights,
    mixing_matrix,
)


def from_networkx(
    graph: nx.Graph, *, weights: Weights = "metropolis", name: str = "graph"
) -> Topology:
    r"""Any connected undirected graph.

    With :math:`m_{ij}` the multiplicity of an edge (its attribute `multiplicity`, 1
    where missing) and :math:`d_i = \sum_j m_{ij}` the degree, the weights are one of

    * `"metropolis"`: :math:`w_{ij} = m_{ij} / (1 + \max(d_i, d_j))`;
    * `"uniform"`: :math:`w_{ij} = m_{ij} / (1 + \max_k d_k)`;
    * `"lazy"`: :math:`(W + I) / 2` of the Metropolis weights, which has no negative
      eigenvalues;
    * `"best_constant"`: :math:`w_{ij} = w \, m_{ij}` with the :math:`w` of the largest
      spectral gap, :math:`2 / (\lambda_2 + \lambda_n)` of the eigenvalues of the
      graph's Laplacian;
    * `"fastest"`: of all symmetric weights those with the largest spectral gap,
      whatever the multiplicities. The optimisation that finds them takes some seconds
      for a graph of several hundred edges;
    * a number :math:`w`: :math:`w_{ij} = w \, m_{ij}`;
    * an array `[n, n]`: the mixing matrix itself,

    and :math:`w_{ii} = 1 - \sum_{j \neq i} w_{ij}`. Weights of
    `"best_constant"`, of `"fastest"` and of an array may be negative, as long as the
    spectral gap is positive. Every builder has this keyword.

    Args:
      graph: the nodes are the workers. The numbers `0, ..., n - 1`, of whatever type
        and in whatever order, stay what they are. Other nodes are numbered in their
        sorted order: numbers by value, strings alphabetically ("10" before "2"). Nodes
        that cannot be sorted, such as numbers among strings, are numbered in the order
        of the graph.
      weights: `"metropolis"`, `"uniform"`, `"lazy"`, `"best_constant"`, `"fastest"`,
        the weight of every edge, or the symmetric doubly stochastic `float64[n, n]`,
        whose rows and columns are the workers by these numbers, not the nodes in the
        order of the graph.
      name: what pictures and `repr` call it.

    Returns:
      A :class:`Topology`.

    Raises:
      TypeError: the graph is none of networkx.
      ValueError: the graph is directed, not connected, or has an edge from a worker to
        itself; or the weights are unknown, not doubly stochastic, or never reach a
        consensus, as those of `ring(4, weights=0.5)` do not.

    Examples:
      >>> import networkx as nx
      >>> from djax import topologies
      >>> topologies.from_networkx(nx.petersen_graph(), name="petersen")
      Topology(petersen, 10 workers, 15 edges, 4 rounds, spectral gap 0.5)
      >>> topologies.ring(3, weights=0.25).mixing_matrix.tolist()
      [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
      >>> topologies.star(16)
      Topology(star, 16 workers, 15 edges, 15 rounds, spectral gap 0.0625)
      >>> topologies.star(16, weights="fastest")
      Topology(star, 16 workers, 15 edges, 15 rounds, spectral gap 0.118)

    References:
      Xiao and Boyd, `Fast linear iterations for distributed averaging
      <https://doi.org/10.1016/j.sysconle.2004.02.022>`_, 2004

      Xiao, Boyd and Lall, `Distributed average consensus with time-varying Metropolis
      weights <https://stanford.edu/~boyd/papers/avg_metropolis.html>`_, 2006
    """
    check_is_graph("from_networkx", graph)
    graph = _numbered(graph)
    check_graph(graph)
    return Topology(graph, mixing_matrix(graph, weights), name)


def _numbered(graph: nx.Graph) -> nx.Graph:
    """The graph with the workers' numbers as its nodes."""
    workers = range(len(graph))
    if set(graph) == set(workers):  # Perhaps of another type, such as 1.0.
        return graph
    nodes = list(graph)
    # Sets are compared, too, but have no order.
    with contextlib.suppress(TypeError, ValueError):
        in_order = sorted(graph)
        if all(a < b for a, b in itertools.pairwise(in_order)):
            nodes = in_order
    return nx.relabel_nodes(graph, dict(zip(nodes, workers, strict=True)))


def from_links(
    name: str, size: int, links: Iterable[tuple[int, int]], weights: Weights
) -> Topology:
    """A topology whose edges have the multiplicity in which their links come."""
    graph = nx.Graph()
    graph.add_nodes_from(range(size))
    links = ((min(link), max(link)) for link in links)
    for (i, j), multiplicity in Counter(links).items():
        graph.add_edge(i, j, multiplicity=multiplicity)
    return from_networkx(graph, weights=weights, name=name)
