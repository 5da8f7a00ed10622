r"""Random-k sparsification: entries that everybody knows from a shared seed.

.. math:: C(x)_i = x_i \text{ if } i \in S, \text{ else } 0,

with a uniformly random set S of k indices, new in each step and the same on every
worker, so that no index travels.

Stich, Cordonnier and Jaggi, `Sparsified SGD with Memory
<https://arxiv.org/abs/1809.07599>`_, 2018.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import check_flag
from djax._arrays.keys import shared_key
from djax._arrays.split import split
from djax._calls import by_its_call
from djax._interfaces import (
    Compressor,
    PyTree,
)

from ._sparse import (
    count_fn,
    scatter,
)


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
      step: `int32[]`, which of the sets of indices these are.
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

    A contraction with :math:`\delta = k / d`, of the smallest leaf in this respect:
    :math:`E\|C(x) - x\|^2 = (1 - k / d) \|x\|^2`. With `unbiased` the entries are
    multiplied by :math:`d / k`, and :math:`E\|C(x) - x\|^2 = (d / k - 1) \|x\|^2`.

    Args:
      fraction: share of a leaf's entries, rounded down, but at least one entry.
      rank: instead of `fraction`, as in :func:`top_k`: half the bytes that
        rank-`rank` PowerGossip sends.
      rows_axis: the axis of a leaf that becomes that matrix's rows.
      unbiased: whether the expectation is x.
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
    count, check = count_fn("random_k", fraction, rank, rows_axis)
    seed = shared_key("random_k", key)
    unbiased = check_flag("random_k: unbiased", unbiased)

    def indices_of(step, leaves):
        now = jax.random.fold_in(seed, step)
        sizes = [x.size for x in leaves]
        # One draw for all leaves, since each draw takes long to compile.
        draws = split(jax.random.uniform(now, (sum(sizes),)), sizes)
        # The places of the largest ones: no need to sort them all.
        return [
            jax.lax.top_k(draw, count(x))[1]
            for draw, x in zip(draws, leaves, strict=True)
        ]

    def init(params):
        check(params)
        return RandomKState(jnp.zeros((), jnp.int32))

    def compress(tree, state):
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
        return jax.tree.map(scatter, message.values, places, like)

    classes = {"contraction": not unbiased, "unbiased": unbiased}
    return Compressor(init, compress, decompress, **classes)
