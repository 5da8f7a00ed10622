"""Products of PowerGossip's factors with matrices, and with each other.

This module also repeats the power iterations of one step, and compiles only a few of
them. An iteration sees, as products, what earlier ones have added to the matrices.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from djax._arrays.matrices import as_matrix, from_matrix, layout

from .blocks import Block, Blocks, each, unstacked
from .rows import Layouts, Rows, in_blocks

FEW = 16  # The largest number of outer products that are summed one by one.
# Number of rows of a matrix that are multiplied together. Where it does not divide the
# number of all rows, half of it will do.
BLOCK = 128

Corrections = tuple[Rows, Rows]
"""What has been added to the matrices, `[iterations, rounds, r, groups, LANES]`.

The products of the left factors and the right ones are the sums of what all of these
iterations and rounds have added.
"""
Factors = tuple[jax.Array, jax.Array]
"""A left factor and a right one of a matrix, `[iterations, rounds, r, m or k]`."""


def einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies without reduced precision, since differences of products are taken."""
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def repeated(
    iteration: Callable[..., Any],
    odd: int,
    count: int,
    matrices: Blocks,
    factors: tuple[Rows, Rows],
    vectors: list[jax.Array],
) -> tuple[Corrections, list[jax.Array], tuple[Rows, Rows]]:
    """Runs all power iterations of a step; the first one also averages the vectors.

    The parameters are not changed between iterations, since writing them takes long.
    An iteration is told what the iterations before it have added to the matrices: rows
    on the left and on the right, whose product is the sum of all that was added.

    Args:
      iteration: `(odd, t, matrices, factors, corrections, vectors) -> (change, vectors,
        factors)`, the iteration with the number t in the step, from 0.
      odd: 1 if the first iteration orthogonalizes the right factors, 0 if the left
        ones. The iterations alternate.
      count: number of iterations.
      matrices: the matrices of the model in blocks, as they were at the start of the
        step.
      factors: the left and the right factors of this step's edges.
      vectors: the arrays that the first iteration also sends and averages.

    Returns:
      What all iterations add to the matrices, as left and right factors; what they add
      to the vectors; and the next factors.
    """
    change, parts, factors = iteration(odd, 0, matrices, factors, None, vectors)
    corrections = jax.tree.map(
        lambda x: jnp.pad(x[None], ((0, count - 1),) + ((0, 0),) * x.ndim), change
    )

    def another(odd, t, factors, corrections):
        change, _, factors = iteration(odd, t, matrices, factors, corrections, [])
        corrections = jax.tree.map(
            lambda rows, new: rows.at[t].set(new), corrections, change
        )
        return t + 1, factors, corrections

    carry, odd = (1, factors, corrections), 1 - odd
    if count > 2:  # The loop over pairs of iterations, odd and even, is compiled once.
        carry, _ = jax.lax.scan(
            lambda carry, _: (another(1 - odd, *another(odd, *carry)), None),
            carry,
            length=(count - 1) // 2,
        )
    if count % 2 == 0:
        carry = another(odd, *carry)
    _, factors, corrections = carry
    return corrections, parts, factors


def multiply_blocks(
    bases: Rows,
    matrices: Blocks,
    side: int,
    rows_axis: int,
    layouts: Layouts,
    corrections: Corrections | None,
) -> Blocks:
    """Multiplies the matrices of all blocks by rows for each round.

    Args:
      bases: the factors of one side for each round.
      matrices: the matrices of the model, as parameters.
      side: the side of the matrices on which the bases are, 0 for left or 1 for right.
      rows_axis: the axis of a parameter that becomes the rows of its matrix.
      layouts: where the left and the right factors are in their arrays.
      corrections: what earlier iterations have added to the matrices. The matrices do
        not contain these sums yet. None in the first iteration.

    Returns:
      `[rounds, r, k or m]` of the matrix of a block, or `[rounds, r, n, k or m]` of its
      `n` matrices.
    """

    def product(basis, x, correction):
        return multiply(basis, x, side, rows_axis, correction)

    split = in_blocks(bases, layouts[side])
    added = corrections and factors_of_blocks(corrections, layouts)
    return {
        block: each(product, block, (2, 0, 3), 2)(
            split[block], x, added and added[block]
        )
        for block, x in matrices.items()
    }


