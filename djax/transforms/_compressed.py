"""What the mechanisms that send compressed messages share."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._base import Communicator, Compressor, PyTree, key_of_step, wide
from djax.topologies import Topology

from ._gossip import pull_to_neighbors


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
    topology: Topology,
    communicator: Communicator,
) -> tuple[PyTree, PyTree, PyTree]:
    r"""Sends a tree to all neighbours, compressed.

    Args:
      tree: what worker i sends, :math:`z_i`.
      compressor: the code C.
      state: its state.
      topology: the graph and its weights.
      communicator: how messages travel.

    Returns:
      :math:`C(z_i)` in the dtypes of `tree`; :math:`\sum_j w_{ij} (C(z_j) - C(z_i))` in
      float32 or wider; the compressor's next state.
    """
    message, state = compressor.compress(tree, state)
    own = compressor.decompress(message, tree)
    rank = communicator.rank()
    pull = jax.tree.map(lambda x: jnp.zeros_like(wide(x)), tree)
    for source, weights in zip(topology.rounds, topology.round_weights, strict=True):
        weight = jnp.asarray(weights)[rank]
        theirs = compressor.decompress(communicator.permute(message, source), tree)
        pull = jax.tree.map(
            lambda total, x, mine, w=weight: (
                total + w.astype(total.dtype) * (wide(x) - wide(mine))
            ),
            pull,
            theirs,
            own,
        )
    return own, pull, state


def accumulate(total: PyTree, change: PyTree) -> PyTree:
    """Adds to a sum that is kept in float32 or wider."""
    return jax.tree.map(lambda t, c: t + wide(c), total, change)


def zeros(params: PyTree) -> PyTree:
    """Zeros like the parameters, in float32 or wider."""
    return jax.tree.map(lambda x: jnp.zeros_like(wide(x)), params)


def start_of(params: PyTree) -> PyTree:
    """The parameters in float32 or wider, in arrays of their own."""
    return jax.tree.map(lambda x: jnp.array(wide(x), copy=True), params)


def move(updates: PyTree, params: PyTree, target: PyTree) -> PyTree:
    """The updates, in their own dtypes, that take `params` to `target`."""
    return optax.tree.cast_like(
        jax.tree.map(lambda t, x: t - wide(x), target, params), updates
    )


def first_pull(
    params: PyTree, topology: Topology, communicator: Communicator
) -> PyTree:
    r"""Returns :math:`\sum_j w_{ij} (x_j - x_i)` of the models that all start from."""
    return pull_to_neighbors(params, topology, communicator, key_of_step(None, 0))
