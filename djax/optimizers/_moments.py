"""Finds the moments in the state of an optimizer, such as Adam's.

The state of an optimizer of optax is a tree of arrays that says nothing about their
meaning. Moments are made like the parameters, and counters and hyperparameters are not.
`optax.tree.map_params` therefore calls the `init` of the optimizer with a placeholder
in place of the parameters, and looks where it is in the result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._interfaces import PyTree
from djax._mechanism.value import without_states


def moments_of(
    optimizer: optax.GradientTransformation, state: optax.OptState
) -> list[PyTree]:
    """Lists the trees in a state that are made like the parameters.

    In the trees, `optax.MaskedNode` is in the place of leaves that are no floats.

    Args:
      optimizer: the optimizer to which the state belongs.
      state: the state; the states of mechanisms in it are left out.

    Raises:
      ValueError: if there are no such trees, or if optax does not find them.
    """
    found: list[PyTree] = []
    try:
        _map_trees(optimizer, found.append, state)
    except Exception as error:
        raise ValueError(
            "decentralized: average_state needs optax.tree.map_params to find out what "
            "in the state of the optimizer is like the parameters, which fails for "
            f"this optimizer ({type(error).__name__}: {error}). Put optax.flatten "
            "around djax.decentralized; with other such optimizers leave out "
            "average_state."
        ) from error
    moments = [tree for tree in map(_floats, found) if jax.tree.leaves(tree)]
    if not moments:
        raise ValueError(
            "decentralized: the optimizer has no state like the parameters that could "
            "be averaged, as optax.sgd without momentum: leave out average_state."
        )
    return moments


def with_moments(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    moments: Sequence[PyTree],
) -> optax.OptState:
    """Returns a state with other trees in the places of those of :func:`moments_of`.

    Args:
      optimizer: the optimizer to which the state belongs.
      state: the state.
      moments: the new trees.
    """
    rest = iter(moments)

    def of_tree(tree):
        if not jax.tree.leaves(_floats(tree)):
            return tree
        return jax.tree.map(
            lambda old, new: old if isinstance(new, optax.MaskedNode) else new,
            *(tree, next(rest)),
        )

    return _map_trees(optimizer, of_tree, state)


def _map_trees(
    optimizer: Any, function: Callable[[PyTree], Any], state: optax.OptState
) -> optax.OptState:
    """Maps a function over the trees in a state that are made like the parameters."""
    with without_states():
        return optax.tree.map_params(
            optimizer, function, state, is_leaf=lambda tree: True
        )


def _floats(tree: PyTree) -> PyTree:
    """Masks the leaves of a tree that are no floats."""

    def of_leaf(x):
        inexact = jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        return x if inexact else optax.MaskedNode()

    return jax.tree.map(of_leaf, tree)
