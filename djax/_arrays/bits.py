"""Small integers, packed without a bit between them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .split import unravel


def check_bits(name: str, bits: Any) -> int:
    """Returns the number of bits, or raises ValueError unless it is 2 to 8."""
    if not (isinstance(bits, (int, np.integer)) and 2 <= bits <= 8):
        raise ValueError(f"{name}: bits must be 2 to 8, got {bits!r}.")
    return int(bits)


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Packs integers into bytes, the first into the highest bits.

    Planes of bits serve for any width, and single bits are faster so; for the other
    widths that divide 8, bytes are put together from whole integers.

    Args:
      codes: `uint8[n]` below `2 ** bits`.
      bits: of each of them, 1 to 8.

    Returns:
      `uint8[ceil(n * bits / 8)]`.
    """
    if bits == 1 or 8 % bits:
        planes = (codes[:, None] >> _shifts(bits, 1)[None]) & jnp.uint8(1)
        return jnp.packbits(planes.ravel())
    shifts = _shifts(8, bits)
    codes = jnp.pad(codes, (0, -codes.size % len(shifts))).reshape(-1, len(shifts))
    shifted = [codes[:, i] << shift for i, shift in enumerate(shifts)]
    return functools.reduce(jnp.bitwise_or, shifted)


def unpack(packed: jax.Array, bits: int, count: int) -> jax.Array:
    """Returns the `uint8[count]` that were packed."""
    if bits == 1 or 8 % bits:
        planes = jnp.unpackbits(packed, count=count * bits).reshape(count, bits)
        return (planes << _shifts(bits, 1)[None]).sum(axis=1, dtype=jnp.uint8)
    codes = packed[:, None] >> _shifts(8, bits)[None]
    return (codes & jnp.uint8(2**bits - 1)).ravel()[:count]


def _shifts(total: int, width: int) -> jax.Array:
    """Positions of the fields of `width` bits in `total`, the highest first."""
    return jnp.arange(total - width, -1, -width, dtype=jnp.uint8)


def noise(key: jax.Array, like: Sequence[Any]) -> list[jax.Array]:
    """Draws uniformly from (0, 1) for the rounding of numbers, in steps of 2^-16.

    Random bits take longer than everything else that a code does, and 16 are as fine as
    what float32 leaves of a number between 128 levels. A draw takes longer to compile
    than everything else, too. All arrays therefore get their parts of a single draw.

    Args:
      key: PRNG key of the draw.
      like: arrays of floats, of which only the shapes and dtypes matter.

    Returns:
      An array for each of them, of its shape and dtype.
    """
    count = sum(x.size for x in like)
    words = jax.random.bits(key, (-(-count // 2),), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).ravel()[:count]
    return [
        (part.astype(x.dtype) + 0.5) * 2.0**-16
        for part, x in zip(unravel(halves, like), like, strict=True)
    ]


def pack_leaves(codes: Sequence[jax.Array], bits: int) -> jax.Array:
    """Packs the integers of all leaves, `uint8[...]` each, into one array of bytes."""
    flat = [jnp.zeros(0, jnp.uint8), *(code.ravel() for code in codes)]
    return pack(jnp.concatenate(flat), bits)


def unpack_leaves(
    packed: jax.Array, bits: int, leaves: Sequence[Any]
) -> list[jax.Array]:
    """Undoes :func:`pack_leaves`; only the shapes of `leaves` matter.

    Where a leaf starts is a constant, unlike in :mod:`djax._arrays.split`: bits that
    start anywhere in a byte take longer to unpack.
    """
    ends = np.cumsum([0, *(x.size for x in leaves)]).tolist()
    flat = unpack(packed, bits, ends[-1])
    return [
        flat[start:end].reshape(x.shape)
        for start, end, x in zip(ends, ends[1:], leaves, strict=False)
    ]
