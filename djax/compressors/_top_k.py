r"""Top-k sparsification: the largest entries, and where they are.

.. math:: C(x)_i = x_i \text{ if } |x_i| \text{ is among the k largest, else } 0

Stich, Cordonnier and Jaggi, `Sparsified SGD with Memory
<https://arxiv.org/abs/1809.07599>`_, 2018.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._calls import by_its_call
from djax._interfaces import (
    Compressor,
    PyTree,
)

from ._sparse import (
    count_fn,
    scatter,
)


class TopKMessage(NamedTuple):
    """What :func:`top_k` sends.

    Attributes:
      values: for each leaf, its k largest entries, in its dtype.
      indices: for each leaf, `int32[k]`: their places in the raveled leaf.
    """

    values: PyTree
    indices: PyTree


@by_its_call
def top_k(
    fraction: float | None = None, *, rank: int | None = None, rows_axis: int = -1
) -> Compressor:
    r"""Sends the largest entries of each leaf.

    A contraction with :math:`\delta = k / d`, of the smallest leaf in this respect:
    :math:`\|C(x) - x\|^2 \le (1 - \delta) \|x\|^2`.

    Args:
      fraction: share of a leaf's entries, rounded down, but at least one entry.
      rank: instead of `fraction`, as many bytes as rank-`rank` PowerGossip sends on
        average: :math:`\lfloor r (m + k) / 4 \rfloor` entries of an m × k matrix.
      rows_axis: the axis of a leaf that becomes that matrix's rows; a vector is a
        column.

    Returns:
      A stateless :class:`djax.Compressor`. With a `rank`, its `init` raises ValueError
      if a matrix has no axis `rows_axis`.

    Raises:
      ValueError: unless exactly one of `fraction`, in (0, 1], and `rank`, a positive
        integer, is given.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> code = djax.compressors.top_k(0.5)
      >>> x = jnp.asarray([1.0, -4.0, 2.0, 3.0])
      >>> message, _ = code.compress(x, code.init(x))
      >>> print(code.decompress(message, x))
      [ 0. -4.  0.  3.]

    References:
      Stich, Cordonnier and Jaggi, `Sparsified SGD with Memory
      <https://arxiv.org/abs/1809.07599>`_, 2018
    """
    count, check = count_fn("top_k", fraction, rank, rows_axis)

    def init(params):
        check(params)
        return optax.EmptyState()

    def compress(tree, state):
        leaves, treedef = jax.tree.flatten(tree)
        chosen = [jax.lax.top_k(jnp.abs(x.ravel()), count(x))[1] for x in leaves]
        values = [x.ravel()[i] for x, i in zip(leaves, chosen, strict=True)]
        message = TopKMessage(treedef.unflatten(values), treedef.unflatten(chosen))
        return message, state

    def decompress(message, like):
        return jax.tree.map(scatter, message.values, message.indices, like)

    return Compressor(init, compress, decompress, contraction=True, unbiased=False)
