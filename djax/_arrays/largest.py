"""The places of the entries of a vector that are largest in magnitude."""

import jax
import jax.numpy as jnp

from .precision import promote

# Numbers of rows are written into the last bits of magnitudes, of which float32 has 23.
_MOST_ROWS = 1 << 16


def largest(x: jax.Array, count: int) -> jax.Array:
    """Returns the places of the `count` largest entries, `int32[count]`.

    Of entries with the same magnitude, the first ones count as larger.
    """
    return jax.lax.top_k(jnp.abs(x), count)[1]


def largest_of_groups(x: jax.Array, count: int) -> jax.Array:
    """Returns the place of the largest entry of each of at most `count` groups.

    The d entries are the rows of a table of :math:`g = ⌈d / ⌈d / count⌉⌉` columns, one
    row after another, and a column is a group. The search is a single pass of integer
    maxima: the last bits of a magnitude are replaced by the number of its row, so that
    the largest integer of a column also says where it came from. With n rows,
    magnitudes are thereby compared with a relative error of :math:`n 2^{-22}`.

    Args:
      x: `float[d]`.
      count: the largest number of groups, from 1 to d, or 0 if d is 0.

    Returns:
      `int32[g]`. If the table had more than 65,536 rows, the exact places of the
      `count` largest entries.
    """
    rows = -(-x.size // max(count, 1))
    if not 0 < rows <= _MOST_ROWS:
        return largest(x, count)
    columns = -(-x.size // rows)
    x = jnp.abs(promote(x))
    table = jnp.pad(x, (0, rows * columns - x.size)).reshape(rows, columns)
    words = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    magnitudes = jax.lax.bitcast_convert_type(table, words)
    last = jnp.asarray(2 ** (rows - 1).bit_length() - 1, words)
    # The first of two rows with the same magnitude has the larger number. For this
    # reason, the zeros that fill up the last row are never the largest of a column.
    numbers = last - jax.lax.broadcasted_iota(words, table.shape, 0)
    best = ((magnitudes & ~last) | numbers).max(axis=0) & last
    row = (last - best).astype(jnp.int32)
    return row * columns + jnp.arange(columns, dtype=jnp.int32)
