"""Checks of graphs and weights, with errors that name the place and the remedy."""

from typing import TYPE_CHECKING, Any

import numpy as np

from djax import _networkx as nx
from djax._values import check_integer, describe, is_array, is_communicator

from . import _sparse

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# The sum of float64 weights that should be 1 differs from 1 by far less than this.
TOLERANCE = 1e-9
# Rounding leaves smaller weights where 0 is meant. A real weight of this size would
# need millions of steps to bring two workers together.
NEGLIGIBLE = 1e-6


def check_size(name: str, size: Any) -> int:
    """Returns a number of workers as an `int`.

    Args:
      name: name of the builder, for the error.
      size: the first argument of the builder, as the user passed it.

    Raises:
      ValueError: the size is not a positive integer.
    """
    try:
        return check_integer(size, f"{name}: size")
    except ValueError as error:
        if isinstance(size, (int, float, np.number)):
            raise
        remedy = f"the number of workers comes first, as in {name}(8)"
        if is_communicator(size):
            remedy = f"use {name}(communicator.size)"
        elif isinstance(size, nx.Graph):
            remedy = "of a graph from_networkx makes a topology"
        message = f"{name}: size must be an integer of at least 1, got {describe(size)}"
        raise ValueError(f"{message}; {remedy}") from error


def check_power_of_two(name: str, size: int) -> int:
    """Returns the binary logarithm of a number of workers.

    Raises:
      ValueError: the size is not a power of two.
    """
    dimension = size.bit_length() - 1
    if size != 2**dimension:
        raise ValueError(
            f"{name}: size must be a power of two, got {size}; "
            f"the nearest are {2**dimension} and {2 ** (dimension + 1)}"
        )
    return dimension


def check_is_graph(name: str, graph: Any) -> None:
    """Raises TypeError, which names the remedy, unless a value is a networkx graph.

    Args:
      name: name of the function that takes the graph, for the error.
      graph: what the user passed.
    """
    if isinstance(graph, nx.Graph):
        return
    remedy = "graphs of a number of workers have builders, such as ring(8)"
    if hasattr(graph, "mixing_matrix"):
        remedy = "that is one already, and its graph is topology.graph"
    elif is_array(graph) and np.ndim(graph) == 3:
        remedy = (
            "weights [period, n, n] are a Schedule: topologies.from_matrices(array)"
        )
    elif is_array(graph):
        remedy = (
            "make a graph of an adjacency matrix by networkx.from_numpy_array; a "
            "mixing matrix is the argument weights"
        )
    elif isinstance(graph, (list, tuple, set)):
        remedy = "make a graph of a list of edges by networkx.Graph(edges)"
    raise TypeError(f"{name} needs a networkx.Graph, got {describe(graph)}; {remedy}")


def check_graph(graph: "nx.Graph") -> None:
    """Raises ValueError unless a graph can be that of a topology.

    It has to be connected, simple, undirected, and on the nodes `0, ..., n - 1`.
    """
    if graph.is_directed() or graph.is_multigraph():
        raise ValueError(
            f"a topology needs an undirected networkx.Graph, got a "
            f"{type(graph).__name__}; directed communication is a Schedule "
            "(from_matrices), parallel edges are the edge attribute multiplicity"
        )
    size = len(graph)
    if size == 0:
        raise ValueError("the graph has no nodes; the smallest topology has one worker")
    if set(graph) != set(range(size)):
        stranger = next(node for node in graph if node not in range(size))
        raise ValueError(
            f"{stranger!r} is no worker number, nodes must be 0, ..., {size - 1}; "
            "topologies.from_networkx numbers the nodes of any graph"
        )
    for edge in graph.edges.data("multiplicity", default=1):
        _check_edge(*edge)
    if unreached := _unreached(graph):
        raise ValueError(
            f"the graph is not connected: no path leads from worker 0 to worker "
            f"{min(unreached)}; add an edge, or make one topology of each component"
        )


def _check_edge(i: int, j: int, multiplicity: Any) -> None:
    if i == j:
        raise ValueError(
            f"worker {i} has an edge to itself; remove it, since what a worker "
            f"gives to its own value is mixing_matrix[{i}, {i}]"
        )
    number = isinstance(multiplicity, (int, float, np.number))
    if not (number and multiplicity >= 1 and float(multiplicity).is_integer()):
        raise ValueError(
            f"the edge {i}-{j} has multiplicity {multiplicity!r}; "
            "it must be a positive integer"
        )


def _unreached(graph: "nx.Graph") -> set[int]:
    """The workers to which no path leads from worker 0."""
    return set(graph) - nx.node_connected_component(graph, 0)


def check_shape(shape: tuple[int, ...], size: int) -> None:
    """Raises ValueError unless weights are those of a number of workers."""
    if shape != (size, size):
        raise ValueError(
            f"the weights have shape {shape}; {size} workers need one of {(size, size)}"
        )


