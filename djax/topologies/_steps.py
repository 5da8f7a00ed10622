"""The weights of all steps of a period, of which most are zero.

The dense matrices of a period of 100 matchings of 4,096 workers would take 13 GiB,
although only two weights in each row are not zero. Schedules therefore keep the weights
that are not zero.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from djax._values import read_only

from ._sparse import as_sparse, positions, size_of

# scipy.sparse is imported where it is used: it takes as long as the rest of djax.
if TYPE_CHECKING:
    from scipy.sparse import csr_array


Block = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows, columns and weights of some workers in a step."""


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """The entries of `[period, n, n]` that are not zero.

    Attributes:
      shape: `(period, n, n)`.
      places: `int64[entries]`, positions within the flat array, in ascending order.
      values: `[entries]`, the weights at these positions.
    """

    shape: tuple[int, int, int]
    places: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        read_only(self.places)
        read_only(self.values)

    @cached_property
    def indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The steps, the rows and the columns of the entries."""
        rows, columns = np.divmod(self.places, self.shape[2])
        steps, rows = np.divmod(rows, self.shape[1])
        return steps, rows, columns

    def row_sums(self) -> np.ndarray:
        """`float64[period, n]`: the sum of each row."""
        steps, rows, _ = self.indices
        return self._sums(steps * self.shape[1] + rows)

    def column_sums(self) -> np.ndarray:
        """`float64[period, n]`: the sum of each column."""
        steps, _, columns = self.indices
        return self._sums(steps * self.shape[2] + columns)

    def _sums(self, groups: np.ndarray) -> np.ndarray:
        shape = self.shape[:2]
        return np.bincount(groups, self.values, np.prod(shape)).reshape(shape)

    def mirrored(self) -> np.ndarray:
        """`[entries]`: for each entry `[t, i, j]` the weight `[t, j, i]`."""
        steps, rows, columns = self.indices
        wanted = (steps * self.shape[1] + columns) * self.shape[2] + rows
        place = np.searchsorted(self.places, wanted)
        place = np.minimum(place, self.places.size - 1)
        return np.where(self.places[place] == wanted, self.values[place], 0)

    def bounds(self) -> list[int]:
        """Between which of the entries the steps lie, `[period + 1]`."""
        area = self.shape[1] * self.shape[2]
        starts = np.arange(self.shape[0] + 1) * area
        return np.searchsorted(self.places, starts).tolist()

    def matrices(self) -> "list[csr_array]":
        """The matrix of each step."""
        from scipy.sparse import csr_array

        size = self.shape[1]
        _, rows, columns = self.indices
        found = []
        for start, end in pairwise(self.bounds()):
            entries = slice(start, end)
            counts = np.bincount(rows[entries], minlength=size)
            first = np.concatenate([[0], np.cumsum(counts)])
            parts = self.values[entries], columns[entries], first
            found.append(csr_array(parts, self.shape[1:]))
        return found

    def dense(self) -> Iterator[np.ndarray]:
        """Makes the matrix of each step, `float64[n, n]`, one after the other."""
        bounds, area = self.bounds(), self.shape[1] * self.shape[2]
        for t, (start, end) in enumerate(pairwise(bounds)):
            matrix = np.zeros(self.shape[1:])
            places = self.places[start:end] - t * area
            matrix.reshape(-1)[places] = self.values[start:end]
            yield matrix


def from_dense(matrices: np.ndarray) -> Steps:
    """The steps of an array `[period, n, n]`, in its dtype."""
    period, size, _ = matrices.shape
    flat = matrices.reshape(-1)
    places = np.flatnonzero(flat)
    return Steps((period, size, size), places, flat[places])


def from_sparse(matrices: "Sequence[csr_array]") -> Steps:
    """The steps whose matrices, of one shape `[n, n]`, are those of scipy.sparse."""
    weights = [as_sparse(matrix) for matrix in matrices]
    size = size_of(weights[0])
    places, values = [], []
    for t, matrix in enumerate(weights):
        rows, columns = positions(matrix)
        places.append((t * size + rows) * size + columns)
        values.append(matrix.data)
    shape = len(weights), size, size
    return Steps(shape, np.concatenate(places), np.concatenate(values))


def hearing_one(sources: np.ndarray, weight: float) -> Steps:
    """The steps in which each worker hears one worker, or itself.

    Args:
      sources: `int[period, n]`, whom each worker hears.
      weight: the weight of what a worker hears from another one; it keeps the rest.
    """
    period, size = sources.shape
    rows = np.arange(period * size).reshape(period, size)
    own = np.broadcast_to(np.arange(size), sources.shape)
    alone = sources == own
    here = rows * size
    places = np.concatenate([(here + own).ravel(), (here + sources)[~alone]])
    kept = np.where(alone, 1.0, 1.0 - weight).ravel()
    values = np.concatenate([kept, np.full(places.size - kept.size, weight)])
    order = np.argsort(places)
    order = order[values[order] != 0]
    return Steps((period, size, size), places[order], values[order])


def average(groups: np.ndarray) -> Block:
    """Makes the workers of each group, `[groups, workers]`, average."""
    width = groups.shape[1]
    return block(groups, np.full((width, width), 1 / width))


def block(groups: np.ndarray, matrix: Any) -> Block:
    """The rows, columns and weights of a matrix that is the same for some groups.

    Args:
      groups: `int[groups, workers]`.
      matrix: `float64[workers, workers]`, an array or sparse.
    """
    weights = as_sparse(matrix)
    rows, columns = positions(weights)
    values = np.tile(weights.data, len(groups))
    return groups[:, rows].ravel(), groups[:, columns].ravel(), values


def with_blocks(size: int, blocks: Iterable[Block]) -> "csr_array":
    """The matrix of all workers, in which those outside of blocks are silent."""
    from scipy.sparse import csr_array

    blocks = list(blocks)
    silent = np.ones(size, bool)
    for workers, _, _ in blocks:
        silent[workers] = False
    alone = np.flatnonzero(silent)
    blocks.append((alone, alone, np.ones(len(alone))))
    rows, columns, values = map(np.concatenate, zip(*blocks, strict=True))
    return csr_array((values, (rows, columns)), (size, size))
