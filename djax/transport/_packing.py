"""How trees of arrays become messages: which leaves share one, and in what dtype."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.split import unravel

# Copying a large leaf into a packed buffer costs more than a message of its own.
LARGE_LEAF_BYTES = 1 << 20

# MPI counts elements with a C int.
MAX_COUNT = np.iinfo(np.int32).max


def group(leaves: Sequence[jax.Array]) -> list[list[int]]:
    """Partitions the leaves into messages, each a list of indices into `leaves`.

    A leaf of 1 MiB or more travels alone; the smaller ones share one message per
    dtype; empty ones do not travel.
    """
    alone, shared = [], {}
    for i, leaf in enumerate(leaves):
        if leaf.size * leaf.dtype.itemsize >= LARGE_LEAF_BYTES:
            alone.append([i])
        elif leaf.size:
            shared.setdefault(leaf.dtype, []).append(i)
    return alone + list(shared.values())


def count_messages(leaves: Sequence[jax.Array]) -> int:
    """Number of MPI messages that carry the leaves."""
    sizes = [sum(leaves[i].size for i in indices) for indices in group(leaves)]
    return sum(-(-size // MAX_COUNT) for size in sizes)


def count_bytes(leaves: Sequence[jax.Array]) -> int:
    """Number of bytes of the leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def exchange(tree, transfer: Callable[[jax.Array], jax.Array]):
    """Applies `transfer`, which keeps shape and dtype, to the messages of `tree`.

    Args:
      tree: arrays of any dtype of 8 bits and more, typed PRNG keys excepted.
      transfer: from a one-dimensional array of at most `MAX_COUNT` elements, of a
        dtype that MPI has, to another.
    """
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    for indices in group(leaves):
        parts = [leaves[i] for i in indices]
        flat = jnp.concatenate([part.ravel() for part in parts])
        received = _decode(_in_chunks(transfer, _encode(flat)), flat.dtype)
        for i, part in zip(indices, unravel(received, parts), strict=True):
            leaves[i] = part
    return jax.tree.unflatten(treedef, leaves)


def _encode(flat: jax.Array) -> jax.Array:
    """Dresses dtypes that MPI does not know, such as bfloat16, as integers."""
    if jnp.issubdtype(flat.dtype, np.inexact) and flat.dtype.itemsize <= 2:
        return jax.lax.bitcast_convert_type(flat, f"uint{8 * flat.dtype.itemsize}")
    return flat


def _decode(flat: jax.Array, dtype: np.dtype) -> jax.Array:
    if flat.dtype == dtype:
        return flat
    return jax.lax.bitcast_convert_type(flat, dtype)


def _in_chunks(transfer, flat: jax.Array) -> jax.Array:
    if flat.size <= MAX_COUNT:
        return transfer(flat)
    chunks = [
        transfer(flat[start : start + MAX_COUNT])
        for start in range(0, flat.size, MAX_COUNT)
    ]
    return jnp.concatenate(chunks)
