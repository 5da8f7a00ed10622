"""Parameters as matrices, for mechanisms and codes of low rank."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from djax._context import setting
from djax._interfaces import PyTree
from djax._values import is_whole

from .checks import named_leaves

_DEALT_OUT: ContextVar[str | None] = ContextVar("djax_dealt_out", default=None)


def is_matrix(x: Any) -> bool:
    """Whether an array can be a matrix: it has two dimensions or more, and elements."""
    return x.ndim >= 2 and x.size > 0


def layout(x: Any, rows_axis: int) -> str:
    """The order of the axes of :func:`as_matrix`, in the notation of einsum.

    Returns:
      "mk" if the `m` rows are the array's first axis, else "km", with the rows last.
    """
    return "mk" if rows_axis % x.ndim == 0 else "km"


def as_matrix(x: jax.Array, rows_axis: int) -> jax.Array:
    """Reshapes an array into a matrix: one axis has the rows, all others the columns.

    If the axis is the first or the last one, the array is not copied.

    Args:
      x: an array of two dimensions or more.
      rows_axis: the axis of the rows, in `[-x.ndim, x.ndim)`.

    Returns:
      `[m, k]` or `[k, m]`, as :func:`layout` says.
    """
    if layout(x, rows_axis) == "mk":
        return x.reshape(x.shape[0], -1)
    return jnp.moveaxis(x, rows_axis, -1).reshape(-1, x.shape[rows_axis])


def from_matrix(matrix: jax.Array, like: Any, rows_axis: int) -> jax.Array:
    """Undoes :func:`as_matrix`; only the shape of `like` is used."""
    if layout(like, rows_axis) == "mk":
        return matrix.reshape(like.shape)
    axis = rows_axis % like.ndim
    others = like.shape[:axis] + like.shape[axis + 1 :]
    return jnp.moveaxis(matrix.reshape(*others, like.shape[axis]), -1, axis)


def matrix_shape(x: Any, rows_axis: int) -> tuple[int, int]:
    """The numbers of rows and columns, `(m, k)`."""
    rows = x.shape[rows_axis]
    return rows, x.size // rows


def check_axis(name: str, rows_axis: Any) -> int:
    """Returns the axis as an `int`, or raises ValueError unless it is an integer."""
    if is_whole(rows_axis):
        return int(rows_axis)
    raise ValueError(f"{name}: rows_axis must be an integer, got {rows_axis!r}.")


def check_rows_axis(name: str, params: PyTree, rows_axis: int) -> None:
    """Raises ValueError if one of the matrices does not have this axis."""
    for path, leaf in named_leaves(params):
        if is_matrix(leaf) and not -leaf.ndim <= rows_axis < leaf.ndim:
            raise ValueError(
                f"{name}: rows_axis={rows_axis}, but params{path} has {leaf.ndim} "
                "dimensions."
            )


def dealing_out(by: str) -> AbstractContextManager[str]:
    """Marks the `init` of mechanisms that are given vectors in place of matrices.

    :func:`djax.interleave` and :func:`djax.sparse` give single coordinates to their
    mechanisms, so that these see vectors only. A mechanism that compresses matrices
    would then send everything uncompressed, without an error. Only the mechanism itself
    knows that, and raises an error by :func:`check_not_dealt_out`.

    Args:
      by: the name of the function that deals out coordinates.
    """
    return setting(_DEALT_OUT, by)


def check_not_dealt_out(name: str) -> None:
    """Raises ValueError within :func:`dealing_out`.

    Args:
      name: the name of the mechanism or code, which compresses matrices.
    """
    if by := _DEALT_OUT.get():
        raise ValueError(
            f"{name} compresses matrices, but djax.{by} deals out their single "
            f"coordinates, so that it would send everything: use {name} without {by}."
        )
