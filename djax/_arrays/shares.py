"""Shares of arrays, one for each member of a group of workers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._interfaces import Communicator, PyTree


def _cut(x: Any, members: int) -> tuple[tuple[int, ...], int, int]:
    """How a leaf is cut: its shape, where scalars are vectors of one entry; the axis
    along which it is cut; and the length of a share along this axis.
    """
    shape = np.shape(x) or (1,)
    axis = int(np.argmax(shape))
    return shape, axis, -(-shape[axis] // members)


def own_share(tree: PyTree, local: Communicator) -> PyTree:
    """Returns this member's share of each leaf."""

    def of_leaf(x):
        shape, axis, length = _cut(x, local.size)
        missing = length * local.size - shape[axis]
        widths = [(0, missing * (i == axis)) for i in range(len(shape))]
        whole = jnp.pad(jnp.reshape(x, shape), widths)
        start = local.rank() * length
        return jax.lax.dynamic_slice_in_dim(whole, start, length, axis)

    return jax.tree.map(of_leaf, tree)


def collect_shares(share: PyTree, like: PyTree, local: Communicator) -> PyTree:
    """Puts the shares of all members together, in the shapes of `like`."""

    def of_leaf(shares, x):
        shape, axis, length = _cut(x, local.size)
        padded = (*shape[:axis], length * local.size, *shape[axis + 1 :])
        whole = jnp.moveaxis(shares, 0, axis).reshape(padded)
        whole = jax.lax.slice_in_dim(whole, 0, shape[axis], axis=axis)
        return whole.reshape(np.shape(x))

    return jax.tree.map(of_leaf, local.all_gather(share), like)
