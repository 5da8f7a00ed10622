"""A topology from any graph, and the rules that give weights to its edges."""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from djax import _networkx as nx
from djax._values import describe

from ._rounding import numbers
from ._semidefinite import fastest_weights
from ._sparse import add_diagonal, edge_array, from_edges
from ._topology import Topology
from ._topology_checks import NEGLIGIBLE, TOLERANCE, check_graph, check_is_graph

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Rule = Literal["metropolis", "uniform", "lazy", "best_constant", "fastest"]
Weights = Rule | float | npt.ArrayLike

# The sum of float64 weights that should be 1 differs from 1 by less than this.
_ROUNDING = 1e-13


def from_networkx(
    graph: "nx.Graph", *, weights: Weights = "metropolis", name: str = "graph"
) -> Topology:
    r"""Makes a topology of any connected undirected graph.

    With :math:`m_{ij}` the multiplicity of an edge (its attribute `multiplicity`, 1
    where missing) and :math:`d_i = \sum_j m_{ij}` the degree, the weights are one of

    * `"metropolis"`: :math:`w_{ij} = m_{ij} / (1 + \max(d_i, d_j))`;
    * `"uniform"`: :math:`w_{ij} = m_{ij} / (1 + \max_k d_k)`;
    * `"lazy"`: :math:`(W + I) / 2` with the Metropolis weights :math:`W`, which has no
      negative eigenvalues;
    * `"best_constant"`: :math:`w_{ij} = w \, m_{ij}` with that number :math:`w` which
      gives the largest spectral gap. It is :math:`2 / (\lambda_2 + \lambda_n)`, with
      eigenvalues of the graph's Laplacian;
    * `"fastest"`: the weights with the largest spectral gap among all symmetric ones,
      whatever the multiplicities. The optimisation that finds them takes some seconds
      for a graph of several hundred edges;
    * a number :math:`w`: :math:`w_{ij} = w \, m_{ij}`;
    * an array `[n, n]`: the mixing matrix itself,

    and :math:`w_{ii} = 1 - \sum_{j \neq i} w_{ij}`. Weights of
    `"best_constant"`, of `"fastest"` and of an array may be negative, as long as the
    spectral gap is positive. Every builder has this keyword.

    Args:
      graph: the graph, whose nodes are the workers. If the nodes are the numbers
        `0, ..., n - 1`, of any type and in any order, they keep their numbers. Other
        nodes are numbered in their sorted order: numbers by value, strings
        alphabetically ("10" before "2"). Nodes that cannot be sorted, such as numbers
        among strings, are numbered in the order of the graph.
      weights: `"metropolis"`, `"uniform"`, `"lazy"`, `"best_constant"`, `"fastest"`,
        the weight of every edge, or the symmetric doubly stochastic `float64[n, n]`.
        Rows and columns of such a matrix are the workers by their numbers, not the
        nodes in the order of the graph.
      name: the name that pictures and `repr` show.

    Returns:
      A :class:`Topology`.

    Raises:
      TypeError: the graph is not a graph of networkx.
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
    return Topology(graph, _mixing_matrix(graph, weights), name)


def from_links(
    name: str, size: int, links: Iterable[tuple[int, int]], weights: Weights
) -> Topology:
    """Makes a topology out of pairs of workers.

    Args:
      name: name of the topology.
      size: number of workers.
      links: pairs of neighbours, in either order. The multiplicity of an edge is the
        number of times that the pair occurs.
      weights: the weights of the edges, as in :func:`from_networkx`.
    """
    graph = nx.empty_graph(size)
    counts = Counter((min(link), max(link)) for link in links)
    graph.add_edges_from((i, j, {"multiplicity": m}) for (i, j), m in counts.items())
    return from_networkx(graph, weights=weights, name=name)


def _numbered(graph: "nx.Graph") -> "nx.Graph":
    """Returns the graph with the workers' numbers as its nodes."""
    workers = range(len(graph))
    if set(graph) == set(workers):  # They may be of another type, such as 1.0.
        return graph
    nodes = list(graph)
    # Python also compares sets, but "is a subset of" does not put them in an order.
    with contextlib.suppress(TypeError, ValueError):
        in_order = sorted(graph)
        if all(a < b for a, b in itertools.pairwise(in_order)):
            nodes = in_order
    return nx.relabel_nodes(graph, dict(zip(nodes, workers, strict=True)))


def _mixing_matrix(graph: "nx.Graph", weights: Weights) -> Any:
    """The mixing matrix that `weights` stands for, `float64[n, n]`.

    Only the name of a rule and a constant weight are checked here. A given array is
    returned as it is, since :class:`Topology` checks it.
    """
    if isinstance(weights, str) and weights in _RULES:
        return _RULES[weights](graph) if len(graph) > 1 else np.ones((1, 1))
    array = numbers(weights)
    if array is None:
        raise ValueError(
            f"weights={describe(weights)} is unknown; choose one of "
            f"{', '.join(_RULES)}, a number (the weight of every edge), or an array "
            "[n, n]"
        )
    return _constant(graph, array.item()) if array.ndim == 0 else array


