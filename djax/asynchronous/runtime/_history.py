"""What a worker's gradients measured, in little memory."""

import jax
import numpy as np

from djax._interfaces import PyTree

# Trees that wait until they are put into arrays: an array of NumPy costs about a
# hundred bytes more than its contents.
_BLOCK = 1024


class History:
    """Trees of the same structure and shapes, one after another."""

    def __init__(self):
        """Nothing has been measured."""
        self._blocks: list[PyTree] = []
        self._latest: list[PyTree] = []

    def append(self, tree: PyTree) -> None:
        """Copies a tree of arrays: a view of an array of JAX would keep all of it."""
        self._latest.append(jax.tree.map(np.array, tree))
        if len(self._latest) == _BLOCK:
            self._close()

    def _close(self) -> None:
        self._blocks.append(jax.tree.map(lambda *xs: np.stack(xs), *self._latest))
        self._latest = []

    def stacked(self) -> PyTree:
        """All of them, leaves `[1, trees, ...]`; `()` if there are none."""
        if self._latest:
            self._close()
        if not self._blocks:
            return ()
        return jax.tree.map(lambda *xs: np.concatenate(xs)[None], *self._blocks)
