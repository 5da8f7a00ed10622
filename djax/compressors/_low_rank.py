r"""The best approximation of each matrix by a matrix of low rank.

With the singular value decomposition of a leaf seen as a matrix,

.. math:: M = \textstyle\sum_i \sigma_i u_i v_i^\top, \qquad
   C(M) = \textstyle\sum_{i \le r} (\sigma_i u_i) v_i^\top.

The power iterations of :func:`djax.power_gossip` converge to this approximation. This
code computes the approximation in each step, at the cost of a singular value
decomposition. Leaves with fewer than two dimensions are sent whole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._arrays.divided import check_not_divided
from djax._arrays.matrices import (
    as_matrix,
    check_axis,
    check_not_dealt_out,
    check_rows_axis,
    from_matrix,
    is_matrix,
    layout,
)
from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import Compressor, PyTree
from djax._values import check_integer


class LowRankMessage(NamedTuple):
    """What :func:`low_rank` sends.

    Attributes:
      left: for each matrix, `[r, m]`, the left factors; for each other leaf, the leaf
        itself.
      right: for each matrix, `[r, k]`, the right factors; for each other leaf, None.
        The singular values are in the left factors if the rows of the matrix come first
        in the leaf, else in the right factors.
    """

    left: PyTree
    right: PyTree


@by_its_call
def low_rank(rank: int, *, rows_axis: int = -1) -> Compressor:
    r"""Sends the leading singular vectors of each matrix.

    The code is a contraction with :math:`\delta = r / \min(m, k)` for an m × k matrix.
    Leaves with fewer than two dimensions are sent whole.

    Args:
      rank: the rank r. A matrix with min(m, k) < r is sent with rank min(m, k).
      rows_axis: the axis of a leaf that becomes the rows of the matrix.

    Returns:
      A stateless :class:`djax.Compressor`. Its `init` raises ValueError if a matrix
      has no axis `rows_axis`. It also raises ValueError inside of
      :func:`djax.interleave`, which takes matrices apart.

    Raises:
      ValueError: if `rank` is not a positive integer, or `rows_axis` is not an integer.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> code = djax.compressors.low_rank(1)
      >>> x = jnp.diag(jnp.asarray([3.0, 2.0]))
      >>> message, _ = code.compress(x, code.init(x))
      >>> print(jnp.abs(code.decompress(message, x)).round(4))
      [[3. 0.]
       [0. 0.]]

    References:
      Vogels, Karimireddy and Jaggi, `PowerGossip <https://arxiv.org/abs/2008.01425>`_,
      2020, which compares PowerGossip with CHOCO and this code
    """
    check_integer(rank, "low_rank: rank")
    check_axis("low_rank", rows_axis)

    def init(params):
        check_rows_axis("low_rank", params, rows_axis)
        check_not_dealt_out("low_rank")
        return optax.EmptyState()

    def decompose(x):
        if not is_matrix(x):
            return x, None
        u, s, vt = jnp.linalg.svd(promote(as_matrix(x, rows_axis)), full_matrices=False)
        first, second = (u * s[None])[:, :rank].T, vt[:rank]
        rows_first = layout(x, rows_axis) == "mk"
        left, right = (first, second) if rows_first else (second, first)
        return left.astype(x.dtype), right.astype(x.dtype)

    def compress(tree, state):
        check_not_divided("low_rank")
        leaves, treedef = jax.tree.flatten(tree)
        factors = [decompose(x) for x in leaves]
        left, right = (treedef.unflatten(f[side] for f in factors) for side in (0, 1))
        return LowRankMessage(left, right), state

    def compose(x, left, right):
        if right is None:
            return left
        spec = f"rm,rk->{layout(x, rows_axis)}"
        product = jnp.einsum(spec, promote(left), promote(right), precision="highest")
        return from_matrix(product, x, rows_axis).astype(x.dtype)

    def decompress(message, like):
        leaves, treedef = jax.tree.flatten(like)
        factors = map(treedef.flatten_up_to, (message.left, message.right))
        return treedef.unflatten(map(compose, leaves, *factors))

    return Compressor(init, compress, decompress, contraction=True, unbiased=False)