def _metropolis(graph: "nx.Graph") -> "csr_array":
    size, edges = len(graph), edge_array(graph)
    _, degree = _adjacency(graph)
    larger = np.maximum(degree[edges[:, 0]], degree[edges[:, 1]])
    return _with_own(from_edges(size, edges, edges[:, 2] / (1 + larger)))


def _uniform(graph: "nx.Graph") -> "csr_array":
    size, edges = len(graph), edge_array(graph)
    _, degree = _adjacency(graph)
    return _with_own(from_edges(size, edges, edges[:, 2] / (1 + degree.max())))


def _lazy(graph: "nx.Graph") -> "csr_array":
    return add_diagonal(_metropolis(graph), np.ones(len(graph))) / 2


def _best_constant(graph: "nx.Graph") -> "csr_array":
    adjacency, degree = _adjacency(graph)
    laplacian = np.diag(degree) - adjacency.toarray()
    return _with_own(best_constant(laplacian) * adjacency)


def _fastest(graph: "nx.Graph") -> "csr_array":
    # 1 at one end of each edge, -1 at its other end.
    incidence = nx.incidence_matrix(graph, range(len(graph)), oriented=True).toarray()
    start = best_constant(incidence @ incidence.T)
    edges = np.array(graph.edges, np.int64)
    values = fastest_weights(incidence, start)
    return _with_own(from_edges(len(graph), edges, values))


def _constant(graph: "nx.Graph", weight: float) -> "csr_array":
    adjacency, degree = _adjacency(graph)
    if not weight > 0:
        raise ValueError(f"weights={weight} must be positive")
    if weight * degree.max() > 1 + TOLERANCE:
        raise ValueError(
            f"weights={weight} leaves worker {degree.argmax()} of degree "
            f"{degree.max()} a negative weight for its own value; "
            f"{_largest_constant(graph, degree)}"
        )
    if weight * degree.min() >= 1 - NEGLIGIBLE and nx.is_bipartite(graph):
        raise ValueError(
            f"weights={weight} leaves no worker a weight for its own value: on this "
            "graph, which is bipartite, the workers would swap their values for ever "
            f"and reach no consensus; {_largest_constant(graph, degree)}"
        )
    return _with_own(weight * adjacency)


def _largest_constant(graph: "nx.Graph", degree: np.ndarray) -> str:
    """Says which edge weights are small enough: the remedy in an error."""
    if degree.min() == degree.max() and nx.is_bipartite(graph):
        smaller = math.floor(1e6 / (1 + degree.max())) / 1e6
        return f"it has to be smaller than {1 / degree.max():.6g}, such as {smaller}"
    largest = math.floor(1e6 / degree.max()) / 1e6
    return f"the largest admissible weight is {largest}"


_RULES: dict[str, Callable[["nx.Graph"], "csr_array"]] = {
    "metropolis": _metropolis,
    "uniform": _uniform,
    "lazy": _lazy,
    "best_constant": _best_constant,
    "fastest": _fastest,
}


def best_constant(laplacian: np.ndarray) -> float:
    r"""The weight that all edges should have for workers to come together fastest.

    It minimises the largest modulus of the eigenvalues of :math:`I - w L`, apart from
    the eigenvalue 1 of the consensus. It is :math:`2 / (\lambda_2 + \lambda_n)`, since
    there the eigenvalues :math:`1 - w \lambda_2` and :math:`1 - w \lambda_n` are at the
    same distance from zero.
    """
    eigenvalues = np.linalg.eigvalsh(laplacian)
    return float(2 / (eigenvalues[1] + eigenvalues[-1]))


def _adjacency(graph: "nx.Graph") -> "tuple[csr_array, np.ndarray]":
    """The multiplicities, `float64[n, n]`, and the degrees, `int64[n]`."""
    edges = edge_array(graph)
    adjacency = from_edges(len(graph), edges, edges[:, 2].astype(np.float64))
    return adjacency, adjacency.sum(axis=1).astype(np.int64)


def _with_own(matrix: "csr_array") -> "csr_array":
    """Fills the diagonal, the workers' weights for themselves: rows then sum to 1."""
    rest = 1 - matrix.sum(axis=1)
    # If the other weights sum to 1 already, rounding may leave a little less than 0.
    own = np.where(rest > -_ROUNDING, np.maximum(rest, 0.0), rest)
    return add_diagonal(matrix, own)
