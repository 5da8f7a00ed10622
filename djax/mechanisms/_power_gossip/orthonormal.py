"""Makes the factors of PowerGossip orthonormal, those of many matrices at once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.split import split

EPSILON = 1e-8  # Added to the norms, as in the Gram-Schmidt of the published code.
# A row depends on the rows before it if less than this part of its norm remains when
# they are projected out.
DEPENDENT = 1e-3

Factors = dict[Any, jax.Array]  # `[..., r, length]`, of matrices under any names.


def einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies without reduced precision, since differences of products are taken."""
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def keep(new: Factors, old: Factors) -> Factors:
    """Returns new rows, and old ones in place of rows without a finite, positive norm.

    If a row became zero, the iteration would multiply by zero, and both factors would
    be zero for ever.
    """

    def choose(new, old):
        length = _lengths(new)
        return jnp.where((length > 0) & jnp.isfinite(length), new, old)

    return _together(choose, new, old)


def signs(factors: Factors) -> Factors:
    """Returns the signs of each row, divided by the square root of their number."""
    return {
        i: jnp.sign(x) / np.sqrt(x.shape[-1]).astype(x.dtype)
        for i, x in factors.items()
    }


def orthonormal(factors: Factors) -> Factors:
    """Orthonormalizes the rows of `[..., r, length]`."""
    return _together(_gram_schmidt, factors)


def _together(fn: Callable[..., jax.Array], *factors: Factors) -> Factors:
    """Applies a function of rows, `[..., r, length]`, to many matrices at once.

    It would take long to compile the function once for each shape. Matrices are
    therefore padded to few shapes: by rows of zeros, and by zeros at the ends of rows.
    The result of the function must not depend on these zeros.
    """
    groups: dict[Any, list[Any]] = {}
    for name, x in factors[0].items():
        groups.setdefault((x.shape[-1].bit_length() // 3, x.dtype), []).append(name)
    result = {}
    for names in groups.values():
        shapes = [factors[0][name].shape for name in names]
        largest = [max(shape[axis] for shape in shapes) for axis in (-2, -1)]
        counts = [math.prod(shape[:-2]) for shape in shapes]

        def join(some, names=names, largest=largest):
            return jnp.concatenate([_fill_up(some[name], largest) for name in names])

        pieces = split(fn(*map(join, factors)), counts)
        for name, shape, x in zip(names, shapes, pieces, strict=True):
            x = jax.lax.slice(x, (0, 0, 0), (len(x), *shape[-2:]))
            result[name] = x.reshape(shape)
    return result


def _fill_up(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Reshapes `[..., r, length]` to `[:, *shape]`, with zeros at the ends of axes."""
    rows, length = (m - n for m, n in zip(shape, x.shape[-2:], strict=True))
    x = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    return jnp.pad(x, ((0, 0), (0, rows), (0, length)))


def _gram_schmidt(rows: jax.Array) -> jax.Array:
    """Orthonormalizes `[..., r, length]` row by row, as the published code does.

    If a row depends on the rows before it, only rounding errors remain of it, in any
    direction. The rows before it are then projected out again, which the published code
    does not do: its rows are not orthogonal in that case.
    """
    count = rows.shape[-2]
    number = jnp.arange(count)
    lengths = _lengths(rows)

    def normalize(row):
        length = _lengths(row)
        return row / (length + EPSILON), length

    if count == 1:
        return normalize(rows)[0]

    def projections(rows, row, some):
        return jnp.where(some, einsum("...rl,...l->...r", rows, row), 0)

    def take(i, rows):
        row, length = normalize(jax.lax.dynamic_index_in_dim(rows, i, -2, False))
        new = length / jax.lax.dynamic_index_in_dim(lengths, i, -2, False)
        for _ in range(2):
            along = projections(rows, row, number < i)
            again, length = normalize(row - einsum("...r,...rl->...l", along, rows))
            row = jnp.where(new < DEPENDENT, again, row)
            new = jnp.where(new < DEPENDENT, length, new)
        along = projections(rows, row, number > i)
        rows = rows - along[..., None] * row[..., None, :]
        return jax.lax.dynamic_update_index_in_dim(rows, row, i, -2)

    return jax.lax.fori_loop(0, count, take, rows)


def _lengths(rows: jax.Array) -> jax.Array:
    """Norms along the last axis, which is kept; a product is faster than a sum."""
    return jnp.sqrt(einsum("...l,...l->...", rows, rows))[..., None]
