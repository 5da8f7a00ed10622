"""Mixing weights as sparse matrices, since most graphs have few edges.

The dense matrix of 16,384 workers on a ring would take 2 GiB, although only three
weights in each row are not zero. Graphs therefore keep the weights that are not zero.
"""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

# scipy.sparse is imported where it is used: it takes as long as the rest of djax.
if TYPE_CHECKING:
    from networkx import Graph
    from scipy.sparse import csr_array

# All eigenvalues of fewer workers take less than half a second.
_DENSE = 512
# Lanczos' method on an expander needs far fewer restarts.
_RESTARTS = 50
_VECTORS = 40
_ACCURACY = 1e-10
# How far beyond the spectrum a matrix is inverted. On rings of thousands of workers,
# eigenvalues near 1 are about this far apart.
_BEYOND = 1e-6


def is_sparse(value: Any) -> bool:
    """Whether a value is a matrix of scipy.sparse."""
    known = sys.modules.get("scipy.sparse")
    return known is not None and known.issparse(value)


def as_sparse(matrix: Any) -> "csr_array":
    """Returns a matrix in float64, as a sparse one of its own with sorted entries."""
    from scipy.sparse import csr_array

    found = csr_array(matrix, dtype=np.float64, copy=True)
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


def size_of(matrix: "csr_array") -> int:
    """The number of rows."""
    return matrix.indptr.size - 1


def read_only(matrix: "csr_array") -> "csr_array":
    """Returns a sparse matrix after protecting its entries from being written to."""
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.setflags(write=False)
    return matrix


def positions(matrix: "csr_array") -> tuple[np.ndarray, np.ndarray]:
    """The rows and the columns of the entries, in the order of `matrix.data`."""
    rows = np.repeat(np.arange(size_of(matrix)), np.diff(matrix.indptr))
    return rows, matrix.indices.astype(np.int64)


def entries(matrix: "csr_array", rows: Any, columns: Any) -> np.ndarray:
    """Looks up entries at arrays of rows and columns; 0 where there is none."""
    size = size_of(matrix)
    here = positions(matrix)
    known = here[0] * size + here[1]
    wanted = np.asarray(rows, np.int64) * size + np.asarray(columns, np.int64)
    if not known.size:
        return np.zeros(wanted.shape)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, matrix.data[place], 0.0)


def equal(x: "csr_array", y: "csr_array") -> bool:
    """Whether two sparse matrices have the same entries."""
    return x.shape == y.shape and all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for name in ("indptr", "indices", "data")
    )


def edge_array(graph: "Graph") -> np.ndarray:
    """The edges of a graph and their multiplicities, `int64[edges, 3]`."""
    edges = list(graph.edges.data("multiplicity", default=1))
    return np.array(edges, np.float64).reshape(-1, 3).astype(np.int64)


def from_edges(size: int, edges: np.ndarray, values: np.ndarray) -> "csr_array":
    """The symmetric matrix with a value for each edge, `[edges, 2 or more]`."""
    from scipy.sparse import csr_array

    rows, columns = edges[:, 0], edges[:, 1]
    ends = np.concatenate([rows, columns]), np.concatenate([columns, rows])
    matrix = csr_array((np.concatenate([values, values]), ends), (size, size))
    matrix.sum_duplicates()
    return matrix


def add_diagonal(matrix: "csr_array", diagonal: np.ndarray) -> "csr_array":
    """Returns the matrix with a vector added to its diagonal."""
    from scipy.sparse import csr_array, diags_array

    return csr_array(matrix + diags_array(diagonal, format="csr"))


def extreme_eigenvalues(matrix: "csr_array") -> tuple[float, float]:
    """The second largest and the smallest eigenvalue of symmetric weights.

    Args:
      matrix: `float64[n, n]` with at least two rows, which sum to one.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    size = size_of(matrix)
    if size <= _DENSE:
        values = np.linalg.eigvalsh(matrix.toarray())
        return float(values[-2]), float(values[0])
    start = np.random.RandomState(0).normal(size=size)
    options = {"v0": start, "tol": _ACCURACY, "return_eigenvectors": False}
    lanczos = {"k": 1, "maxiter": _RESTARTS, "ncv": _VECTORS, **options}

    def without_consensus(x: np.ndarray) -> np.ndarray:
        """Multiplies; the eigenvalue 1 of equal values becomes -2, the smallest."""
        return matrix @ x - 3 * x.mean()

    try:
        moved = LinearOperator((size, size), without_consensus)
        second = eigsh(moved, which="LA", **lanczos)[0]
    except ArpackNoConvergence:
        # The eigenvalues are close to each other, as on a ring. The inverse of a matrix
        # that is moved to the end of the spectrum has them far apart. Graphs with such
        # eigenvalues are long, so that the inverse has sparse factors.
        near = eigsh(matrix.tocsc(), k=2, sigma=1 + _BEYOND, **options)
        second = near.min()
    try:
        smallest = eigsh(matrix, which="SA", **lanczos)[0]
    except ArpackNoConvergence:
        own = matrix.diagonal()
        around = abs(matrix).sum(axis=1) - np.abs(own)
        below = (own - around).min() - _BEYOND  # All eigenvalues are larger.
        smallest = eigsh(matrix.tocsc(), k=1, sigma=below, **options)[0]
    return float(second), float(smallest)


def contraction(matrix: "csr_array") -> float:
    """By which factor symmetric weights, also negative ones, change differences."""
    size = size_of(matrix)
    if size <= _DENSE:
        return np.linalg.norm(matrix.toarray() - 1 / size, 2).item()
    return max(map(abs, extreme_eigenvalues(matrix)))
