"""The matrices of a model in blocks, so that equal ones are computed together.

XLA compiles a kernel for every shape, and a loop over many small matrices takes longer
than their multiplications. All small matrices of one shape and dtype are therefore
stacked to one array, a block. A large matrix is a block by itself, since a copy of it
would cost a pass over its memory.
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
"""The positions, among the leaves, of the matrices of a block.

They are small matrices of one shape and dtype, or a single large matrix.
"""
Blocks = dict[Block, jax.Array]
"""For each block the array of its matrices, with a new axis if there are several."""


def blocks_of(leaves: Sequence[jax.Array]) -> list[Block]:
    """Forms a block of all small matrices of a shape and dtype, and of each large one.

    Args:
      leaves: the leaves of the model.
    """
    blocks: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        if is_matrix(x):
            blocks.setdefault((x.shape, x.dtype) if is_small(x) else i, []).append(i)
    return [tuple(block) for block in blocks.values()]


def stacked(leaves: Sequence[jax.Array], blocks: Iterable[Block]) -> Blocks:
    """Stacks the matrices of each block along a new leading axis.

    Args:
      leaves: the leaves of the model.
      blocks: the blocks that are wanted.
    """
    return {
        block: jnp.stack([leaves[i] for i in block])
        if len(block) > 1
        else leaves[block[0]]
        for block in blocks
    }


def unstacked(blocks: Blocks) -> dict[int, jax.Array]:
    """Undoes :func:`stacked`: returns the array of each matrix, under its position."""
    found = {}
    for block, x in blocks.items():
        if len(block) == 1:
            found[block[0]] = x
        else:
            pieces = split(x, [1] * len(block))
            found |= {i: piece[0] for i, piece in zip(block, pieces, strict=True)}
    return found


def each(fn: Callable, block: Block, in_axes: Any, out_axes: int) -> Callable:
    """Makes a function of one matrix a function of a block, all of its matrices."""
    return fn if len(block) == 1 else jax.vmap(fn, in_axes, out_axes)


def factor_shapes(
    leaves: Sequence[jax.Array], rank: int, rows_axis: int
) -> dict[tuple[int, int], jax.ShapeDtypeStruct]:
    """Returns the shapes of the two factors that one edge has for each matrix.

    Args:
      leaves: the leaves of the model.
      rank: number of columns that the user asked for.
      rows_axis: see :func:`djax.power_gossip`.

    Returns:
      The shapes under the position of the leaf and the side, 0 for left and 1 for
      right: `[r, m]` or `[r, k]`, in float32 or wider.
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
    """Raises ValueError unless the factors on both sides belong to these leaves.

    Args:
      leaves: the leaves of the model.
      sides: the left and the right factors, for each leaf.
      rank: number of columns that the user asked for.
      rows_axis: see :func:`djax.power_gossip`.
    """
    for (i, side), x in factor_shapes(leaves, rank, rows_axis).items():
        if np.shape(sides[side][i])[1:] != x.shape:
            raise ValueError(
                "power_gossip: the state belongs to another rank or rows_axis, or "
                "to other parameters: make a new state by its init."
            )


def unflatten(treedef: Any, leaves: Mapping[int, jax.Array]) -> PyTree:
    """Makes a tree with these leaves at their positions, and None at all others."""
    return treedef.unflatten(leaves.get(i) for i in range(treedef.num_leaves))
