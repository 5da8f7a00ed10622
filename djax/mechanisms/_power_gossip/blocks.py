"""The matrices of a model in blocks, so that equal ones are computed together.

XLA compiles a kernel for every shape, and a loop over many small matrices costs more
than their numbers. So all small matrices of one shape and dtype are stacked to one
array, a block. A large matrix is a block by itself, since a copy of it would cost a
pass over its memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.matrices import is_matrix, matrix_shape
from djax._arrays.precision import promote
from djax._arrays.split import is_small, split
from djax._interfaces import PyTree

Block = tuple[int, ...]
"""Numbers of small matrices of one shape, or of one large matrix, among the leaves."""
Blocks = dict[Block, jax.Array]
"""For each block the arrays of its matrices, along a new axis if there are several."""


def blocks_of(leaves: Sequence[jax.Array]) -> list[Block]:
    """One block for all small matrices of a shape and dtype, and one a large matrix."""
    blocks: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        if is_matrix(x):
            blocks.setdefault((x.shape, x.dtype) if is_small(x) else i, []).append(i)
    return [tuple(block) for block in blocks.values()]


def stacked(some: Any, blocks: Iterable[Block], axis: int) -> Blocks:
    """Stacks the arrays of each block.

    Args:
      some: arrays, by their numbers.
      blocks: which numbers belong together.
      axis: the new axis of blocks of several arrays.
    """
    return {
        block: jnp.stack([some[i] for i in block], axis)
        if len(block) > 1
        else some[block[0]]
        for block in blocks
    }


def unstacked(blocks: Blocks, axis: int) -> dict[int, jax.Array]:
    """Undoes :func:`stacked`: the array of each matrix, under its number."""
    found = {}
    for block, x in blocks.items():
        if len(block) == 1:
            found[block[0]] = x
        else:
            pieces = split(jnp.moveaxis(x, axis, 0), [1] * len(block))
            found |= {i: piece[0] for i, piece in zip(block, pieces, strict=True)}
    return found


def each(fn: Callable, block: Block, in_axes: Any, out_axes: int) -> Callable:
    """Makes a function of one matrix a function of all matrices of a block."""
    return fn if len(block) == 1 else jax.vmap(fn, in_axes, out_axes)


def factor_shapes(
    leaves: Sequence[jax.Array], rank: int, rows_axis: int
) -> dict[tuple[int, int], jax.ShapeDtypeStruct]:
    """The shapes of the factors of all matrices, of one edge.

    Args:
      leaves: of the model.
      rank: number of columns that the user asked for.
      rows_axis: see :func:`djax.power_gossip`.

    Returns:
      By number of the leaf and side, 0 for left and 1 for right: `[r, m]` or `[r, k]`,
      in float32 or wider.
    """
    factors = {}
    for i, x in enumerate(leaves):
        if is_matrix(x):
            shape, dtype = matrix_shape(x, rows_axis), jnp.result_type(promote(x))
            for side in (0, 1):
                rows = min(rank, *shape), shape[side]
                factors[i, side] = jax.ShapeDtypeStruct(rows, dtype)
    return factors


def check_factors(
    leaves: Sequence[jax.Array], sides: Sequence[Any], rank: int, rows_axis: int
) -> None:
    """Raises ValueError unless both sides' factors are those of these leaves."""
    for (i, side), x in factor_shapes(leaves, rank, rows_axis).items():
        if np.shape(sides[side][i])[1:] != x.shape:
            raise ValueError(
                "power_gossip: the state belongs to another rank or rows_axis, or "
                "to other parameters: make a new state by its init."
            )


def unflatten(treedef: Any, leaves: Mapping[int, jax.Array]) -> PyTree:
    """The tree with these leaves under their numbers, None in place of all others."""
    return treedef.unflatten(leaves.get(i) for i in range(treedef.num_leaves))
