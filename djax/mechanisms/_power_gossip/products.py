"""Products of PowerGossip's rows with parameters, and with each other."""

import functools
import math

import jax
import jax.numpy as jnp

from djax._arrays.matrices import (
    as_matrix,
    from_matrix,
    layout,
)

from .factors import einsum

FEW = 16  # Products of rows that are summed one by one.
BLOCK = 128  # Rows of a stored matrix, or half of it, that are multiplied together.


def multiply(
    basis: jax.Array,
    x: jax.Array,
    side: int,
    rows_axis: int,
    correction: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Multiplies a parameter, as a matrix, by rows for each round.

    Args:
      basis: `[rounds, r, m or k]`.
      x: the parameter.
      side: on which side the basis is, 0 for left or 1 for right.
      rows_axis: what makes a matrix of it.
      correction: rows on the left and on the right, `[iterations, rounds, r, m]` and
        `[iterations, rounds, r, k]`, whose product is added to it; None for nothing.

    Returns:
      `[rounds, r, k or m]`.
    """
    given, found = "mk" if side == 0 else "km"
    along = _along_last if layout(x, rows_axis)[1] == given else _along_first
    product = along(basis, as_matrix(x, rows_axis))
    if correction is None:
        return product
    inner = einsum(f"rc{given},tsd{given}->rctsd", basis, correction[side])
    return product + einsum(f"rctsd,tsd{found}->rc{found}", inner, correction[1 - side])


def _along_first(basis: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies `[rounds, r, a]` by `[a, b]`."""
    return einsum("rca,ab->rcb", basis, matrix)


def _along_last(basis: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies `[rounds, r, b]` by `[a, b]`.

    For two rows of the basis and more, a processor's library copies the matrix into an
    order of its own. Of a block of the matrix at a time, the copy stays in the cache.
    Every block has a copy of the basis, which must be small beside it.
    """
    size, width = math.gcd(len(matrix), BLOCK), matrix.shape[1]
    whole = functools.partial(einsum, "rcb,ab->rca")
    rows = basis.shape[0] * basis.shape[1]
    if len(matrix) == size or size < BLOCK // 2 or width < BLOCK // 2 or rows > 8:
        return whole(basis, matrix)

    def by_blocks(basis, matrix):
        blocks = matrix.reshape(-1, size, width)
        bases = jnp.broadcast_to(basis, (len(blocks), *basis.shape))
        return einsum("nrcb,nab->rcna", bases, blocks).reshape(*basis.shape[:2], -1)

    return jax.lax.platform_dependent(basis, matrix, cpu=by_blocks, default=whole)


def product_of(
    rows: tuple[jax.Array, jax.Array], like: jax.Array, rows_axis: int
) -> jax.Array:
    """Multiplies rows on the left by rows on the right: a matrix shaped like `like`.

    A sum of few products is fused with what it is added to; a product of matrices would
    be written, and read once more.
    """
    left, right = (x.reshape(-1, x.shape[-1]) for x in rows)
    axes = layout(like, rows_axis)
    if len(left) > FEW:
        return from_matrix(einsum(f"qm,qk->{axes}", left, right), like, rows_axis)
    first, second = (right, left) if axes == "km" else (left, right)
    terms = [x[:, None] * y[None] for x, y in zip(first, second, strict=True)]
    return from_matrix(functools.reduce(jnp.add, terms), like, rows_axis)
