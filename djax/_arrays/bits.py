"""Packing of integers of a few bits into bytes, and noise for rounding to them."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .keys import threefry
from .split import computed_once, split, unravel

# By how many bits each round of Threefry rotates, in groups of four rounds.
_ROTATIONS = np.array([[13, 15, 26, 6], [17, 29, 16, 24]], np.uint32)


def check_bits(name: str, bits: Any) -> int:
    """Returns the number of bits, or raises ValueError unless it is 2 to 8."""
    if not (isinstance(bits, (int, np.integer)) and 2 <= bits <= 8):
        raise ValueError(f"{name}: bits must be 2 to 8, got {bits!r}.")
    return int(bits)


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Packs integers into bytes, the first integer into the highest bits.

    Integers of 2, 4 or 8 bits are shifted to their places in a byte. Those of any other
    width are packed bit by bit, which is also the fastest way for single bits.

    Args:
      codes: `uint8[n]`, integers below `2 ** bits`.
      bits: number of bits of each integer, 1 to 8.

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
    """Undoes :func:`pack`: returns the integers, `uint8[count]`."""
    if bits == 1 or 8 % bits:
        planes = jnp.unpackbits(packed, count=count * bits).reshape(count, bits)
        return (planes << _shifts(bits, 1)[None]).sum(axis=1, dtype=jnp.uint8)
    codes = packed[:, None] >> _shifts(8, bits)[None]
    return (codes & jnp.uint8(2**bits - 1)).ravel()[:count]


def _shifts(total: int, width: int) -> jax.Array:
    """Positions of the fields of `width` bits in `total` bits, the highest first."""
    return jnp.arange(total - width, -1, -width, dtype=jnp.uint8)


def noise(key: jax.Array, like: Sequence[Any]) -> list[jax.Array]:
    """Draws uniform noise from (0, 1) for stochastic rounding, in steps of 2^-16.

    Drawing random bits takes longer than all other work of a code, so that no more bits
    are drawn than are needed: with 128 levels, float32 has 16 bits left between two
    levels. A draw also takes longer to compile than all other work, so that there is a
    single draw for all arrays.

    Args:
      key: PRNG key of the draw.
      like: arrays of float32 or wider; only their shapes and dtypes are used.

    Returns:
      An array of the same shape and dtype for each array of `like`.
    """
    count = sum(x.size for x in like)
    words = computed_once(random_words(key, -(-count // 2)))
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).ravel()[:count]
    return [
        (part.astype(x.dtype) + 0.5) * 2.0**-16
        for part, x in zip(unravel(halves, like), like, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=1)
def random_words(key: jax.Array, count: int) -> jax.Array:
    """Draws the words of `jax.random.bits(key, (count,))` in a single pass on a CPU.

    They are those that JAX draws of a Threefry key with its default settings.

    JAX computes the rounds of Threefry in a loop on CPUs, in which each round reads and
    writes all words. Here XLA fuses the rounds: a draw takes a fifth of the time, and
    compiles faster.

    Args:
      key: a typed PRNG key; its data are used as a key of Threefry.
      count: number of words, below 2^32.

    Returns:
      `uint32[count]`.

    References:
      Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011
    """
    first, second = jax.random.key_data(threefry(key))
    keys = first, second, first ^ second ^ np.uint32(0x1BD11BDA)
    low = jax.lax.iota(jnp.uint32, count) + keys[1]
    high = jnp.broadcast_to(keys[0], low.shape)
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            high = high + low
            low = high ^ (low << distance | low >> np.uint32(32 - distance))
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + np.uint32(group + 1)
    return high ^ low


def pack_leaves(codes: Sequence[jax.Array], bits: int) -> jax.Array:
    """Packs the integers of all leaves, `uint8[...]` each, into one vector of bytes."""
    flat = [jnp.zeros(0, jnp.uint8), *(code.ravel() for code in codes)]
    return pack(jnp.concatenate(flat), bits)


def unpack_leaves(
    packed: jax.Array, bits: int, leaves: Sequence[Any]
) -> list[jax.Array]:
    """Undoes :func:`pack_leaves`; only the shapes of `leaves` are used.

    Leaves are split at byte offsets that are only known at run time, because then
    leaves of one size share a kernel; see :func:`djax._arrays.split.split`. A leaf that
    starts within a byte is unpacked together with the leaves before it, and split off
    at a constant offset: with a bit offset that is only known at run time, the bits
    would be unpacked one by one.
    """
    runs: list[list[Any]] = []
    for start, x in zip(_starts(leaves), leaves, strict=True):
        if start * bits % 8 == 0:
            runs.append([])
        runs[-1].append(x)
    counts = [sum(x.size for x in run) for run in runs]
    pieces = split(packed, [-(-count * bits // 8) for count in counts])
    found = []
    for piece, count, run in zip(pieces, counts, runs, strict=True):
        codes = unpack(piece, bits, count)
        found += [
            codes[start : start + x.size].reshape(x.shape)
            for start, x in zip(_starts(run), run, strict=True)
        ]
    return found


def _starts(leaves: Sequence[Any]) -> list[int]:
    """Where each leaf starts in a vector of all of them."""
    return list(itertools.accumulate((x.size for x in leaves), initial=0))[:-1]
