"""Weights in float64, repaired where they come from numbers of lower precision.

Rows of a float32 matrix sum to one only up to rounding. Taken as they are, such weights
would change the mean of the workers a little in every step. Therefore sums that differ
from one by rounding alone are made exact. Larger deviations stay, and are refused.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from djax import _networkx as nx

from ._sparse import add_diagonal, as_sparse, equal, is_sparse
from ._steps import Steps, from_sparse

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# By how much the sum of weights that should be 1 may differ from 1, for weights in
# single and in half precision. The unit is the distance from 1 to the next larger
# number of that precision. In half precision, a larger deviation could hardly be told
# from a mistake.
_SINGLE, _HALF = 84.0, 4.0


def numbers(value: Any) -> Any:
    """Returns a value as an array of real numbers of its own dtype, or None.

    A sparse matrix of any kind becomes a `scipy.sparse` matrix with compressed rows.
    """
    if is_sparse(value):
        if value.ndim != 2:
            return None
        rows = value.tocsr()
        return rows if rows.dtype.kind in "iuf" else None
    if isinstance(value, nx.Graph):  # NumPy would make an array of its nodes.
        return None
    try:
        array = np.asarray(value)
        # NumPy would also read strings and dates, and drop imaginary parts.
        if array.dtype.kind in "OSUMmbc":
            return None
        array.astype(np.float64)
    except (TypeError, ValueError):
        return None
    return array


def symmetric_weights(matrix: "csr_array", rounding: float) -> "csr_array":
    """Returns undirected weights without their rounding errors.

    Args:
      matrix: `float64[n, n]`, meant to be symmetric with rows that sum to one.
      rounding: by how much sums of the weights may differ from 1.

    Returns:
      A `float64[n, n]`. If only rounding errors keep the weights from being symmetric
      with rows that sum to one, these errors are removed.
    """
    with np.errstate(invalid="ignore"):  # What is not finite is near nothing.
        apart = np.abs((matrix - matrix.T).data).max(initial=0.0)
    if not (
        rounding > 0
        and apart <= rounding
        and _is_near(matrix.sum(axis=1), 1.0, rounding)
    ):
        return matrix
    matrix = (matrix + matrix.T) / 2
    # After scaling, no row sums to more than 1. The diagonal takes what is missing.
    matrix.data /= max(1.0, matrix.sum(axis=1).max())
    return as_sparse(add_diagonal(matrix, np.maximum(1 - matrix.sum(axis=1), 0.0)))


def column_weights(steps: Steps) -> Steps:
    """Returns directed weights in float64, without their rounding errors.

    Args:
      steps: `[period, n, n]`, meant to have columns that sum to one.

    Returns:
      A `float64[period, n, n]`. If only rounding errors keep the columns from summing
      to one, these errors are removed. Symmetric matrices stay symmetric.
    """
    rounding = _rounding(steps.values, steps.shape[2])
    steps = Steps(steps.shape, steps.places, steps.values.astype(np.float64))
    total = steps.column_sums()
    if rounding == 0 or not _is_near(total, 1.0, rounding):
        return steps
    t, _, columns = steps.indices
    repaired = Steps(steps.shape, steps.places, steps.values / total[t, columns])
    inexact = np.flatnonzero((total != 1).any(axis=1)).tolist()
    if not inexact:
        return repaired
    given, weights = steps.matrices(), repaired.matrices()
    for t in inexact:
        if equal(given[t], as_sparse(given[t].T)):
            weights[t] = symmetric_weights(given[t], rounding)
    return from_sparse(weights)


def rounding_of(weights: Any) -> float:
    """By how much sums of weights may differ from 1; 0 in double precision.

    Args:
      weights: an array `[..., n]`, or a sparse matrix.
    """
    values = weights.data if is_sparse(weights) else weights
    return _rounding(values, weights.shape[-1])


def _rounding(array: np.ndarray, size: int) -> float:
    if array.dtype.itemsize == 2 and array.dtype.kind not in "iu":
        spacing, units = np.spacing(np.ones((), array.dtype)), _HALF
    else:
        # Weights that were computed in single precision may come as float64.
        with np.errstate(over="ignore"):
            if not np.array_equal(array.astype(np.float32), array):
                return 0.0
        spacing, units = np.spacing(np.float32(1)), _SINGLE
    return max(units, size / 4) * float(spacing)


def _is_near(x: np.ndarray, y: np.ndarray | float, rounding: float) -> bool:
    with np.errstate(invalid="ignore"):  # What is not finite is near nothing.
        return bool((np.abs(x - y) <= rounding).all())
