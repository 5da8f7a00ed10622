"""Makes the factors of PowerGossip orthonormal, those of many matrices at once."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.batches import any_of_runs

from .rows import Kind, Layout, Rows

EPSILON = 1e-8  # Added to the norms, as in the Gram-Schmidt of the published code.
# A row depends on the rows before it if less than this part of its norm remains when
# they are projected out.
DEPENDENT = 1e-3


def keep(new: Rows, old: Rows, layouts: Mapping[Kind, Layout]) -> Rows:
    """Returns new rows, and old ones in place of rows without a finite, positive norm.

    If a row became zero, the iteration would multiply by zero, and both factors would
    be zero for ever.

    Args:
      new: factors of all matrices.
      old: the factors that an edge had before.
      layouts: where the factors of each kind are in both of them.
    """

    def choose(kind):
        norms = layouts[kind].norms(new[kind])
        good = layouts[kind].spread((norms > 0) & jnp.isfinite(norms))
        return jnp.where(good, new[kind], old[kind])

    return {kind: choose(kind) for kind in new}


def signs(factors: Rows, layouts: Mapping[Kind, Layout]) -> Rows:
    """Returns the signs of each row, divided by the square root of their number."""

    def of_kind(x, layout):
        roots = np.sqrt(layout.lengths).reshape((1,) * (x.ndim - 2) + (-1,))
        return jnp.sign(x) / layout.spread(roots).astype(x.dtype)

    return {kind: of_kind(x, layouts[kind]) for kind, x in factors.items()}


def orthonormal(factors: Rows, layouts: Mapping[Kind, Layout]) -> Rows:
    """Orthonormalizes the rows of each factor."""
    return {kind: _gram_schmidt(x, layouts[kind]) for kind, x in factors.items()}


def _gram_schmidt(rows: jax.Array, layout: Layout) -> jax.Array:
    """Orthonormalizes factors row by row, as the published code does.

    If a row depends on the rows before it, only rounding errors remain of it, in any
    direction. The rows before it are then projected out again, up to two times, which
    the published code does not do: its rows are not orthogonal in that case.

    Instead of projecting a row out of all later ones, each row has those before it
    projected out, one after the other. The result is the same, and a loop then needs to
    touch two rows at a time only.

    Args:
      rows: `[..., r, groups, LANES]`.
      layout: where the factors are in it.
    """
    count = rows.shape[-3]

    def row_of(rows, i):
        return jax.lax.dynamic_index_in_dim(rows, i, -3, False)

    def normalize(row):
        norms = layout.norms(row)
        return row / layout.spread(norms + EPSILON), norms

    if count == 1:
        return normalize(rows)[0]

    def project_out(row, rows, j):
        other = row_of(rows, j)
        return row - layout.spread(layout.sums(other * row)) * other

    def orthogonalize(found, rows, i):
        row, remains, norms_before = found

        def project_if_before(j, row):
            return jax.lax.cond(j < i, project_out, lambda row, *_: row, row, rows, j)

        other = jax.lax.fori_loop(0, count - 1, project_if_before, row)
        other, norms = normalize(other)
        dependent = remains < DEPENDENT
        row = jnp.where(layout.spread(dependent), other, row)
        remains = jnp.where(dependent, norms / norms_before, remains)
        return row, remains, jnp.ones_like(norms)

    def take(i, rows):
        row = row_of(rows, i)
        norms = layout.norms(row)
        found = row, jnp.zeros_like(norms), norms  # Nothing has remained of it so far.

        def again(_, found):
            dependent = any_of_runs((found[1] < DEPENDENT).any())
            return jax.lax.cond(
                dependent, orthogonalize, lambda found, *_: found, found, rows, i
            )

        row, *_ = jax.lax.fori_loop(0, 3, again, found)
        return jax.lax.dynamic_update_index_in_dim(rows, row, i, -3)

    return jax.lax.fori_loop(0, count, take, rows)
