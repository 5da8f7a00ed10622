"""Estimates how far the models of different workers are apart, from short sketches.

The exact consensus distance needs the models of all workers at the same moment, for
which the workers would have to wait for each other. Instead, each worker keeps a short
random projection of its model, and the distances are computed at the end of the run.
"""

import jax
import jax.numpy as jnp
import numpy as np

from djax._interfaces import PyTree

_LENGTH = 1024


@jax.jit
def sketch(params: PyTree) -> jax.Array:
    r"""Projects a model onto 1,024 numbers that keep the distances between models.

    Each coordinate is added, with a random sign, to one of 1,024 sums (a tensor sketch
    without its products). The expected squared norm of the sketch is that of the model,
    and the relative standard deviation is about :math:`\sqrt{2 / 1024}`. A model with
    at most 1,024 coordinates is returned as it is.

    Args:
      params: the model of one worker, floating-point arrays of any shape.

    Returns:
      `float32[k]`, where k is 1,024 or the number of coordinates.
    """
    leaves = [x.ravel().astype(np.float32) for x in jax.tree.leaves(params)]
    if sum(x.size for x in leaves) <= _LENGTH:
        return jnp.concatenate(leaves)
    total = jnp.zeros(_LENGTH, np.float32)
    for number, x in enumerate(leaves):
        signed, whole = _flip(x, number), x.size // _LENGTH * _LENGTH
        total += signed[:whole].reshape(-1, _LENGTH).sum(0)
        total += jnp.pad(signed[whole:], (0, _LENGTH + whole - x.size))
    return total


def _flip(x: jax.Array, number: int) -> jax.Array:
    """Changes the sign of about half of the entries, the same ones on all workers.

    A hash of the entry's position and the leaf's number chooses them.
    """
    bits = jax.lax.iota(np.uint32, x.size) + np.uint32(number * 0x9E3779B9 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    bits = jax.lax.bitcast_convert_type(x, np.uint32) ^ (bits & np.uint32(1 << 31))
    return jax.lax.bitcast_convert_type(bits, np.float32)
