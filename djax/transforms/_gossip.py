r"""Gossip averaging: the mechanism of D-PSGD.

Each worker replaces its model by a weighted average over its neighbourhood,

.. math:: x_i \leftarrow \textstyle\sum_j w_{ij} x_j
             = x_i + \textstyle\sum_j w_{ij} (x_j - x_i),

with the weights of :attr:`djax.Topology.mixing_matrix`. The second form is computed:
equal models stay equal to the last bit, and since :math:`w_{ij} = w_{ji}` what one end
of an edge gains the other loses, so that the mean over the workers is kept.

Lian et al., `Can Decentralized Algorithms Outperform Centralized Algorithms?
<https://arxiv.org/abs/1705.09056>`_, 2017.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._base import (
    Communicator,
    PyTree,
    check_consensus_rate,
    check_flags,
    check_key,
    check_params,
    check_topology,
    key_of_step,
    wide,
)
from djax._facts import state_facts
from djax._same import check_same
from djax.topologies import Topology

from ._states import check_state


class GossipState(NamedTuple):
    """State of :func:`gossip`.

    Attributes:
      step: `int32[]`, number of updates so far; the key of simulated message losses.
    """

    step: ArrayLike


def gossip(
    topology: Topology,
    communicator: Communicator,
    *,
    consensus_rate: float = 1.0,
    overlap: bool = False,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the parameters with those of the neighbours.

    Placed last in a chain, it makes any optimizer decentralized. With the updates
    :math:`u_i` of the links before it and the consensus rate :math:`\rho`,

    .. math::
       y_i &= x_i + u_i \qquad\text{(with overlap: } y_i = x_i\text{)} \\
       x_i &\leftarrow x_i + u_i + \rho \textstyle\sum_j w_{ij} (y_j - y_i)

    Adapt, then combine; with `overlap` combine, then adapt: the messages do not depend
    on this step's gradients. One model travels to each neighbour in each step. On a
    complete graph it is :func:`djax.all_reduce`.

    Optimizers that read their evaluation point or step size off the iterates, such as
    optax's `schedule_free`, `dadapt_adamw` and `prodigy`, go wrong before an averaging
    that moves the iterates. Put the averaging inside where that is possible:
    `optax.contrib.schedule_free(optax.chain(optax.sgd(0.1), gossip), 0.1)`.

    Where messages are lost (`drop_probability` of the communicator), the weights of
    those that came are divided by their sum, own weight included. For an entry of a
    neighbour's model that is NaN or infinite stands the worker's own value, so that one
    worker's diverged model does not spread to the others.

    Every worker has to take part in every exchange: what decides by one worker's own
    values, such as `optax.apply_if_finite`, belongs around the optimizer in front of
    the mechanism, never around both. Under MPI the workers would wait for each other.

    Args:
      topology: the graph and its weights.
      communicator: how messages travel.
      consensus_rate: step size of the averaging; 1 replaces the model by the average.
        A float, or a scalar array (`optax.inject_hyperparams` works).
      overlap: average the parameters before this step's updates.
      key: PRNG key of the losses, where messages are lost; `jax.random.key(0)` by
        default. Two mechanisms on one graph lose the same unless their keys differ.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` that needs `params`, with a
      :class:`GossipState`. Updates keep their dtypes; sums are in float32 or wider.

    Raises:
      TypeError: if `topology` is none, for example a Schedule, or `key` is no key.
      ValueError: if the sizes differ, the rate is not positive, or it is so large that
        the models would never become equal.

    Examples:
      >>> import djax, optax
      >>> ring = djax.topologies.ring(16)
      >>> communicator = djax.communicators.simulated(16)
      >>> dpsgd = optax.chain(optax.sgd(0.1), djax.gossip(ring, communicator))

    References:
      Lian et al., `Can Decentralized Algorithms Outperform Centralized Algorithms?
      <https://arxiv.org/abs/1705.09056>`_, 2017, Algorithm 1
    """
    check_topology("gossip", topology, communicator)
    check_key("gossip", key)
    check_consensus_rate("gossip: consensus_rate", consensus_rate, topology)
    check_flags("gossip", overlap=overlap)

    def init_fn(params):
        check_params("gossip", params)
        state_facts(
            "gossip",
            communicator,
            overlap=overlap,
            smallest_eigenvalue=None
            if isinstance(consensus_rate, jax.core.Tracer)
            else lambda: 1 - float(consensus_rate) * (1 - topology.lambda_min),
        )
        check_same(
            "gossip",
            communicator,
            params,
            topology=topology,
            consensus_rate=consensus_rate,
            overlap=overlap,
        )
        return GossipState(jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = check_params("gossip", params)
        check_state("gossip", state, GossipState, params)
        model = params if overlap else optax.apply_updates(params, updates)
        losses = key_of_step(key, state.step)
        pull = pull_to_neighbors(model, topology, communicator, losses)
        updates = add_pull(updates, pull, consensus_rate)
        return updates, GossipState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def add_pull(updates: PyTree, pull: PyTree, rate: ArrayLike) -> PyTree:
    """Returns `updates + rate * pull` in the dtypes of the updates."""
    return jax.tree.map(
        lambda u, p: (wide(u) + jnp.asarray(rate, p.dtype) * p).astype(u.dtype),
        updates,
        pull,
    )


def pull_to_neighbors(
    model: PyTree, topology: Topology, communicator: Communicator, key: jax.Array
) -> PyTree:
    r"""Returns :math:`\sum_j w_{ij} (x_j - x_i)`, over the messages that arrive.

    Args:
      model: this worker's :math:`x_i`.
      topology: the graph and its weights.
      communicator: how messages travel.
      key: PRNG key of the losses.

    Returns:
      A tree like `model`, in float32 or wider.
    """
    rounds = topology.rounds, topology.round_weights
    gap = functools.partial(finite_difference, mine=model)
    pull, heard = pull_over_rounds(model, gap, *rounds, communicator, key)
    if heard is None:
        return pull
    heard += jnp.asarray(np.diag(topology.mixing_matrix))[communicator.rank()]
    # A worker that gives itself no weight may have heard nobody.
    heard = jnp.where(heard > 0, heard, 1)
    return jax.tree.map(lambda total: total / heard.astype(total.dtype), pull)


def pull_over_rounds(
    message: PyTree,
    gap: Callable[[PyTree], PyTree],
    rounds: Sequence[Sequence[int]],
    weights: np.ndarray,
    communicator: Communicator,
    key: jax.Array,
) -> tuple[PyTree, jax.Array | None]:
    r"""Returns :math:`\sum_r w_{ri} (x_{s_r(i)} - x_i)`, over the messages that arrive.

    Args:
      message: what this worker sends.
      gap: from a message to how far the sender's model is from this worker's,
        :math:`x_{s_r(i)} - x_i`, in float32 or wider.
      rounds: :math:`s_r`, from whom everybody receives.
      weights: `float64[rounds, n]`, of what they receive.
      communicator: how messages travel.
      key: PRNG key of the losses.

    Returns:
      A tree like the gaps, and the sum of the weights of what arrived; None where
      nothing can be lost.
    """
    rank = communicator.rank()
    pull = heard = None
    for source, everyones in zip(rounds, weights, strict=True):
        weight = jnp.asarray(everyones)[rank]
        arrived = communicator.arrived(source, key)
        found = gap(communicator.permute(message, source))
        if arrived is not True:
            weight = jnp.where(arrived, weight, 0)
            found = optax.tree.where(arrived, found, optax.tree.zeros_like(found))
            heard = weight if heard is None else heard + weight
        part = jax.tree.map(lambda x, w=weight: w.astype(x.dtype) * x, found)
        pull = part if pull is None else jax.tree.map(jnp.add, pull, part)
    if pull is None:  # There is one worker only.
        pull = jax.tree.map(jnp.zeros_like, gap(message))
    return pull, heard


def difference(theirs: PyTree, mine: PyTree) -> PyTree:
    """Returns `theirs - mine` in float32 or wider."""
    return jax.tree.map(lambda x, y: wide(x) - wide(y), theirs, mine)


def finite_difference(theirs: PyTree, mine: PyTree) -> PyTree:
    """Returns `theirs - mine` as :func:`difference`, and 0 where that is not finite.

    One worker's NaN or infinity would otherwise reach all others within a few steps.
    An entry that is not finite counts as the receiver's own value, which costs no pass
    over the model, and keeps the mean of the workers that are finite.
    """
    return jax.tree.map(
        lambda x: jnp.where(jnp.isfinite(x), x, 0), difference(theirs, mine)
    )
