"""The factors of all matrices as the rows of one array.

XLA compiles a kernel for every shape, and the matrices of a model have many shapes. For
this reason the factors of one side are put side by side in one array: row c of the
array consists of row c of each factor. What is done to factors is then compiled once
for all of them, and for both sides. Only the products with the matrices need the
factors one by one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.split import split

from .blocks import Block, Blocks, factor_shapes

_HIGHEST = jax.lax.Precision.HIGHEST
LANES = 32
"""Number of neighbouring entries of a row that always belong to one factor.

A factor whose length is not a multiple of this number ends with zeros. A row is thus
made of groups, each of which belongs to one factor, and whose entries processors
compute together.
"""

APART = LANES // 4  # Entries of a group that are summed first are so far apart.
ALIKE = 3  # The largest ratio of the sizes of two sides that are made equally large.

Kind = tuple[str, int]
"""The dtype of factors and the number r of their rows, which are joined."""
Rows = dict[Kind, jax.Array]
"""For each kind the array of its factors, `[..., r, groups, LANES]`."""


class Layout:
    """Where the factors of one side and of one kind are in their array.

    Attributes:
      factors: the shape and dtype of each factor, under the position of its matrix.
      lengths: the length of each factor.
    """

    def __init__(
        self, factors: Mapping[Block, jax.ShapeDtypeStruct], total: int, largest: int
    ):
        """Lays out the factors in the order of their blocks.

        If both sides have the same numbers of groups, they share kernels.

        Args:
          factors: the shape `(r, length)` and the dtype of the factors of each block.
          total: the number of groups in a row. Those behind the last factor are zero.
          largest: the number of groups of the longest factor.
        """
        self.factors = {i: factor for block, factor in factors.items() for i in block}
        self._lengths = {block: factor.shape[1] for block, factor in factors.items()}
        self.lengths = np.array([x.shape[1] for x in self.factors.values()])
        groups = groups_of(self.lengths)
        starts = np.cumsum(groups) - groups
        self._rest = total - sum(groups)
        count = len(groups)
        owners = [*np.repeat(np.arange(count), groups), *[count - 1] * self._rest]
        self._owners = np.array(owners, np.int32)
        # The groups of each factor. Those that a short factor does not own count as 0.
        within = np.arange(largest)
        self._owned = within < groups[:, None]
        self._groups = np.where(self._owned, starts[:, None] + within, 0)
        self._pieces = _pieces_of(self._lengths)

    def join(self, factors: Mapping[int, jax.Array]) -> jax.Array:
        """Joins factors, which are given under the positions of their matrices.

        Args:
          factors: arrays `[..., r, length]`.

        Returns:
          `[..., r, groups, LANES]`.
        """
        parts = []
        for x in (factors[i] for i in self.factors):
            parts += [x, *_zeros(x, -x.shape[-1] % LANES)]
        parts += _zeros(parts[0], self._rest * LANES)
        joined = jnp.concatenate(parts, axis=-1)
        return joined.reshape(*joined.shape[:-1], -1, LANES)

    def split(self, rows: jax.Array) -> dict[int, jax.Array]:
        """Undoes :meth:`join`."""
        lengths: dict[Block, int]
        lengths = {(i,): factor.shape[1] for i, factor in self.factors.items()}
        return {i: x for (i,), x in self._cut(rows, lengths).items()}

    def blocks(self, rows: jax.Array) -> Blocks:
        """Splits `[..., r, groups, LANES]` into the factors of each block.

        Returns:
          `[..., r, length]` for a block of one matrix, `[..., r, n, length]` for a
          block of `n` matrices.
        """
        return self._cut(rows, self._lengths)

    def _cut(self, rows: jax.Array, lengths: Mapping[Block, int]) -> Blocks:
        flat = rows.reshape(*rows.shape[:-2], -1)
        sizes = [len(block) * groups_of(n) * LANES for block, n in lengths.items()]
        sizes += [self._rest * LANES]
        pieces, found = split(flat, sizes, flat.ndim - 1)[:-1], {}
        for piece, (block, length) in zip(pieces, lengths.items(), strict=True):
            if len(block) > 1:
                piece = piece.reshape(*piece.shape[:-1], len(block), -1)
            found[block] = piece[..., :length]
        return found

    def message(self, blocks: Blocks) -> jax.Array:
        """Joins the factors of all blocks without zeros, `[rounds, r, entries]`.

        Args:
          blocks: `[rounds, r, length]` or `[rounds, r, n, length]` for each block.
        """
        parts = [blocks[block] for block in self._lengths]
        rounds, r, *_ = parts[0].shape
        flat = [x.reshape(rounds * r, -1) for x in parts]
        return jnp.concatenate(flat, axis=1).reshape(rounds, r, -1)

    def place(self, message: jax.Array) -> jax.Array:
        """Brings a message into the form `[rounds, r, groups, LANES]`."""
        pieces = split(message, [n * length for n, length in self._pieces], 2)
        parts = []
        for piece, (n, length) in zip(pieces, self._pieces, strict=True):
            fill = -length % LANES
            if n > 1:
                piece = piece.reshape(*piece.shape[:2], n, length)
                piece = jnp.pad(piece, [(0, 0)] * 3 + [(0, fill)])
                parts.append(piece.reshape(*piece.shape[:2], -1))
            else:
                parts += [piece, *_zeros(piece, fill)]
        parts += _zeros(message, self._rest * LANES)
        joined = jnp.concatenate(parts, axis=-1)
        return joined.reshape(*joined.shape[:2], -1, LANES)

    def sums(self, x: jax.Array) -> jax.Array:
        """Sums `[..., groups, LANES]` for each factor, `[..., factors]`."""
        # A product with ones is faster than a sum over neighbouring entries. The sum of
        # four entries that are apart is computed together with x, and makes the array
        # small that is written to memory.
        a, b, c, d = (x[..., i : i + APART] for i in range(0, LANES, APART))
        ones = jnp.ones(APART, x.dtype)
        of_groups = jnp.matmul(a + b + (c + d), ones, precision=_HIGHEST)
        return jnp.where(self._owned, of_groups[..., self._groups], 0).sum(-1)

    def norms(self, x: jax.Array) -> jax.Array:
        """Returns the norms of `[..., groups, LANES]` for each factor."""
        return jnp.sqrt(self.sums(x * x))

    def spread(self, x: Any) -> Any:
        """Repeats what belongs to factors, `[..., factors]`: `[..., groups, 1]`."""
        return x[..., self._owners, None]


def _pieces_of(lengths: Mapping[Block, int]) -> list[tuple[int, int]]:
    """Cuts a message into pieces that are filled up with zeros in one operation.

    Factors without zeros between them are one piece, so that few kernels are compiled.

    Args:
      lengths: the length of the factors of each block.

    Returns:
      The number of the factors of each piece, and their length.
    """
    pieces: list[tuple[int, int]] = []
    for block, length in lengths.items():
        if length % LANES == 0 or len(block) == 1:
            before = pieces.pop()[1] if pieces and pieces[-1][1] % LANES == 0 else 0
            pieces.append((1, before + len(block) * length))
        else:
            pieces.append((len(block), length))
    return pieces


Layouts = tuple[dict[Kind, Layout], dict[Kind, Layout]]
"""Where the left and the right factors of each kind are."""


def groups_of(length: Any) -> Any:
    """The number of groups that a factor of this length takes."""
    return -(-length // LANES)


def _zeros(like: jax.Array, length: int) -> list[jax.Array]:
    """Zeros that fill up a row, or nothing if it is full."""
    return [jnp.zeros((*like.shape[:-1], length), like.dtype)] if length else []


def layouts_of(
    leaves: Sequence[jax.Array], blocks: Iterable[Block], rank: int, rows_axis: int
) -> Layouts:
    """Lays out the left and the right factors of each kind.

    Args:
      leaves: the leaves of the model.
      blocks: all of its blocks of matrices.
      rank: number of columns that the user asked for.
      rows_axis: see :func:`djax.power_gossip`.
    """
    shapes = factor_shapes(leaves, rank, rows_axis)
    kinds: dict[Kind, list[Block]] = {}
    for block in blocks:
        factor = shapes[block[0], 0]
        kinds.setdefault((factor.dtype.name, factor.shape[0]), []).append(block)
    layouts: Layouts = {}, {}
    for kind, some in kinds.items():
        sides = [{block: shapes[block[0], side] for block in some} for side in (0, 1)]
        groups: list[list[int]] = [
            [groups_of(x.shape[1]) for block, x in side.items() for _ in block]
            for side in sides
        ]
        # The smaller side is filled up to the size of the other one, so that both share
        # kernels. If it is far smaller, the zeros would take too long in each step.
        alike = max(map(sum, groups)) <= ALIKE * min(map(sum, groups))
        for side, factors in enumerate(sides):
            shared = groups if alike else [groups[side]]
            total, largest = max(map(sum, shared)), max(map(max, shared))
            layouts[side][kind] = Layout(factors, total, largest)
    return layouts


def joined(factors: Mapping[int, jax.Array], layouts: Mapping[Kind, Layout]) -> Rows:
    """Joins the factors of one side; see :meth:`Layout.join`."""
    return {kind: layout.join(factors) for kind, layout in layouts.items()}


def separated(rows: Rows, layouts: Mapping[Kind, Layout]) -> dict[int, jax.Array]:
    """Undoes :func:`joined`: returns each factor under the position of its matrix."""
    found = {}
    for kind, layout in layouts.items():
        found |= layout.split(rows[kind])
    return found


def in_blocks(rows: Rows, layouts: Mapping[Kind, Layout]) -> Blocks:
    """Splits the factors of one side; see :meth:`Layout.blocks`."""
    found = {}
    for kind, layout in layouts.items():
        found |= layout.blocks(rows[kind])
    return found
