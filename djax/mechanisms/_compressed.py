"""What the mechanisms that send compressed messages share."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax import mixing
from djax._arrays.precision import promote
from djax._interfaces import (
    Communicator,
    Compressor,
    PyTree,
)
from djax.mixing import difference
from djax.topologies import Graph


def init_compressor(
    compressor: Compressor, params: PyTree, communicator: Communicator
) -> PyTree:
    """The compressor's state, its PRNG keys made each worker's own."""

    def own(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array)
        if is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(leaf, communicator.rank())
        return leaf

    return jax.tree.map(own, compressor.init(params))


def exchange(
    tree: PyTree,
    compressor: Compressor,
    state: PyTree,
    graph: Graph,
    communicator: Communicator,
    step: ArrayLike,
) -> tuple[PyTree, PyTree, PyTree]:
    r"""Sends a tree to all neighbours, compressed.

    Args:
      tree: what worker i sends, :math:`z_i`.
      compressor: the code C.
      state: its state.
      graph: the graph and its weights.
      communicator: how messages travel.
      step: number of steps so far.

    Returns:
      :math:`C(z_i)` in the dtypes of `tree`; :math:`\sum_j w_{ij} (C(z_j) - C(z_i))` in
      float32 or wider; the compressor's next state.
    """
    message, state = compressor.compress(tree, state)
    sent = mixing.as_sent(message, communicator, step)
    own = compressor.decompress(sent, tree)

    def read(theirs, mine):
        del mine  # It has been decompressed already.
        return difference(compressor.decompress(theirs, tree), own)

    heard = mixing.weighted_sum(message, read, graph, communicator, step=step)
    return own, heard.total, state


def accumulate(total: PyTree, change: PyTree) -> PyTree:
    """Adds to a sum that is kept in float32 or wider."""
    return jax.tree.map(lambda t, c: t + promote(c), total, change)


def zeros(params: PyTree) -> PyTree:
    """Zeros like the parameters, in float32 or wider."""
    return jax.tree.map(lambda x: jnp.zeros_like(promote(x)), params)


def start_of(params: PyTree) -> PyTree:
    """The parameters in float32 or wider, in arrays of their own."""
    return jax.tree.map(lambda x: jnp.array(promote(x), copy=True), params)


def move(updates: PyTree, params: PyTree, target: PyTree) -> PyTree:
    """The updates, in their own dtypes, that take `params` to `target`."""
    return optax.tree.cast_like(
        jax.tree.map(lambda t, x: t - promote(x), target, params), updates
    )


def first_exchange(
    params: PyTree, graph: Graph, communicator: Communicator
) -> tuple[PyTree, PyTree]:
    r"""Sends the models that all start from to all neighbours, uncompressed.

    Returns:
      The own model as it was sent, and :math:`\sum_j w_{ij} (x_j - x_i)`, both in
      float32 or wider and in arrays of their own.
    """
    heard = mixing.weighted_sum(params, difference, graph, communicator, step=0)
    return start_of(heard.own), heard.total
