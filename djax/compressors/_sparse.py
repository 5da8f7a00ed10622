"""What sparse codes share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.matrices import (
    check_axis,
    check_not_dealt_out,
    check_rows_axis,
    is_matrix,
    matrix_shape,
)
from djax._interfaces import PyTree
from djax.topologies._checks import check_integer


def count_fn(
    name: str, fraction: float | None, rank: int | None, rows_axis: int
) -> tuple[Callable[[Any], int], Callable[[PyTree], None]]:
    """How many entries of a leaf a code sends.

    Args:
      name: of the code, for errors.
      fraction: share of its entries; or None.
      rank: in whose stead: as many bytes as this rank of PowerGossip.
      rows_axis: the axis that becomes the rows of the matrix.

    Returns:
      A function from a leaf to the number, and one that raises ValueError for
      parameters for which there is none.
    """
    if (fraction is None) == (rank is None):
        raise ValueError(f"{name} needs either a fraction or a rank.")
    if rank is not None:
        check_integer(rank, f"{name}: rank")
        check_axis(name, rows_axis)

        def check_matrices(params):
            check_rows_axis(name, params, rows_axis)
            check_not_dealt_out(f"{name}(rank=...)")

        return (
            lambda x: _like_rank(x, rank, rows_axis),
            check_matrices,
        )
    assert fraction is not None
    is_number = isinstance(fraction, (int, float, np.number, jax.Array))
    if not is_number or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction must be in (0, 1], got {fraction!r}.")
    return lambda x: min(x.size, max(1, int(x.size * fraction))), lambda params: None


def _like_rank(x: Any, rank: int, rows_axis: int) -> int:
    if x.size == 0:
        return 0
    rows, columns = matrix_shape(x, rows_axis) if is_matrix(x) else (x.size, 1)
    # PowerGossip sends rows and columns in turn; here each number has an index too.
    return min(x.size, max(1, min(rank, rows, columns) * (rows + columns) // 4))


def scatter(values: jax.Array, indices: jax.Array, like: Any) -> jax.Array:
    """Puts values into an array of zeros like `like`."""
    flat = jnp.zeros(like.size, like.dtype)
    placed = flat.at[indices].set(
        values.astype(like.dtype), unique_indices=True, mode="promise_in_bounds"
    )
    return placed.reshape(like.shape)
