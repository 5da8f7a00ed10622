"""Where, and how precisely, the anchors of an outer optimizer are kept.

An anchor is a copy of the model that is needed in averaging steps only. It can be kept
in half of the memory, as bfloat16, or outside of the accelerator's memory.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arrays import bits
from djax._arrays.precision import promote
from djax._interfaces import PyTree
from djax.mixing._narrow import round_at_random

AnchorDtype = Literal["bfloat16", None]
Memory = Literal["device", "host"]


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Stores trees of arrays between averaging steps.

    Attributes:
      dtype: name of the dtype of the anchors; None keeps that of the parameters.
      memory: whether they are kept in the memory of the device or of the host.
    """

    dtype: str | None
    memory: Memory

    def store(self, anchor: PyTree, like: PyTree, step: ArrayLike) -> PyTree:
        """Returns an anchor as it is kept: see :meth:`load`.

        If floats are rounded, they are rounded at random, so that the expected value is
        the exact one. Rounding to the nearest number would hold a parameter where it is
        as long as it moves by less than half of the distance between two numbers. All
        workers make the same draws, so that equal anchors stay equal.

        Args:
          anchor: the anchor, in float32 or wider.
          like: the parameters, whose dtypes anchors have if :attr:`dtype` is None.
          step: `int32[]`, the number of steps so far.
        """
        if self.dtype is None:
            kept = jax.tree.map(lambda a, x: a.astype(jnp.result_type(x)), anchor, like)
            return self.move_out(kept)
        leaves, treedef = jax.tree.flatten(anchor)
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), step)
        leaves = list(map(promote, leaves))
        rounded = [
            round_at_random(a, noise, jnp.dtype(self.dtype))
            for a, noise in zip(leaves, bits.noise(key, leaves), strict=True)
        ]
        return self.move_out(treedef.unflatten(rounded))

    def load(self, kept: PyTree, like: PyTree) -> PyTree:
        """Returns a stored anchor on the device, in the dtypes of the parameters.

        Args:
          kept: the anchor as it is kept.
          like: the parameters.
        """
        return optax.tree.cast_like(self.move_in(kept), like)

    def move_out(self, tree: PyTree) -> PyTree:
        """Moves arrays to the memory in which they are kept."""
        return self._move(tree, jax.memory.Space.Host)

    def move_in(self, tree: PyTree) -> PyTree:
        """Moves arrays to the memory of the device, which calculates with them."""
        return self._move(tree, jax.memory.Space.Device)

    def _move(self, tree: PyTree, space: Any) -> PyTree:
        if self.memory == "device":
            return tree
        return jax.tree.map(lambda x: jax.device_put(x, space), tree)
