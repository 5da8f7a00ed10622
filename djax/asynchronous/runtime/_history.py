"""Keeps the metrics of many gradients in little memory."""

import jax
import numpy as np

from djax._interfaces import PyTree

# Number of trees that are joined at a time. An array of NumPy takes about a hundred
# bytes more than its contents, which is a lot for a single number.
_BLOCK = 1024


class History:
    """A list of trees of the same structure and shapes, stored as few arrays."""

    def __init__(self):
        """Starts with an empty list."""
        self._blocks: list[PyTree] = []
        self._latest: list[PyTree] = []

    def append(self, tree: PyTree) -> None:
        """Appends a copy of a tree, since a view would keep an array of JAX alive."""
        self._latest.append(jax.tree.map(np.array, tree))
        if len(self._latest) == _BLOCK:
            self._close()

    def _close(self) -> None:
        self._blocks.append(jax.tree.map(lambda *xs: np.stack(xs), *self._latest))
        self._latest = []

    def stacked(self) -> PyTree:
        """Returns all trees as one, with leaves `[1, trees, ...]`, or `()` if empty."""
        if self._latest:
            self._close()
        if not self._blocks:
            return ()
        return jax.tree.map(lambda *xs: np.concatenate(xs)[None], *self._blocks)
