r"""The largest coefficients of a discrete cosine transform.

Where neighbouring entries of a gradient or momentum change together, few coefficients
of a cosine transform hold most of its square norm. A leaf is cut into blocks. Each is
transformed by an orthonormal cosine transform (DCT-II) along each axis. For a block of
h × w that is

.. math:: E = T X T^\top, \qquad
   T_{kj} = \sqrt{\tfrac{2 - [k = 0]}{n}} \cos\frac{\pi (2 j + 1) k}{2 n},

and the k coefficients of the largest magnitude are sent. The transform keeps norms, so
that what is left out of the coefficients is what is left out of the block.

Peng, Quesnelle and Kingma, `DeMo: Decoupled Momentum Optimization
<https://arxiv.org/abs/2411.19870>`_, 2024.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arrays.divided import check_not_divided
from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import Compressor, PyTree
from djax._values import check_integer, read_only


class DctMessage(NamedTuple):
    """What :func:`dct` sends.

    Attributes:
      values: for each leaf, `[blocks, k]`, the largest coefficients of each block, in
        the dtype of the leaf.
      indices: for each leaf, `[blocks, k]`, the places of these coefficients in the
        raveled block, of the smallest unsigned dtype that can hold them.
    """

    values: PyTree
    indices: PyTree


@by_its_call
def dct(k: int, *, chunk: int = 64) -> Compressor:
    r"""Sends the largest coefficients of a cosine transform of each block of a leaf.

    The blocks of a matrix are h × w, where h and w are the largest divisors of its
    numbers of rows and columns that are at most `chunk`. A vector has blocks of one
    row. An array with more axes counts as a matrix whose columns are the last axis and
    whose rows are all other axes together, so that convolution kernels, whose single
    axes are short, are cut into large blocks as well. A scalar is sent as it is.

    The code is a contraction: :math:`\|C(x) - x\|^2 \le (1 - \delta) \|x\|^2` with
    :math:`\delta = k / (h w)`, where the leaf with the smallest :math:`k / (h w)`
    counts. Blocks with at most k entries are sent whole, up to rounding.

    An axis of prime length above `chunk` has blocks of length 1, in which there is
    nothing to transform. If all axes are like that, every entry is sent.

    Args:
      k: the number of coefficients of each block that are sent.
      chunk: the largest length of a block along each axis. A block of 64 × 64 has 4096
        coefficients. Indices in blocks of up to 256 coefficients take one byte, and in
        blocks of up to 65536 two bytes.

    Returns:
      A stateless :class:`djax.Compressor`. Coefficients are computed in float32 or
      wider. To transform a leaf takes h + w multiplications for each entry.

    Raises:
      ValueError: if `k` or `chunk` is not a positive integer.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> code = djax.compressors.dct(2)
      >>> x = jnp.linspace(0.0, 7.0, 8)
      >>> message, _ = code.compress(x, code.init(x))
      >>> print(jnp.abs(code.decompress(message, x) - x).max() < 0.5)
      True

    References:
      Peng, Quesnelle and Kingma, `DeMo: Decoupled Momentum Optimization
      <https://arxiv.org/abs/2411.19870>`_, 2024, Algorithm 1
    """
    k = check_integer(k, "dct: k")
    chunk = check_integer(chunk, "dct: chunk")

    def init(params):
        del params
        return optax.EmptyState()

    def of_leaf(x):
        coefficients = transform(x, chunk)
        count = min(k, coefficients.shape[-1])
        _, places = jax.lax.top_k(jnp.abs(coefficients), count)
        values = jnp.take_along_axis(coefficients, places, axis=-1)
        index_dtype = np.min_scalar_type(max(0, coefficients.shape[-1] - 1))
        return values.astype(x.dtype), places.astype(index_dtype)

    def compress(tree, state):
        check_not_divided("dct")
        leaves, treedef = jax.tree.flatten(tree)
        sent = [of_leaf(x) for x in leaves]
        values, indices = (treedef.unflatten(s[i] for s in sent) for i in (0, 1))
        return DctMessage(values, indices), state

    def decompress(message, like):
        def of_leaf(values, indices, x):
            nothing = jnp.zeros(blocks_shape(x, chunk), promote(values).dtype)
            return inverse(add_to(nothing, values, indices), x, chunk)

        return jax.tree.map(of_leaf, message.values, message.indices, like)

    return Compressor(init, compress, decompress, contraction=True, unbiased=False)


def transform(x: jax.Array, chunk: int) -> jax.Array:
    """Returns the coefficients of all blocks of a leaf.

    Args:
      x: an array of any shape.
      chunk: the largest length of a block along each axis.

    Returns:
      `[blocks, block size]`, in float32 or wider: one row for each block.
    """
    rows, height, columns, width = _grid(x, chunk)
    cut = promote(x).reshape(rows, height, columns, width)
    both = (_matrix(n, cut.dtype) for n in (height, width))
    found = jnp.einsum("rhcw,yh,xw->rcyx", cut, *both, precision="highest")
    return found.reshape(blocks_shape(x, chunk))


def inverse(coefficients: jax.Array, like: Any, chunk: int) -> jax.Array:
    """Undoes :func:`transform`.

    Args:
      coefficients: `[blocks, block size]`.
      like: a leaf, or its shape and dtype, which the result has.
      chunk: the largest length of a block along each axis.
    """
    rows, height, columns, width = _grid(like, chunk)
    blocks = coefficients.reshape(rows, columns, height, width)
    both = (_matrix(n, blocks.dtype) for n in (height, width))
    found = jnp.einsum("rcyx,yh,xw->rhcw", blocks, *both, precision="highest")
    return found.reshape(like.shape).astype(like.dtype)


def add_to(total: jax.Array, values: jax.Array, indices: jax.Array) -> jax.Array:
    """Adds values at their places to the coefficients of all blocks.

    Args:
      total: `[blocks, block size]`.
      values: `[blocks, k]`.
      indices: `[blocks, k]`, which are different in each block.
    """
    row = jnp.arange(len(total), dtype=jnp.int32)[:, None]
    return total.at[row, indices.astype(jnp.int32)].add(
        values.astype(total.dtype), unique_indices=True, mode="promise_in_bounds"
    )


def blocks_shape(x: Any, chunk: int) -> tuple[int, int]:
    """The number of blocks of a leaf, and of the coefficients of each block."""
    rows, height, columns, width = _grid(x, chunk)
    return rows * columns, height * width


def _grid(x: Any, chunk: int) -> tuple[int, int, int, int]:
    """Numbers of blocks and entries of a block: down the rows, across the columns."""
    columns = x.shape[-1] if x.ndim else 1
    rows = math.prod(x.shape[:-1])
    height, width = _divisor(rows, chunk), _divisor(columns, chunk)
    return rows // height, height, columns // width, width


def _divisor(length: int, most: int) -> int:
    """The largest divisor of a length that is not above `most`."""
    return max(
        (n for n in range(1, min(length, most) + 1) if not length % n), default=1
    )


def _matrix(n: int, dtype: Any) -> jax.Array:
    """`[n, n]`, the matrix of the transform, as a constant of the program."""
    return jnp.asarray(_exact_matrix(n), dtype)


@functools.cache
def _exact_matrix(n: int) -> np.ndarray:
    import scipy.fft  # Here, since few programs need it.

    return read_only(scipy.fft.dct(np.eye(n), axis=0, norm="ortho"))
