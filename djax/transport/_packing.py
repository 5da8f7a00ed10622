"""Turns trees of arrays into few messages, and messages back into trees.

Every message costs time, however small it is, and copying a large array costs more time
than a message. So small leaves share a message, and large leaves have one each.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.split import unravel
from djax._interfaces import PyTree

from ._interface import Array

# Copying a leaf of this size in bytes into a joined array takes longer than a message.
LARGE_LEAF_BYTES = 1 << 20

# MPI counts elements with a C int.
MAX_COUNT = np.iinfo(np.int32).max


class Packing:
    """Turns trees of one structure into few arrays, and back.

    A leaf of 1 MiB or more becomes an array of its own. All smaller leaves of one dtype
    are joined in one array. Empty leaves are left out.

    Args:
      like: a tree of arrays, or of shapes and dtypes. Random keys have to be raw
        arrays, not typed keys.
    """

    def __init__(self, like: PyTree):
        """Decides which leaves are joined."""
        self._like, self._structure = jax.tree.flatten(like)
        self._groups = _group(self._like)

    @functools.cached_property
    def layout(self) -> list[tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each packed array."""
        packed = jax.eval_shape(self.pack, self._structure.unflatten(self._like))
        return [(x.shape, x.dtype) for x in packed]

    def pack(self, tree: PyTree) -> list[Array]:
        """Returns the packed arrays; a leaf that is not joined is not copied."""
        leaves = self._structure.flatten_up_to(tree)
        return [
            jnp.concatenate([leaves[i].ravel() for i in group])
            if len(group) > 1
            else leaves[group[0]]
            for group in self._groups
        ]

    def unpack(self, arrays: Sequence[Array]) -> PyTree:
        """Inverts `pack`; raises ValueError if there are too few or too many arrays."""
        leaves = [None if x.size else jnp.zeros(x.shape, x.dtype) for x in self._like]
        for group, array in zip(self._groups, arrays, strict=True):
            parts = unravel(array.ravel(), [self._like[i] for i in group])
            for i, part in zip(group, parts, strict=True):
                leaves[i] = part
        return self._structure.unflatten(leaves)

    def view(self, buffers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Views received bytes as packed arrays, without a copy."""
        return [
            buffer.view(dtype).reshape(shape)
            for buffer, (shape, dtype) in zip(buffers, self.layout, strict=True)
        ]


def _group(leaves: Sequence[Any]) -> list[list[int]]:
    """Partitions the leaves into messages, each a list of indices into `leaves`."""
    alone, shared = [], {}
    for i, leaf in enumerate(leaves):
        if leaf.size * leaf.dtype.itemsize >= LARGE_LEAF_BYTES:
            alone.append([i])
        elif leaf.size:
            shared.setdefault(leaf.dtype, []).append(i)
    return alone + list(shared.values())


def count_messages(leaves: Sequence[Any]) -> int:
    """Returns the number of MPI messages that carry leaves of these shapes."""
    sizes = [sum(leaves[i].size for i in indices) for indices in _group(leaves)]
    return sum(-(-size // MAX_COUNT) for size in sizes)


def count_bytes(leaves: Sequence[Any]) -> int:
    """Returns the number of bytes of leaves of these shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def exchange(
    tree: PyTree,
    transfer: Callable[[jax.Array], jax.Array],
    copies: int | None = None,
) -> PyTree:
    """Sends a tree of arrays through a function that carries one message.

    Args:
      tree: arrays of any dtype of 8 bits and more, typed PRNG keys excepted.
      transfer: a function that sends a one-dimensional array and returns the received
        one, of the same shape and dtype. The array has at most `MAX_COUNT` elements,
        of a dtype that MPI knows.
      copies: if not None, `transfer` returns this number of arrays along a leading
        axis, and so does this function.

    Returns:
      The received tree, with the same structure, shapes and dtypes.
    """
    tree = jax.tree.map(jnp.asarray, tree)
    packing = Packing(tree)
    unpack = packing.unpack
    if copies is not None:
        unpack = jax.vmap(packing.unpack, axis_size=copies)
    return unpack([_send(x.ravel(), transfer) for x in packing.pack(tree)])


def _send(flat: jax.Array, transfer: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Sends an array; bfloat16 and other dtypes unknown to MPI are sent as integers."""
    dtype = flat.dtype
    if jnp.issubdtype(dtype, np.inexact) and dtype.itemsize <= 2:
        flat = jax.lax.bitcast_convert_type(flat, f"uint{8 * dtype.itemsize}")
    if flat.size <= MAX_COUNT:
        received = transfer(flat)
    else:
        starts = range(0, flat.size, MAX_COUNT)
        chunks = [transfer(flat[start : start + MAX_COUNT]) for start in starts]
        received = jnp.concatenate(chunks, axis=-1)
    if received.dtype == dtype:
        return received
    return jax.lax.bitcast_convert_type(received, dtype)


def as_bytes(array: Array) -> np.ndarray:
    """Returns an array as `uint8[bytes]` in the host's memory, on a CPU without a copy.

    Args:
      array: an array of JAX or NumPy, of any shape and dtype.
    """
    if isinstance(array, jax.Array) and next(iter(array.devices())).platform != "cpu":
        pinned = array.sharding.with_memory_kind("pinned_host")
        array = jax.device_put(array, pinned)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def aligned(size: int) -> np.ndarray:
    """Returns an uninitialized `uint8[size]` that JAX can read without copying it."""
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size]
