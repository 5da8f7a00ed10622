"""Weights in float64, from numbers of lower precision."""

from typing import Any

import networkx as nx
import numpy as np

# By how much sums of weights may miss one, in units of the distance between the numbers
# just above one. In 16 bits more than that is hard to tell from a mistake.
_SINGLE, _HALF = 84.0, 4.0


def numbers(value: Any) -> np.ndarray | None:
    """A value as an array of real numbers, in its own precision, or None."""
    if isinstance(value, nx.Graph):  # NumPy makes an array of its nodes.
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


def symmetric_weights(array: np.ndarray) -> np.ndarray:
    """Undirected weights in float64, without the rounding of their own precision.

    Args:
      array: `[n, n]`, meant to be symmetric with rows that sum to one.

    Returns:
      `float64[n, n]`, new; symmetric and with rows that sum to one if they missed that
      by no more than rounding.
    """
    matrix, rounding = array.astype(np.float64), _rounding(array)
    is_square = matrix.shape == matrix.shape[:1] * 2 and matrix.size > 0
    if not (
        is_square
        and rounding > 0
        and _is_near(matrix, matrix.T, rounding)
        and _is_near(matrix.sum(axis=1), 1.0, rounding)
    ):
        return matrix
    matrix = (matrix + matrix.T) / 2
    # What is missing goes to the diagonal; nothing may be too much there.
    matrix /= max(1.0, matrix.sum(axis=1).max())
    matrix[np.diag_indices(len(matrix))] += np.maximum(1 - matrix.sum(axis=1), 0.0)
    return matrix


def column_weights(array: np.ndarray) -> np.ndarray:
    """Directed weights in float64, without the rounding of their own precision.

    Args:
      array: `[period, n, n]`, meant to have columns that sum to one.

    Returns:
      `float64[period, n, n]`, new; with columns that sum to one if they missed that by
      no more than rounding.
    """
    matrices, rounding = array.astype(np.float64), _rounding(array)
    if matrices.ndim != 3 or rounding == 0:
        return matrices
    total = matrices.sum(axis=1, keepdims=True)
    if not _is_near(total, 1.0, rounding):
        return matrices
    repaired = matrices / total
    for t in np.flatnonzero((total != 1).any(axis=(1, 2))):
        if np.array_equal(matrices[t], matrices[t].T):  # It stays symmetric.
            repaired[t] = symmetric_weights(array[t])
    return repaired


def _rounding(array: np.ndarray) -> float:
    """By how much sums of weights miss one; 0 in double precision."""
    if array.dtype.itemsize == 2 and array.dtype.kind not in "iu":
        spacing, units = np.spacing(np.ones((), array.dtype)), _HALF
    else:
        # Numbers that were in single precision before somebody made float64 of them.
        with np.errstate(over="ignore"):
            if not np.array_equal(array.astype(np.float32), array):
                return 0.0
        spacing, units = np.spacing(np.float32(1)), _SINGLE
    return max(units, array.shape[-1] / 4) * float(spacing)


def _is_near(x: np.ndarray, y: np.ndarray | float, rounding: float) -> bool:
    with np.errstate(invalid="ignore"):  # What is not finite is not near.
        return bool((np.abs(x - y) <= rounding).all())
