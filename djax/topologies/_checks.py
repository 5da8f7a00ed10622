"""Checks of graphs and weights: each error names the place and the remedy."""

import operator
import reprlib
from typing import Any

import networkx as nx
import numpy as np

# Rows of float64 weights sum to one well within this.
TOLERANCE = 1e-9
# Smaller weights are what rounding leaves of 0: they would need millions of steps.
NEGLIGIBLE = 1e-6


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy, JAX or another library."""
    return all(hasattr(value, name) for name in ("__array__", "shape", "dtype"))


def is_communicator(value: Any) -> bool:
    """Whether a value exchanges messages, as :class:`djax.Communicator` does."""
    return hasattr(value, "permute") and hasattr(value, "local_ranks")


def describe(value: Any) -> str:
    """A value in few words, for errors."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if isinstance(value, nx.Graph):
        return f"a networkx.{type(value).__name__} of {len(value)} nodes"
    if is_array(value) and np.ndim(value):
        return f"an array of shape {np.shape(value)}"
    if is_communicator(value):
        return f"the communicator {value!r}"
    return reprlib.repr(value) if isinstance(value, (list, tuple)) else repr(value)


def check_integer(value: Any, what: str, minimum: int = 1) -> int:
    """Returns the value as an `int`, or raises a `ValueError` that says what it is."""
    try:
        integer = operator.index(value)
    except TypeError:
        integer = None
    if isinstance(value, (bool, np.bool_)):  # Python takes it for 0 or 1.
        integer = None
    if integer is None or integer < minimum:
        raise ValueError(
            f"{what} must be an integer of at least {minimum}, got {value!r}"
        )
    return integer


def check_share(value: Any, what: str) -> float:
    """Returns a number in (0, 1], or raises a `ValueError` that says what it is."""
    number = isinstance(value, (int, float, np.number))
    if isinstance(value, bool) or not (number and 0 < value <= 1):
        raise ValueError(f"{what} must be in (0, 1], got {value!r}")
    return float(value)


def check_size(name: str, size: Any) -> int:
    """Returns a number of workers, or raises a `ValueError` that says what is taken.

    Args:
      name: of the builder.
      size: its first argument.
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
    """Returns the logarithm of a number of workers, or raises a `ValueError`."""
    dimension = size.bit_length() - 1
    if size != 2**dimension:
        raise ValueError(
            f"{name}: size must be a power of two, got {size}; "
            f"the nearest are {2**dimension} and {2 ** (dimension + 1)}"
        )
    return dimension


def check_is_graph(name: str, graph: Any) -> None:
    """Raises TypeError, which names the remedy, unless it is a graph of networkx.

    Args:
      name: who takes the graph.
      graph: what the user passed.
    """
    if isinstance(graph, nx.Graph):
        return
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
    else:
        remedy = "graphs of a number of workers have builders, such as ring(8)"
    raise TypeError(f"{name} needs a networkx.Graph, got {describe(graph)}; {remedy}")


def check_graph(graph: nx.Graph) -> None:
    """Accepts connected simple undirected graphs on the nodes 0, ..., n - 1."""
    if graph.is_directed() or graph.is_multigraph():
        raise ValueError(
            f"a topology needs an undirected networkx.Graph, got a "
            f"{type(graph).__name__}; directed communication is a Schedule "
            "(from_matrices), parallel edges are the edge attribute multiplicity"
        )
    size = graph.number_of_nodes()
    if size == 0:
        raise ValueError("the graph has no nodes; the smallest topology has one worker")
    if set(graph) != set(range(size)):
        stranger = next(node for node in graph if node not in range(size))
        raise ValueError(
            f"{stranger!r} is no worker number, nodes must be 0, ..., {size - 1}; "
            "topologies.from_networkx numbers the nodes of any graph"
        )
    for i, j, multiplicity in graph.edges.data("multiplicity", default=1):
        if i == j:
            raise ValueError(
                f"worker {i} has an edge to itself; remove it, since what a worker "
                f"gives to its own value is mixing_matrix[{i}, {i}]"
            )
        whole = isinstance(multiplicity, (int, float, np.number))
        if not (whole and multiplicity >= 1 and float(multiplicity).is_integer()):
            raise ValueError(
                f"the edge {i}-{j} has multiplicity {multiplicity!r}; "
                "it must be a positive integer"
            )
    if unreached := set(graph) - set(nx.node_connected_component(graph, 0)):
        raise ValueError(
            f"the graph is not connected: no path leads from worker 0 to worker "
            f"{min(unreached)}; add an edge, or make one topology of each component"
        )


def check_mixing_matrix(matrix: np.ndarray, graph: nx.Graph) -> None:
    """Accepts symmetric doubly stochastic weights on the edges of the graph."""
    size = graph.number_of_nodes()
    if matrix.shape != (size, size):
        raise ValueError(
            f"the weights have shape {matrix.shape}; "
            f"{size} workers need one of {(size, size)}"
        )
    # Only the nonzero entries are looked at: large graphs are sparse. NaN is nonzero.
    rows, columns = np.nonzero(matrix)
    values, mirrored = matrix[rows, columns], matrix[columns, rows]

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
    linked = np.eye(size, dtype=bool)
    for i, j in graph.edges:
        linked[i, j] = linked[j, i] = True
    refuse(
        ~linked[rows, columns],
        "mixing_matrix[{i}, {j}] is {v} but workers {i} and {j} are not neighbours; "
        "add the edge to the graph, or set the weight to 0",
    )
    total = matrix.sum(axis=1)
    wrong = np.abs(total - 1) > TOLERANCE
    refuse(
        wrong[rows] & (values < -TOLERANCE),
        "mixing_matrix[{i}, {j}] is {v}; weights may be negative only if their rows "
        "sum to one: take what is missing from the others of row {i}",
    )
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"row {i} of mixing_matrix sums to {total[i].item()}, not to 1; add "
            f"{1 - total[i].item():.3g} to mixing_matrix[{i}, {i}]"
        )
    if values.min() < -TOLERANCE:
        _check_contraction(matrix)
    else:
        _check_consensus(matrix, graph)


def _check_contraction(matrix: np.ndarray) -> None:
    """Accepts weights, some of them negative, with a spectral gap above 0."""
    modulus = np.linalg.norm(matrix - 1 / len(matrix), 2).item()
    if modulus >= 1 - TOLERANCE:
        i, j = np.unravel_index(np.argmin(matrix), matrix.shape)
        raise ValueError(
            "the weights reach no consensus: differences between workers change by "
            f"the factor {modulus:.6g} a step, which has to be below 1; "
            f"mixing_matrix[{i}, {j}] is {matrix[i, j].item()}, so use smaller weights "
            'between workers, or weights="fastest"'
        )


def _check_consensus(matrix: np.ndarray, graph: nx.Graph) -> None:
    """Accepts weights whose powers converge to the mean: a spectral gap above 0.

    That is so if the edges of positive weight connect all workers and, unless one of
    them also counts its own value, contain an odd cycle.
    """
    weightless = [e for e in graph.edges if matrix[e] <= NEGLIGIBLE]
    own = (np.diag(matrix) > NEGLIGIBLE).any()
    if own and not weightless:
        return
    support = nx.Graph(graph.edges)
    support.add_nodes_from(graph)
    support.remove_edges_from(weightless)
    if unreached := set(support) - nx.node_connected_component(support, 0):
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
