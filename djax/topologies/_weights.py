"""Mixing weights on the edges of a graph."""

import math
from collections.abc import Callable
from typing import Literal

import networkx as nx
import numpy as np
import numpy.typing as npt

from ._checks import (
    NEGLIGIBLE,
    TOLERANCE,
    describe,
)
from ._fastest import (
    best_constant,
    fastest_weights,
)
from ._rounding import numbers

# Of sums of weights.
_ROUNDING = 1e-13

Rule = Literal["metropolis", "uniform", "lazy", "best_constant", "fastest"]
Weights = Rule | float | npt.ArrayLike


def mixing_matrix(graph: nx.Graph, weights: Weights) -> np.ndarray:
    """The weights of :func:`from_networkx`, `float64[n, n]`.

    Only what a rule can get wrong is checked: a given array comes back as it is.
    """
    if isinstance(weights, str) and weights in _RULES:
        return _RULES[weights](graph)
    array = numbers(weights)
    if array is None:
        raise ValueError(
            f"weights={describe(weights)} is unknown; choose one of "
            f"{', '.join(_RULES)}, a number (the weight of every edge), or an array "
            "[n, n]"
        )
    return _constant(graph, array.item()) if array.ndim == 0 else array


def _metropolis(graph: nx.Graph) -> np.ndarray:
    rows, columns, multiplicity, degree = _edges(graph)
    larger = np.maximum(degree[rows], degree[columns])
    return _fill(rows, columns, multiplicity / (1 + larger), len(degree))


def _uniform(graph: nx.Graph) -> np.ndarray:
    rows, columns, multiplicity, degree = _edges(graph)
    return _fill(rows, columns, multiplicity / (1 + degree.max()), len(degree))


def _lazy(graph: nx.Graph) -> np.ndarray:
    matrix = _metropolis(graph)
    return (matrix + np.eye(len(matrix))) / 2


def _best_constant(graph: nx.Graph) -> np.ndarray:
    rows, columns, multiplicity, degree = _edges(graph)
    if len(degree) == 1:
        return np.ones((1, 1))
    adjacency = _fill(rows, columns, multiplicity, len(degree))
    np.fill_diagonal(adjacency, 0.0)
    weight = best_constant(np.diag(degree) - adjacency)
    return _fill(rows, columns, weight * multiplicity, len(degree))


def _fastest(graph: nx.Graph) -> np.ndarray:
    rows, columns, _, degree = _edges(graph)
    if len(degree) == 1:
        return np.ones((1, 1))
    weights = fastest_weights(rows, columns, len(degree))
    return _fill(rows, columns, weights, len(degree))


def _constant(graph: nx.Graph, weight: float) -> np.ndarray:
    rows, columns, multiplicity, degree = _edges(graph)
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
    return _fill(rows, columns, weight * multiplicity, len(degree))


def _largest_constant(graph: nx.Graph, degree: np.ndarray) -> str:
    """The remedy for an edge weight that is too large, rounded down."""
    if degree.min() == degree.max() and nx.is_bipartite(graph):
        smaller = math.floor(1e6 / (1 + degree.max())) / 1e6
        return f"it has to be smaller than {1 / degree.max():.6g}, such as {smaller}"
    largest = math.floor(1e6 / degree.max()) / 1e6
    return f"the largest admissible weight is {largest}"


_RULES: dict[str, Callable[[nx.Graph], np.ndarray]] = {
    "metropolis": _metropolis,
    "uniform": _uniform,
    "lazy": _lazy,
    "best_constant": _best_constant,
    "fastest": _fastest,
}


def _edges(graph: nx.Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both ends and the multiplicity of every edge, the degree of every node."""
    size = graph.number_of_nodes()
    edges = list(graph.edges.data("multiplicity", default=1))
    rows, columns, multiplicity = np.array(edges, np.int64).reshape(-1, 3).T
    degree = np.bincount(rows, multiplicity, size) + np.bincount(
        columns, multiplicity, size
    )
    return rows, columns, multiplicity, degree.astype(np.int64)


def _fill(
    rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, size: int
) -> np.ndarray:
    matrix = np.zeros((size, size))
    matrix[rows, columns] = matrix[columns, rows] = weights
    rest = 1 - matrix.sum(axis=1)
    # Rounding may take what is zero a little below it.
    np.fill_diagonal(matrix, np.where(rest > -_ROUNDING, np.maximum(rest, 0.0), rest))
    return matrix
