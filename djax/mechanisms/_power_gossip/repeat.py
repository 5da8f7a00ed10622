"""Runs the power iterations of one step, of which it compiles only a few."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .blocks import Blocks
from .products import Corrections


def repeated(
    iteration: Callable[..., Any],
    odd: int,
    count: int,
    matrices: Blocks,
    factors: tuple[Blocks, Blocks],
    vectors: list[jax.Array],
) -> tuple[Corrections, list[jax.Array], tuple[Blocks, Blocks]]:
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
      What all iterations add to each block of matrices, as rows on the left and on the
      right, `[iterations, rounds, r, m or k]`; what they add to the vectors; and the
      next factors.
    """
    change, parts, factors = iteration(odd, 0, matrices, factors, {}, vectors)
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
