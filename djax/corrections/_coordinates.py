r"""Which coordinates are averaged in a step, as all workers know without a message.

All draws are made of integers alone, and therefore come out the same on machines whose
logarithms differ in the last digit. No draw reads the parameters or has their size: a
step costs as much time and memory as there are coordinates that it selects.

* Independent draws with probability p: the number F of coordinates that are left out
  between two selected ones is geometrically distributed, :math:`P(F \ge f) = (1 -
  p)^f`. These numbers are drawn one after the other, instead of one bit for each
  coordinate.
* A random order of the coordinates: a bijection of the rows and columns of a table with
  about as many cells as there are coordinates. It shifts all cells of a column by a
  random number of rows, then all cells of a row by a random number of columns, and so
  on, a Feistel network. What it draws are a few random numbers for each row and column,
  instead of sorting as many as there are coordinates.

Luby and Rackoff, `How to Construct Pseudorandom Permutations from Pseudorandom
Functions <https://doi.org/10.1137/0217022>`_, 1988.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from djax._arrays.split import split

LARGEST_SIZE = np.iinfo(np.int32).max

# The probability that a step would select more coordinates of a leaf than it can send.
_EXCESS = 1e-9
# Rounds of shifts. With 8 of them, all 120 orders of five coordinates are about
# equally probable.
_ROUNDS = 8

Selection = Literal["random", "shuffled", "partitioned"]


def select(
    selection: Selection,
    fraction: float,
    key: jax.Array,
    step: ArrayLike,
    sizes: Sequence[int],
) -> list[jax.Array]:
    """Returns the coordinates of a step, as places in each raveled leaf.

    Args:
      selection: how the coordinates are chosen.
      fraction: the share of the coordinates.
      key: the key that all workers share.
      step: `int32[]`, the number of steps so far.
      sizes: the number of coordinates of each leaf.

    Returns:
      `int32[k]` for each leaf, with the size of the leaf in unused places at the end.
    """
    if selection == "random":
        return drawn_anew(fraction, key, step, sizes)
    parts, redrawn = math.ceil(1 / fraction), selection == "partitioned"
    return in_turn(parts, key, step, sizes, redrawn=redrawn)


def capacity(fraction: float, size: int) -> int:
    """How many coordinates of a leaf independent draws can select.

    Args:
      fraction: the probability p.
      size: the number of coordinates.

    Returns:
      The smallest number that is exceeded with a probability below 1e-9.
    """
    import scipy.special  # Takes a sixth of the time of `import jax`.

    return bisect.bisect_left(
        range(size),
        True,
        key=lambda count: scipy.special.bdtrc(count, size, fraction) < _EXCESS,
    )


def drawn_anew(
    fraction: float, key: jax.Array, step: ArrayLike, sizes: Sequence[int]
) -> list[jax.Array]:
    """Selects each coordinate of each leaf with probability `fraction`.

    Args:
      fraction: the probability p.
      key: the key that all workers share.
      step: `int32[]`, the number of steps so far.
      sizes: the number of coordinates of each leaf.

    Returns:
      For each leaf `int32[capacity]`, ascending; numbers beyond the last selected
      coordinate are the size of the leaf.
    """
    groups = _by_size(sizes)
    rooms = {size: capacity(fraction, size) for size in groups}
    counts = [len(leaves) * rooms[size] for size, leaves in groups.items()]
    left_out = _left_out(fraction, jax.random.fold_in(key, step), sum(counts))
    pieces = split(left_out, counts)

    def places(left_out, size):
        if not size:
            return jnp.zeros(left_out.shape, jnp.int32)
        # A sum of two numbers below 2**31 does not overflow, a sum of more may. From
        # the first place beyond the leaf on, all others are beyond it as well.
        found = jnp.cumsum(jnp.minimum(left_out, size) + 1, axis=1, dtype=jnp.uint32)
        beyond = jax.lax.cummax((found > size).astype(jnp.int32), axis=1) > 0
        return jnp.where(beyond, size, found - 1).astype(jnp.int32)

    found = {
        size: places(piece.reshape(len(groups[size]), rooms[size]), size)
        for size, piece in zip(groups, pieces, strict=True)
    }
    return _of_leaves(found, groups)


def _by_size(sizes: Sequence[int]) -> dict[int, list[int]]:
    """Lists the leaves of each size, whose coordinates are found together.

    A program of many leaves then compiles faster.
    """
    groups: dict[int, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    return groups


def _of_leaves(
    found: Mapping[int, jax.Array], groups: Mapping[int, Sequence[int]]
) -> list[jax.Array]:
    """Puts what was found for each size, `[leaves of this size, ...]`, in order."""
    rows = {
        i: found[size][row] for size in groups for row, i in enumerate(groups[size])
    }
    return [rows[i] for i in sorted(rows)]


def _left_out(fraction: float, key: jax.Array, count: int) -> jax.Array:
    r"""Draws `uint32[count]` with :math:`P(F \ge f) = (1 - p)^f`.

    For a small p there would be too many probabilities for one table. But F = m Q + R,
    where R is the rest, and Q and R are independent. Both have small tables.
    """
    remains = 1.0 - fraction
    longest = 32 * math.log(2) / fraction  # With a probability of 2**-32.
    m = math.isqrt(math.ceil(longest)) + 1
    at_least = remains ** np.arange(m)
    rests = (at_least - remains**m) / (1 - remains**m)
    quotients = (remains**m) ** np.arange(math.ceil(longest / m) + 1)
    words = jax.random.bits(key, (2, count), jnp.uint32)
    rest, quotient = map(_look_up, (rests, quotients), words)
    return m * quotient + rest


def _look_up(at_least: np.ndarray, words: jax.Array) -> jax.Array:
    """Draws numbers F from the probabilities of F being at least 0, 1, 2, ....

    F is the number of probabilities but the first that are above a random number.
    """
    limits = np.minimum(np.round(at_least[:0:-1] * 2.0**32), 2.0**32 - 1)
    below = jnp.searchsorted(jnp.asarray(limits, jnp.uint32), words, side="right")
    return len(limits) - below.astype(jnp.uint32)


def in_turn(
    parts: int,
    key: jax.Array,
    step: ArrayLike,
    sizes: Sequence[int],
    *,
    redrawn: bool,
) -> list[jax.Array]:
    """Selects the next part of each leaf, in a random order of its coordinates.

    Args:
      parts: number of parts.
      key: the key that all workers share.
      step: `int32[]`, the number of steps so far.
      sizes: the number of coordinates of each leaf.
      redrawn: whether a new order is drawn after the last part. Leaves with fewer
        coordinates than parts then have only as many parts as coordinates.

    Returns:
      For each leaf `int32[ceil(size / parts)]`. Some parts have one coordinate less;
      then the last number is the size of the leaf.
    """
    groups = _by_size(sizes)
    sizes_of: dict[int, list[int]] = {}
    for size in groups:
        count = min(parts, max(1, size)) if redrawn else parts
        sizes_of.setdefault(count, []).append(size)
    step = jnp.asarray(step, jnp.int32)
    found: dict[int, jax.Array] = {}
    for count, some in sizes_of.items():
        cycle, now = jax.lax.div(step, jnp.full_like(step, count)), _rem(step, count)
        seed = jax.random.fold_in(key, count)
        seed = jax.random.fold_in(seed, cycle) if redrawn else seed
        orders = _orders(seed, {size: len(groups[size]) for size in some})
        for size, order in zip(some, orders, strict=True):
            found[size] = _part(order, now, count, size)
    return _of_leaves(found, groups)


Order = tuple[jax.Array, jax.Array]
"""Shifts of the columns, and of the rows, of the tables of some leaves of one size:
`uint32[_ROUNDS, leaves, columns]` and `uint32[_ROUNDS, leaves, rows]`."""


def _orders(key: jax.Array, leaves: Mapping[int, int]) -> list[Order]:
    """Draws an order for each leaf of each size."""
    lengths, shapes, most = [], [], []
    for size, count in leaves.items():
        rows, columns = _table(size)
        for shifted, by in ((columns, rows), (rows, columns)):
            shapes.append((_ROUNDS, count, shifted))
            lengths.append(math.prod(shapes[-1]))
            most.append(by)
    words = split(jax.random.bits(key, (sum(lengths),), jnp.uint32), lengths)
    shifts = (
        _rem(x.reshape(shape), by)
        for x, shape, by in zip(words, shapes, most, strict=True)
    )
    return list(zip(shifts, shifts, strict=True))


def _part(order: Order, now: jax.Array, count: int, size: int) -> jax.Array:
    """Returns the coordinates of part `now` of some leaves, `int32[leaves, k]`."""
    least, more = divmod(size, count)  # `more` parts have one coordinate more.
    start = now * least + jnp.minimum(now, more)
    length = jnp.where(now < more, least + 1, least)
    place = jnp.arange(least + (more > 0), dtype=jnp.int32)
    there = jnp.minimum(start + place, max(0, size - 1))
    found = _permuted(order, there, size)
    return jnp.where((place < length)[None], found, size)


def _permuted(order: Order, places: jax.Array, size: int) -> jax.Array:
    """Returns the coordinates that stand at these places, `int32[leaves, k]`."""
    places = jnp.broadcast_to(places[None], (order[0].shape[1], len(places)))
    if not size:
        return places
    rows, columns = _table(size)

    def look_up(shifts, which):
        return jnp.take_along_axis(shifts, which, axis=1, mode="promise_in_bounds")

    def shift(cell, shifts):
        row, column = cell
        of_column, of_row = shifts
        row = _rem(row + look_up(of_column, column), rows)
        column = _rem(column + look_up(of_row, row), columns)
        return (row, column), None

    def shuffled(cell):
        start = jax.lax.div(cell, jnp.full_like(cell, columns)), _rem(cell, columns)
        (row, column), _ = jax.lax.scan(shift, start, order)
        return row * columns + column

    # The table may have some cells more than the leaf has coordinates. From these the
    # order is followed further until it comes back, so that it permutes the others.
    cells = jax.lax.while_loop(
        lambda cells: jnp.any(cells >= size),
        lambda cells: jnp.where(cells >= size, shuffled(cells), cells),
        shuffled(places.astype(jnp.uint32)),
    )
    return cells.astype(jnp.int32)


def _rem(x: jax.Array, n: int) -> jax.Array:
    """The remainder for numbers that are not negative, which compiles fast."""
    return jax.lax.rem(x, jnp.full_like(x, n))


def _table(size: int) -> tuple[int, int]:
    """Numbers of rows and columns of a table with at least `size` cells."""
    columns = math.isqrt(max(0, size - 1)) + 1
    return -(-size // columns), columns
