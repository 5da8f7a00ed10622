"""How a worker says that what it sends is not finite, at no additional bytes.

A model with NaN or infinities must not spread, and looking at every message that
arrives would take a pass over the model for each neighbour. So the sender looks once
at what it has, and fills the smallest array of its message with NaN if anything in it
is not finite. Receivers look at one number of that array.
"""

import jax
import jax.numpy as jnp

from djax._base import PyTree


def mark(message: PyTree, finite: jax.Array) -> PyTree:
    """Returns what to send: the message, marked unless the sender's model is finite.

    Args:
      message: floating-point arrays.
      finite: `bool[]`, whether the sender's model is.
    """
    leaves, treedef = jax.tree.flatten(message)
    if (i := _smallest(leaves)) is not None:
        nan = jnp.asarray(jnp.nan, jnp.result_type(leaves[i]))
        leaves[i] = jnp.where(finite, leaves[i], nan)
    return jax.tree.unflatten(treedef, leaves)


def unmarked(message: PyTree) -> jax.Array:
    """Whether the sender of a message has a finite model, `bool[]`."""
    leaves = jax.tree.leaves(message)
    if (i := _smallest(leaves)) is None:
        return jnp.asarray(True)
    return jnp.isfinite(jnp.ravel(leaves[i])[0])


def _smallest(leaves: list[jax.Array]) -> int | None:
    """The index of the leaf with the fewest bytes; None if all are empty."""
    sizes = {
        i: leaf.size * leaf.dtype.itemsize
        for i, leaf in enumerate(map(jnp.asarray, leaves))
        if leaf.size
    }
    return min(sizes, key=sizes.__getitem__, default=None)
