r"""QSGD: stochastic quantization to few bits.

The entries x of a leaf are divided into buckets. With the norm :math:`\|x\|_2` of a
bucket, and :math:`s = 2^{b - 1} - 1` levels for each of the two signs,

.. math:: C(x)_i = \|x\|_2 \, \mathrm{sign}(x_i) \, \xi_i / s,

where :math:`\xi_i` is :math:`s |x_i| / \|x\|_2`, rounded up or down at random with
such probabilities that its expectation is exact.

Alistarh et al., `QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding <https://arxiv.org/abs/1610.02132>`_, 2017; as a contraction: Koloskova, Stich
and Jaggi, `Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
Communication <https://arxiv.org/abs/1902.00340>`_, 2019.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import check_flag
from djax._arrays import bits as _bits
from djax._arrays.checks import check_real
from djax._arrays.divided import check_not_divided
from djax._arrays.keys import shared_key
from djax._arrays.precision import promote
from djax._arrays.split import computed_once, is_small, split
from djax._calls import by_its_call
from djax._interfaces import Compressor
from djax._values import check_integer


class QuantizeState(NamedTuple):
    """State of :func:`quantize`.

    Attributes:
      key: PRNG key of the rounding, which is different on each worker.
      step: `int32[]`, number of messages so far.
    """

    key: jax.Array
    step: ArrayLike


class QuantizedMessage(NamedTuple):
    """What :func:`quantize` sends.

    Attributes:
      bits: `uint8[ceil(b D / 8)]`, the levels of the D entries, block after block. A
        block is one large leaf, or all small leaves with buckets of the same width.
      scales: for each block, `float[buckets]`, the distance between two levels.
    """

    bits: jax.Array
    scales: Sequence[jax.Array]


@by_its_call
def quantize(
    bits: int,
    *,
    bucket_size: int = 512,
    unbiased: bool = True,
    key: jax.Array | None = None,
) -> Compressor:
    r"""Sends b bits for each entry, rounded at random between equidistant levels.

    Let d be the bucket size, and :math:`\tau = 1 + \min(d / s^2, \sqrt d / s)`. The
    code is unbiased with :math:`\omega = \tau - 1`. With `unbiased=False` the receiver
    divides what it reads by :math:`\tau`, and the code is a contraction with
    :math:`\delta = 1 / \tau`.

    Args:
      bits: the number b of bits for each entry, from 2 to 8. One of them is the sign.
      bucket_size: number of entries that share a norm. A norm costs 4 bytes. The last
        bucket of a leaf may be smaller.
      unbiased: whether the expectation of what a receiver reads is x. It has to be
        False for `choco_gossip` and `deep_squeeze`.
      key: PRNG key of the rounding, from which each worker derives a key of its own;
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

    def shrinkage(width):
        """The number by which the receiver divides the entries of a bucket."""
        tau = 1 + min(width / levels**2, math.sqrt(width) / levels)
        return 1.0 if unbiased else tau

    def init(params):
        check_real("quantize", params)
        return QuantizeState(seed, jnp.zeros((), jnp.int32))

    def compress(tree, state):
        check_not_divided("quantize")
        leaves = [promote(x) for x in jax.tree.leaves(tree)]
        blocks = _blocks(leaves, bucket_size)
        rows = [block.rows(block.join(leaves)) for block in blocks]
        now = jax.random.fold_in(state.key, state.step)
        quantized = [
            _quantize_rows(x, noise, levels)
            for x, noise in zip(rows, _bits.noise(now, rows), strict=True)
        ]
        codes, scales = zip(*quantized, strict=True) if quantized else ((), ())
        flat = [block.flat(x) for block, x in zip(blocks, codes, strict=True)]
        message = QuantizedMessage(_bits.pack_leaves(flat, bits), scales)
        return message, QuantizeState(state.key, optax.safe_increment(state.step))

    def decompress(message, like):
        leaves, treedef = jax.tree.flatten(like)
        blocks = _blocks([promote(x) for x in leaves], bucket_size)
        shapes = [jax.ShapeDtypeStruct((sum(b.sizes),), jnp.uint8) for b in blocks]
        codes = _bits.unpack_leaves(message.bits, bits, shapes)
        for block, code, scale in zip(blocks, codes, message.scales, strict=True):
            rows = block.rows(code.astype(scale.dtype) - levels)
            values = rows * (scale / shrinkage(block.width))[:, None]
            for i, x in zip(block.leaves, block.cut(block.flat(values)), strict=True):
                leaves[i] = x.reshape(leaves[i].shape).astype(leaves[i].dtype)
        return treedef.unflatten(leaves)

    classes = {"contraction": not unbiased, "unbiased": unbiased}
    return Compressor(init, compress, decompress, **classes)


