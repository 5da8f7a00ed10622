"""What the mechanisms that send compressed messages share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._base import Communicator, Compressor, PyTree, key_of_step, wide
from djax.topologies import Topology

from ._gossip import difference, pull_over_rounds


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

    def gap(received):
        return difference(compressor.decompress(received, tree), own)

    return own, reliable_pull(message, gap, topology, communicator), state


def reliable_pull(
    message: PyTree,
    gap: Callable[[PyTree], PyTree],
    topology: Topology,
    communicator: Communicator,
) -> PyTree:
    r"""Returns :math:`\sum_j w_{ij} (x_j - x_i)` where no message is lost.

    Args:
      message: what this worker sends.
      gap: from a neighbour's message to :math:`x_j - x_i`, in float32 or wider.
      topology: the graph and its weights.
      communicator: how messages travel.
    """
    rounds = topology.rounds, topology.round_weights
    no_losses = key_of_step(None, 0)
    pull, _ = pull_over_rounds(message, gap, *rounds, communicator, no_losses)
    return pull


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
    gap = functools.partial(difference, mine=params)
    return reliable_pull(params, gap, topology, communicator)
