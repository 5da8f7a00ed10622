"""Rounding of messages, so that they take half or a quarter of the bytes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from djax._arrays import bits
from djax._arrays.precision import promote
from djax._interfaces import Communicator, PyTree


def narrow(message: PyTree, communicator: Communicator, step: ArrayLike) -> PyTree:
    """Rounds the floats of a message that are wider than the communicator's dtype.

    Args:
      message: a tree of arrays.
      communicator: the communicator; floats are rounded to its `message_dtype`.
      step: `int32[]`, the number of steps so far. Stochastic rounding makes new draws
        in each step. All workers make the same draws, so that equal models stay equal.

    Returns:
      A tree of the same structure; `message` itself if there is no `message_dtype`.
    """
    if communicator.message_dtype is None:
        return message
    dtype = jnp.dtype(communicator.message_dtype)
    leaves, treedef = jax.tree.flatten(message)
    places = [i for i, x in enumerate(leaves) if _is_rounded(x, dtype)]
    some = [leaves[i] for i in places]
    if communicator.rounding_seed is None:
        rounded = [_nearest(x, dtype) for x in some]
    else:
        key = jax.random.key(communicator.rounding_seed, impl="threefry2x32")
        some = list(map(promote, some))  # Noise in half precision would be too coarse.
        noise = bits.noise(jax.random.fold_in(key, step), some)
        rounded = map(functools.partial(round_at_random, dtype=dtype), some, noise)
    for i, x in zip(places, rounded, strict=True):
        leaves[i] = x
    return treedef.unflatten(leaves)


def _is_rounded(x: Any, dtype: Any) -> bool:
    """Whether a leaf of a message has real floats that are wider than the dtype."""
    found = jnp.result_type(x)
    return jnp.issubdtype(found, jnp.floating) and found.itemsize > dtype.itemsize


def _nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds to the nearest number; finite numbers stay finite."""
    largest = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(dtype)


def round_at_random(x: jax.Array, noise: jax.Array, dtype: Any) -> jax.Array:
    """Rounds up or down at random, so that the expectation is `x`."""
    info = jnp.finfo(dtype)
    _, exponent = jnp.frexp(x)
    # The distance between neighbouring numbers with this exponent. Below the smallest
    # normal number of the dtype the distance stays the same. The distance has to be a
    # normal number in the dtype of `x`, since processors treat smaller ones as zero.
    power = jnp.maximum(exponent - 1, info.minexp) - info.nmant
    power = jnp.maximum(power, jnp.finfo(x.dtype).minexp)
    distance = jnp.ldexp(jnp.ones_like(x), power)
    quotient = x / distance
    below = jnp.floor(quotient)
    chosen = jnp.where(noise < quotient - below, below + 1, below)
    return _nearest(jnp.where(jnp.isfinite(x), chosen * distance, x), dtype)