def _quantize_rows(
    rows: jax.Array, noise: jax.Array, levels: int
) -> tuple[jax.Array, jax.Array]:
    """Rounds the entries of buckets at random.

    Args:
      rows: `float[buckets, width]`.
      noise: like `rows`, uniform in (0, 1).
      levels: number of positive levels.

    Returns:
      `uint8[buckets, width]`, the numbers of the levels, counted from the lowest, and
      `float[buckets]`, the distance between two levels.
    """
    # Without the division by the largest entry, squares could overflow, or become zero.
    largest = jnp.abs(rows).max(axis=1, initial=0)
    rows = rows / jnp.where(largest > 0, largest, 1)[:, None]
    norms = jnp.maximum(jnp.linalg.norm(rows, axis=1), 1)
    level = jnp.floor(rows * (levels / norms)[:, None] + noise)
    codes = (jnp.clip(level, -levels, levels) + levels).astype(jnp.uint8)
    return codes, largest * norms / levels


class _Block(NamedTuple):
    """Leaves that are quantized together.

    Attributes:
      leaves: the positions of the leaves in the tree.
      sizes: the numbers of entries of the leaves.
      width: the number of entries in a bucket.
    """

    leaves: list[int]
    sizes: list[int]
    width: int

    def join(self, leaves: Sequence[jax.Array]) -> jax.Array:
        """The entries of the leaves of the block, one leaf after another."""
        return jnp.concatenate([leaves[i].ravel() for i in self.leaves])

    def cut(self, flat: jax.Array) -> list[jax.Array]:
        """Undoes :meth:`join`, except that the leaves stay flat."""
        if len(self.sizes) == 1:
            return [flat]
        return split(computed_once(flat), self.sizes)

    def rows(self, flat: jax.Array) -> jax.Array:
        """The buckets of joined leaves; zeros fill up the last bucket of each leaf."""
        if any(size % self.width for size in self.sizes):
            padded = [
                jnp.pad(x, (0, -x.size % self.width)) for x in split(flat, self.sizes)
            ]
            flat = jnp.concatenate(padded)
        return flat.reshape(-1, self.width)

    def flat(self, rows: jax.Array) -> jax.Array:
        """Undoes :meth:`rows`."""
        flat = rows.ravel()
        if any(size % self.width for size in self.sizes):
            padded = split(flat, [size + -size % self.width for size in self.sizes])
            parts = [x[:size] for x, size in zip(padded, self.sizes, strict=True)]
            flat = jnp.concatenate(parts)
        return flat


def _blocks(leaves: Sequence[jax.Array], bucket_size: int) -> list[_Block]:
    """Groups small leaves of one bucket width and dtype; a large leaf stands alone."""
    blocks: dict[Any, _Block] = {}
    for i, x in enumerate(leaves):
        width = max(1, min(bucket_size, x.size))
        key = (width, x.dtype) if is_small(x) else i
        block = blocks.setdefault(key, _Block([], [], width))
        block.leaves.append(i)
        block.sizes.append(x.size)
    return list(blocks.values())
