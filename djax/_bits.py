"""Small integers, packed without a bit between them."""

import jax
import jax.numpy as jnp


def packed_size(count: int, bits: int) -> int:
    """Number of bytes of `count` integers."""
    return -(-count * bits // 8)


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Packs integers into bytes.

    Args:
      codes: `uint8[n]` below `2 ** bits`.
      bits: of each of them, 1 to 8.

    Returns:
      `uint8[packed_size(n, bits)]`.
    """
    weights = jnp.arange(bits, dtype=jnp.uint8)
    planes = (codes[:, None] >> weights[None]) & jnp.uint8(1)
    return jnp.packbits(planes.ravel())


def unpack(packed: jax.Array, bits: int, count: int) -> jax.Array:
    """Returns the `uint8[count]` that were packed."""
    planes = jnp.unpackbits(packed, count=count * bits).reshape(count, bits)
    weights = jnp.arange(bits, dtype=jnp.uint8)
    return (planes << weights[None]).sum(axis=1, dtype=jnp.uint8)
