"""The power iterations of one step, of which only few are compiled."""

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
    """Iterates on the matrices of a model, and averages its vectors once.

    The parameters are not written in between. An iteration is told what those before it
    have added to the matrices, as rows whose product that is.

    Args:
      iteration: `(odd, t, matrices, factors, corrections, vectors) -> (change, vectors,
        factors)`, the iteration number t of the step, from 0.
      odd: whether the first one orthogonalizes the right factors, 0 or 1; they
        alternate.
      count: number of iterations.
      matrices: the model's, before the first iteration.
      factors: of this step's edges, left and right.
      vectors: what the first iteration sends besides, and averages.

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
    if count > 2:  # Of one odd and one even iteration, which is compiled once.
        carry, _ = jax.lax.scan(
            lambda carry, _: (another(1 - odd, *another(odd, *carry)), None),
            carry,
            length=(count - 1) // 2,
        )
    if count % 2 == 0:
        carry = another(odd, *carry)
    _, factors, corrections = carry
    return corrections, parts, factors
