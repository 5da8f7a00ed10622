"""Several mechanisms, each for a part of the coordinates, to balance the traffic."""

import contextlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arrays.checks import check_params
from djax._arrays.divided import check_not_divided
from djax._arrays.matrices import dealing_out, is_matrix
from djax._calls import by_its_call
from djax._interfaces import PyTree
from djax._mechanism.agreement import around
from djax._mechanism.states import InterleaveState, check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation


@by_its_call
def interleave(mechanisms: Sequence[optax.GradientTransformation]) -> Mechanism:
    r"""Splits the coordinates by stride over several mechanisms.

    In a tree some workers have more neighbours, and send more, than others. In the two
    trees of :func:`djax.topologies.double_binary_trees` these are different workers, so
    that all send about the same amount. The parameters are treated as one vector: the
    leaves in the order of `jax.tree.leaves`, each in row-major order. Coordinate
    :math:`k` is averaged by mechanism :math:`k \bmod T`. Each mechanism is given
    vectors only. For this reason mechanisms and codes that compress matrices
    (:func:`djax.power_gossip`, :func:`djax.compressors.low_rank`) are refused.

    Args:
      mechanisms: a list of the :math:`T` mechanisms.

    Returns:
      A :class:`djax.Mechanism` with an :class:`InterleaveState`; it needs `params` if
      one of the mechanisms does.

    Raises:
      TypeError: if `mechanisms` is not a list of mechanisms.
      ValueError: if there are no mechanisms; in `init`, if one of them compresses
        matrices and the parameters have some.

    Examples:
      >>> import djax
      >>> communicator = djax.communicators.simulated(16)
      >>> trees = djax.topologies.double_binary_trees(16)
      >>> averaging = djax.interleave([djax.gossip(t, communicator) for t in trees])

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, double binary trees
    """
    # A mechanism is a tuple of functions, and so a sequence, too.
    single = isinstance(mechanisms, optax.GradientTransformation)
    if single or not isinstance(mechanisms, Sequence):
        raise TypeError(f"interleave takes a list of mechanisms, got {mechanisms!r}.")
    if not mechanisms:
        raise ValueError("interleave needs at least one mechanism.")
    mechanisms = [
        as_transformation(f"interleave: mechanisms[{i}]", m)
        for i, m in enumerate(mechanisms)
    ]
    count = len(mechanisms)

    def init(params):
        check_params("interleave", params)
        shares = _deal(params, count)
        cut = any(is_matrix(x) for x in jax.tree.leaves(params))
        with dealing_out("interleave") if cut else contextlib.nullcontext():
            states = []
            for i, share in enumerate(shares):
                with around(f"interleave({i + 1} of {count}: {{}})"):
                    states.append(mechanisms[i].init(share))
        return InterleaveState(tuple(states))

    def update(updates, state, params=None, **extra_args):
        check_state("interleave", state, InterleaveState, params)
        check_not_divided("interleave")
        if len(state.mechanism_states) != count:
            raise ValueError(
                f"interleave has {count} mechanisms, but the state belongs to "
                f"{len(state.mechanism_states)}: make a new state by its init."
            )
        shares = _deal(updates, count)
        models = [None] * count if params is None else _deal(params, count)
        results = [
            mechanism.update(share, mechanism_state, model, **extra_args)
            for mechanism, share, mechanism_state, model in zip(
                mechanisms, shares, state.mechanism_states, models, strict=True
            )
        ]
        averaged, states = zip(*results, strict=True)
        return _collect(averaged, updates), InterleaveState(states)

    return Mechanism(
        init,
        update,
        name="interleave",
        communicator=getattr(mechanisms[0], "communicator", None),
        parts=[part for mechanism in mechanisms for part in parts_of(mechanism)],
    )


def _offsets(tree: PyTree) -> list[int]:
    """Returns the position of each leaf's first coordinate in the vector of all."""
    sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
    return np.cumsum([0, *sizes])[:-1].tolist()


def _deal(tree: PyTree, count: int) -> list[list[jax.Array]]:
    """Deals the coordinates out in turn: one list of flat leaves for each mechanism."""
    leaves, offsets = jax.tree.leaves(tree), _offsets(tree)
    return [
        [
            leaf.ravel()[(share - offset) % count :: count]
            for leaf, offset in zip(leaves, offsets, strict=True)
        ]
        for share in range(count)
    ]


def _collect(shares: Sequence[list[jax.Array]], like: PyTree) -> PyTree:
    """Puts what :func:`_deal` dealt back together."""
    leaves, treedef = jax.tree.flatten(like)
    count = len(shares)
    collected = []
    for i, (leaf, offset) in enumerate(zip(leaves, _offsets(like), strict=True)):
        rows = -(-leaf.size // count)
        columns = [
            jnp.pad(part, (0, rows - part.size))
            for part in (shares[(offset + k) % count][i] for k in range(count))
        ]
        collected.append(jnp.stack(columns, 1).ravel()[: leaf.size].reshape(leaf.shape))
    return jax.tree.unflatten(treedef, collected)