def check_mixing_matrix(matrix: "csr_array", graph: "nx.Graph") -> None:
    """Raises ValueError unless a matrix mixes along the edges of a graph.

    It has to be symmetric, doubly stochastic and zero between workers that are not
    neighbours, and its powers have to converge to the mean.

    Args:
      matrix: `float64[n, n]`.
      graph: a graph that :func:`check_graph` accepts.
    """
    edges = _sparse.edge_array(graph)
    _check_entries(matrix, edges)
    total = matrix.sum(axis=1)
    if (wrong := np.abs(total - 1) > TOLERANCE).any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"row {i} of mixing_matrix sums to {total[i].item()}, not to 1; add "
            f"{1 - total[i].item():.3g} to mixing_matrix[{i}, {i}]"
        )
    if matrix.data.min(initial=0.0) < -TOLERANCE:
        _check_contraction(matrix)
    else:
        _check_consensus(matrix, graph, edges)


def _check_entries(matrix: "csr_array", edges: np.ndarray) -> None:
    """Raises ValueError unless all entries are finite, symmetric and on an edge.

    Negative entries are allowed only if their rows sum to one.
    """
    size, values = _sparse.size_of(matrix), matrix.data
    rows, columns = _sparse.positions(matrix)
    mirrored = _sparse.entries(matrix, columns, rows)

    def refuse(wrong: np.ndarray, reason: str) -> None:
        if wrong.any():
            k = int(np.argmax(wrong))
            i, j = int(rows[k]), int(columns[k])
            entries = {"i": i, "j": j, "v": values[k].item(), "m": mirrored[k].item()}
            raise ValueError(reason.format(**entries))

    refuse(~np.isfinite(values), "mixing_matrix[{i}, {j}] is {v}; it must be finite")
    refuse(
        np.abs(values - mirrored) > TOLERANCE,
        "mixing_matrix[{i}, {j}] is {v} but mixing_matrix[{j}, {i}] is {m}; make both "
        "the same, or use a schedule (from_matrices) for directed weights",
    )
    smaller, larger = np.minimum(rows, columns), np.maximum(rows, columns)
    neighbors = np.isin(
        smaller * size + larger,
        edges[:, :2].min(axis=1) * size + edges[:, :2].max(axis=1),
    )
    refuse(
        ~neighbors & (rows != columns),
        "mixing_matrix[{i}, {j}] is {v} but workers {i} and {j} are not neighbours; "
        "add the edge to the graph, or set the weight to 0",
    )
    wrong = np.abs(matrix.sum(axis=1) - 1) > TOLERANCE
    refuse(
        wrong[rows] & (values < -TOLERANCE),
        "mixing_matrix[{i}, {j}] is {v}; weights may be negative only if their rows "
        "sum to one: take what is missing from the others of row {i}",
    )


def _check_contraction(matrix: "csr_array") -> None:
    """Raises ValueError unless weights, some negative, have a positive spectral gap."""
    modulus = _sparse.contraction(matrix)
    if modulus >= 1 - TOLERANCE:
        k = int(np.argmin(matrix.data))
        i, j = (int(ends[k]) for ends in _sparse.positions(matrix))
        raise ValueError(
            "the weights reach no consensus: differences between workers change by "
            f"the factor {modulus:.6g} a step, which has to be below 1; "
            f"mixing_matrix[{i}, {j}] is {matrix.data[k].item()}, so use smaller "
            'weights between workers, or weights="fastest"'
        )


def _check_consensus(matrix: "csr_array", graph: "nx.Graph", edges: np.ndarray) -> None:
    """Raises ValueError unless the powers of nonnegative weights converge to the mean.

    They do if the edges of positive weight connect all workers. If no worker gives a
    weight to its own value, these edges also have to contain an odd cycle.
    """
    weights = _sparse.entries(matrix, edges[:, 0], edges[:, 1])
    weightless = edges[weights <= NEGLIGIBLE, :2].tolist()
    own = (matrix.diagonal() > NEGLIGIBLE).any()
    if own and not weightless:
        return
    support = nx.Graph(graph)
    support.remove_edges_from(weightless)
    if unreached := _unreached(support):
        raise ValueError(
            "the weights reach no consensus: no path of positive weights leads from "
            f"worker 0 to worker {min(unreached)}; give a positive weight to an edge "
            "on the way"
        )
    if not own and len(graph) > 1 and nx.is_bipartite(support):
        raise ValueError(
            "the weights reach no consensus: no worker gives a weight to its own value "
            "and the graph is bipartite, so that the workers would swap their values "
            'for ever; use weights="metropolis", or (matrix + numpy.eye(n)) / 2'
        )
