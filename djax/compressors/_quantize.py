r"""Stochastic quantization to few bits: QSGD.

With :math:`s = 2^{b - 1} - 1` levels of each sign, and the norm of a bucket of entries,

.. math:: C(x)_i = \|x\|_2 \, \mathrm{sign}(x_i) \, \xi_i / s,

where :math:`\xi_i` is :math:`s |x_i| / \|x\|_2` rounded up or down at random so that
its expectation is exact.

Alistarh et al., `QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding <https://arxiv.org/abs/1610.02132>`_, 2017; as a contraction: Koloskova, Stich
and Jaggi, `Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
Communication <https://arxiv.org/abs/1902.00340>`_, 2019.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax import _bits
from djax._base import Compressor, PyTree, check_flag, check_real, shared_key, wide
from djax.topologies._checks import check_integer


class QuantizeState(NamedTuple):
    """State of :func:`quantize`.

    Attributes:
      key: PRNG key of the rounding, each worker's own.
      step: `int32[]`, number of messages so far.
    """

    key: jax.Array
    step: ArrayLike


class QuantizedMessage(NamedTuple):
    """What :func:`quantize` sends.

    Attributes:
      bits: `uint8[ceil(b D / 8)]`, the level of each of the tree's D entries.
      scales: for each leaf, `float[buckets]`, the distance between two levels.
    """

    bits: jax.Array
    scales: PyTree


def quantize(
    bits: int,
    *,
    bucket_size: int = 512,
    unbiased: bool = True,
    key: jax.Array | None = None,
) -> Compressor:
    r"""Sends b bits an entry, rounded at random between equidistant levels.

    With :math:`\tau = 1 + \min(d / s^2, \sqrt d / s)`, where d is the bucket size, it
    is unbiased with :math:`\omega = \tau - 1`; with `unbiased=False` it is divided by
    :math:`\tau` and a contraction with :math:`\delta = 1 / \tau`.

    Args:
      bits: b, 2 to 8, the sign among them.
      bucket_size: number of entries that share a norm, which costs 4 bytes; a leaf's
        last bucket may be smaller.
      unbiased: whether the expectation is x; what `choco_gossip` and `deep_squeeze`
        need is False.
      key: PRNG key of the rounding, of which each worker makes its own;
        `jax.random.key(0)` by default.

    Returns:
      A :class:`djax.Compressor` with a :class:`QuantizeState`. Its `init` raises
      TypeError for complex parameters.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> code = djax.compressors.quantize(4)
      >>> djax.compressors.message_bytes(code, jnp.zeros(1024))
      520

    References:
      Alistarh et al., `QSGD: Communication-Efficient SGD via Gradient Quantization and
      Encoding <https://arxiv.org/abs/1610.02132>`_, 2017
    """
    bits = _bits.check_bits("quantize", bits)
    seed = shared_key("quantize", key)
    check_integer(bucket_size, "quantize: bucket_size")
    unbiased = check_flag("quantize: unbiased", unbiased)
    levels = 2 ** (bits - 1) - 1

    def shrinkage(x):
        """What the levels of a leaf are divided by."""
        width = min(bucket_size, x.size)
        tau = 1 + min(width / levels**2, math.sqrt(width) / levels)
        return 1.0 if unbiased else tau

    def init(params):
        check_real("quantize", params)
        return QuantizeState(seed, jnp.zeros((), jnp.int32))

    def quantize_rows(rows, noise):
        # Divided by the largest, whose square might not be finite, or zero.
        largest = jnp.abs(rows).max(axis=1, initial=0)
        rows = rows / jnp.where(largest > 0, largest, 1)[:, None]
        norms = jnp.maximum(jnp.linalg.norm(rows, axis=1), 1)
        level = jnp.floor(rows * (levels / norms)[:, None] + noise)
        codes = (jnp.clip(level, -levels, levels) + levels).astype(jnp.uint8)
        return codes, largest * norms / levels

    def compress(tree, state):
        leaves, treedef = jax.tree.flatten(tree)
        now = jax.random.fold_in(state.key, state.step)
        rows = [_in_buckets(wide(x), bucket_size) for x in leaves]
        quantized = list(map(quantize_rows, rows, _bits.noise(now, rows)))
        codes = [
            codes.ravel()[: x.size]
            for x, (codes, _) in zip(leaves, quantized, strict=True)
        ]
        packed = _bits.pack_leaves(codes, bits)
        scales = treedef.unflatten(scales for _, scales in quantized)
        message = QuantizedMessage(packed, scales)
        return message, QuantizeState(state.key, optax.safe_increment(state.step))

    def decompress(message, like):
        leaves, treedef = jax.tree.flatten(like)
        codes = _bits.unpack_leaves(message.bits, bits, leaves)
        restored = []
        scales = treedef.flatten_up_to(message.scales)
        for x, code, scale in zip(leaves, codes, scales, strict=True):
            rows = _in_buckets(code.astype(scale.dtype) - levels, bucket_size)
            values = rows * (scale / shrinkage(x))[:, None]
            restored.append(values.ravel()[: x.size].reshape(x.shape).astype(x.dtype))
        return treedef.unflatten(restored)

    classes = {"contraction": not unbiased, "unbiased": unbiased}
    return Compressor(init, compress, decompress, **classes)


def _in_buckets(x: jax.Array, bucket_size: int) -> jax.Array:
    """The entries in rows, the last one filled up with zeros."""
    width = max(1, min(bucket_size, x.size))
    flat = x.ravel()
    return jnp.pad(flat, (0, -x.size % width)).reshape(-1, width)
