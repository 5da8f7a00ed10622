"""Small integers, packed without a bit between them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_bits(name: str, bits: Any) -> int:
    """Returns the number of bits, or raises ValueError unless it is 2 to 8."""
    if not (isinstance(bits, (int, np.integer)) and 2 <= bits <= 8):
        raise ValueError(f"{name}: bits must be 2 to 8, got {bits!r}.")
    return int(bits)


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Packs integers into bytes.

    Args:
      codes: `uint8[n]` below `2 ** bits`.
      bits: of each of them, 1 to 8.

    Returns:
      `uint8[ceil(n * bits / 8)]`.
    """
    weights = jnp.arange(bits, dtype=jnp.uint8)
    planes = (codes[:, None] >> weights[None]) & jnp.uint8(1)
    return jnp.packbits(planes.ravel())


def unpack(packed: jax.Array, bits: int, count: int) -> jax.Array:
    """Returns the `uint8[count]` that were packed."""
    planes = jnp.unpackbits(packed, count=count * bits).reshape(count, bits)
    weights = jnp.arange(bits, dtype=jnp.uint8)
    return (planes << weights[None]).sum(axis=1, dtype=jnp.uint8)


def pack_leaves(codes: Sequence[jax.Array], bits: int) -> jax.Array:
    """Packs the integers of all leaves, `uint8[...]` each, into one array of bytes."""
    flat = [jnp.zeros(0, jnp.uint8), *(code.ravel() for code in codes)]
    return pack(jnp.concatenate(flat), bits)


def unpack_leaves(
    packed: jax.Array, bits: int, leaves: Sequence[Any]
) -> list[jax.Array]:
    """Undoes :func:`pack_leaves`; only the shapes of `leaves` matter."""
    ends = np.cumsum([0, *(x.size for x in leaves)]).tolist()
    flat = unpack(packed, bits, ends[-1])
    return [
        flat[start:end].reshape(x.shape)
        for start, end, x in zip(ends, ends[1:], leaves, strict=False)
    ]
