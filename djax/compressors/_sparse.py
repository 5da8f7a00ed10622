r"""Sparsification: few entries of each leaf are sent, and all others count as zero.

.. math:: C(x)_i = x_i \text{ if } i \in S, \text{ else } 0

:func:`top_k` chooses the set S of the k largest entries. Of all sets of k entries it
leaves out the least, but the places of the entries have to be sent as well.
:func:`random_k` draws S uniformly from a seed that all workers share, anew in each
step, so that no places have to be sent.

Stich, Cordonnier and Jaggi, `Sparsified SGD with Memory
<https://arxiv.org/abs/1809.07599>`_, 2018.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._arguments import check_flag
from djax._arrays.divided import check_not_divided
from djax._arrays.keys import shared_key
from djax._arrays.largest import largest, largest_of_groups
from djax._arrays.matrices import (
    check_axis,
    check_not_dealt_out,
    check_rows_axis,
    is_matrix,
    matrix_shape,
)
from djax._arrays.split import split
from djax._calls import by_its_call
from djax._interfaces import Compressor, PyTree
from djax._values import check_integer


class TopKMessage(NamedTuple):
    """What :func:`top_k` sends.

    Attributes:
      values: for each leaf, its k largest entries, in its dtype.
      indices: for each leaf, `int32[k]`: the places of these entries in the raveled
        leaf.
    """

    values: PyTree
    indices: PyTree


@by_its_call
def top_k(
    fraction: float | None = None,
    *,
    rank: int | None = None,
    rows_axis: int = -1,
    approximate: bool = False,
) -> Compressor:
    r"""Sends the largest entries of each leaf, and their places.

    The code is a contraction: :math:`\|C(x) - x\|^2 \le (1 - \delta) \|x\|^2` with
    :math:`\delta = k / d`, where the leaf with the smallest :math:`k / d` counts.

    To find the largest entries takes longer than all other work of a step of a small
    model. With `approximate`, the d entries of a leaf are dealt out to :math:`g =
    \lceil d / \lceil d / k \rceil \rceil \le k` groups, each of which has every g-th
    entry, and the largest entry of each group is sent. This takes a twentieth of the
    time on a CPU. The code is a contraction with :math:`\delta = 1 / n` for groups of
    :math:`n = \lceil d / k \rceil` entries. Magnitudes that differ by less than a
    factor of :math:`1 + n 2^{-22}` may be mistaken for each other. If n is above
    65,536, the largest entries are found exactly. Of 100,000 normally distributed
    numbers, the entries sent of 1 % have 0.91 times the sum of squares that the largest
    1 % have. For fractions above one half, groups have two entries, and half of a leaf
    is sent.

    Args:
      fraction: the share of a leaf's entries that is sent, rounded down, but at least
        one entry.
      rank: may be given in place of `fraction`. The code then sends as many bytes as
        PowerGossip of this rank sends on average: :math:`\lfloor r (m + k) / 4 \rfloor`
        entries of an m × k matrix.
      rows_axis: the axis of a leaf that becomes the rows of that matrix. A vector is a
        matrix of one column.
      approximate: whether to send the largest entry of each of at most k groups, in
        place of the k largest entries.

    Returns:
      A stateless :class:`djax.Compressor`. With a `rank`, its `init` raises ValueError
      if a matrix has no axis `rows_axis`.

    Raises:
      ValueError: unless exactly one of `fraction`, in (0, 1], and `rank`, a positive
        integer, is given, or if `approximate` is not True or False.

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
    count, check = _count_fn("top_k", fraction, rank, rows_axis)
    approximate = check_flag("top_k: approximate", approximate)
    find = largest_of_groups if approximate else largest

    def init(params):
        check(params)
        return optax.EmptyState()

    def compress(tree, state):
        check_not_divided("top_k")
        leaves, treedef = jax.tree.flatten(tree)
        chosen = [find(x.ravel(), count(x)) for x in leaves]
        values = [x.ravel()[i] for x, i in zip(leaves, chosen, strict=True)]
        message = TopKMessage(treedef.unflatten(values), treedef.unflatten(chosen))
        return message, state

    def decompress(message, like):
        return jax.tree.map(_scatter, message.values, message.indices, like)

    return Compressor(init, compress, decompress, contraction=True, unbiased=False)


class RandomKState(NamedTuple):
    """State of :func:`random_k`.

    Attributes:
      step: `int32[]`, number of messages so far.
    """

    step: ArrayLike


class RandomKMessage(NamedTuple):
    """What :func:`random_k` sends.

    Attributes:
      values: for each leaf, k of its entries, in its dtype.
      step: `int32[]`, the step from which receivers derive the indices.
    """

    values: PyTree
    step: jax.Array