def added_to_matrices(
    corrections: Mapping[Block, Factors], leaves: Sequence[jax.Array], rows_axis: int
) -> dict[int, jax.Array]:
    """Returns what corrections add to each matrix, shaped like its leaf.

    The results are under the positions of the leaves.
    """
    found = {}
    for block, factors in corrections.items():
        product = functools.partial(
            product_of, like=leaves[block[0]], rows_axis=rows_axis
        )
        found[block] = each(product, block, 3, 0)(factors)
    return unstacked(found)


def factors_of_blocks(
    corrections: Corrections, layouts: Layouts
) -> dict[Block, Factors]:
    """Splits corrections into the left and right factors of each block."""
    left, right = map(in_blocks, corrections, layouts)
    return {block: (left[block], right[block]) for block in left}


def multiply(
    basis: jax.Array,
    x: jax.Array,
    side: int,
    rows_axis: int,
    correction: Factors | None,
) -> jax.Array:
    """Multiplies a parameter, as a matrix, by rows for each round.

    Args:
      basis: `[rounds, r, m or k]`.
      x: the parameter.
      side: the side of the matrix on which the basis is, 0 for left or 1 for right.
      rows_axis: the axis of the parameter that becomes the rows of the matrix.
      correction: factors whose product is to be added to the parameter before the
        multiplication. None if nothing is to be added.

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


def _dot(basis: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Multiplies along the last axis of the basis and an axis of the matrix."""
    flat, dimensions = basis.reshape(-1, basis.shape[-1]), (((1,), (axis,)), ((), ()))
    product = jax.lax.dot_general(flat, matrix, dimensions, jax.lax.Precision.HIGHEST)
    return product.reshape(*basis.shape[:-1], -1)


def _along_first(basis: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies `[rounds, r, a]` by `[a, b]`."""
    return _dot(basis, matrix, 0)


def _along_last(basis: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies `[rounds, r, b]` by `[a, b]`.

    If the basis has two rows or more, the library for CPUs copies the matrix to change
    its layout. If the library is given one block of the matrix at a time, the copy
    stays in the cache. Every block needs a copy of the basis, so that the basis must be
    small beside the block.
    """
    size, width = math.gcd(len(matrix), BLOCK), matrix.shape[1]
    whole = functools.partial(_dot, axis=1)
    rows = basis.shape[0] * basis.shape[1]
    few = size < BLOCK // 2 or width < BLOCK // 2
    if len(matrix) == size or few or not 1 < rows <= 8:
        return whole(basis, matrix)

    def by_blocks(basis, matrix):
        blocks = matrix.reshape(-1, size, width)
        bases = jnp.broadcast_to(basis, (len(blocks), *basis.shape))
        return einsum("nrcb,nab->rcna", bases, blocks).reshape(*basis.shape[:2], -1)

    return jax.lax.platform_dependent(basis, matrix, cpu=by_blocks, default=whole)


def product_of(factors: Factors, like: jax.Array, rows_axis: int) -> jax.Array:
    """Multiplies left factors by right factors: a matrix shaped like `like`.

    XLA fuses a sum of few outer products with the addition to the model. The result of
    a matrix product would be written to memory, and read again for the addition.
    """
    left, right = (x.reshape(-1, x.shape[-1]) for x in factors)
    axes = layout(like, rows_axis)
    if len(left) > FEW:
        return from_matrix(einsum(f"qm,qk->{axes}", left, right), like, rows_axis)
    first, second = (right, left) if axes == "km" else (left, right)
    terms = [x[:, None] * y[None] for x, y in zip(first, second, strict=True)]
    return from_matrix(functools.reduce(jnp.add, terms), like, rows_axis)


def scale_rounds(coefficients: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies what belongs to each round, `[rounds, ...]`, by its coefficient."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    return coefficients.astype(x.dtype).reshape(shape) * x