@by_its_call
def random_k(
    fraction: float | None = None,
    *,
    rank: int | None = None,
    rows_axis: int = -1,
    unbiased: bool = False,
    key: jax.Array | None = None,
) -> Compressor:
    r"""Sends random entries of each leaf, and no indices.

    The code is a contraction with :math:`\delta = k / d`, where the leaf with the
    smallest :math:`k / d` counts: :math:`E\|C(x) - x\|^2 = (1 - k / d) \|x\|^2`. With
    `unbiased` the entries are multiplied by :math:`d / k`, and :math:`E\|C(x) - x\|^2 =
    (d / k - 1) \|x\|^2`.

    Args:
      fraction: the share of a leaf's entries that is sent, rounded down, but at least
        one entry.
      rank: may be given in place of `fraction`. The code then sends as many entries as
        :func:`top_k` does with this rank, which is half the bytes of PowerGossip.
      rows_axis: the axis of a leaf that becomes the rows of that matrix.
      unbiased: whether the expectation of what a receiver reads is x.
      key: PRNG key of the indices, the same on every worker; `jax.random.key(0)` by
        default.

    Returns:
      A :class:`djax.Compressor` with a :class:`RandomKState`.

    Raises:
      ValueError: unless exactly one of `fraction`, in (0, 1], and `rank`, a positive
        integer, is given, or if another option is of the wrong kind.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> code = djax.compressors.random_k(0.01)
      >>> djax.compressors.message_bytes(code, jnp.zeros((100, 100)))  # and a counter
      404

    References:
      Stich, Cordonnier and Jaggi, `Sparsified SGD with Memory
      <https://arxiv.org/abs/1809.07599>`_, 2018
    """
    count, check = _count_fn("random_k", fraction, rank, rows_axis)
    seed = shared_key("random_k", key)
    unbiased = check_flag("random_k: unbiased", unbiased)

    def indices_of(step, leaves):
        now = jax.random.fold_in(seed, step)
        sizes = [x.size for x in leaves]
        # A draw takes long to compile, so that there is a single one for all leaves.
        # The entries of a leaf that are sent are those with the k largest random
        # numbers, in any order.
        draws = split(jax.random.uniform(now, (sum(sizes),)), sizes)
        return [
            jax.lax.top_k(draw, count(x))[1]
            for draw, x in zip(draws, leaves, strict=True)
        ]

    def init(params):
        check(params)
        return RandomKState(jnp.zeros((), jnp.int32))

    def compress(tree, state):
        check_not_divided("random_k")
        leaves, treedef = jax.tree.flatten(tree)
        values = [
            x.ravel()[chosen] * jnp.asarray(scale(x), x.dtype)
            for x, chosen in zip(leaves, indices_of(state.step, leaves), strict=True)
        ]
        step = jnp.asarray(state.step, jnp.int32)
        message = RandomKMessage(treedef.unflatten(values), step)
        return message, RandomKState(optax.safe_increment(step))

    def scale(x):
        return x.size / count(x) if unbiased and x.size else 1.0

    def decompress(message, like):
        leaves, treedef = jax.tree.flatten(like)
        places = treedef.unflatten(indices_of(message.step, leaves))
        return jax.tree.map(_scatter, message.values, places, like)

    classes = {"contraction": not unbiased, "unbiased": unbiased}
    return Compressor(init, compress, decompress, **classes)


def _count_fn(
    name: str, fraction: float | None, rank: int | None, rows_axis: int
) -> tuple[Callable[[Any], int], Callable[[PyTree], None]]:
    """Checks the arguments of a code that sends a number of entries of each leaf.

    Args:
      name: name of the code, for errors.
      fraction: the share of a leaf's entries, or None.
      rank: the rank of PowerGossip that costs as many bytes, or None.
      rows_axis: the axis that becomes the rows of the matrix.

    Returns:
      A function from a leaf to the number of its entries that are sent, and one that
      raises ValueError for parameters for which there is no such number.
    """
    if (fraction is None) == (rank is None):
        raise ValueError(f"{name} needs either a fraction or a rank.")
    if rank is not None:
        check_integer(rank, f"{name}: rank")
        check_axis(name, rows_axis)

        def check_matrices(params):
            check_rows_axis(name, params, rows_axis)
            check_not_dealt_out(f"{name}(rank=...)")

        return lambda x: _like_rank(x, rank, rows_axis), check_matrices
    assert fraction is not None
    is_number = isinstance(fraction, (int, float, np.number, jax.Array))
    if not is_number or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction must be in (0, 1], got {fraction!r}.")
    return lambda x: min(x.size, max(1, int(x.size * fraction))), lambda params: None


def _like_rank(x: Any, rank: int, rows_axis: int) -> int:
    if x.size == 0:
        return 0
    rows, columns = matrix_shape(x, rows_axis) if is_matrix(x) else (x.size, 1)
    # PowerGossip sends one of the two factors in each step. Here each value is sent
    # with its index, and so takes twice the bytes.
    return min(x.size, max(1, min(rank, rows, columns) * (rows + columns) // 4))


def _scatter(values: jax.Array, indices: jax.Array, like: Any) -> jax.Array:
    """Puts values at their places in an array of zeros like `like`."""
    flat = jnp.zeros(like.size, like.dtype)
    placed = flat.at[indices].set(
        values.astype(like.dtype), unique_indices=True, mode="promise_in_bounds"
    )
    return placed.reshape(like.shape)
