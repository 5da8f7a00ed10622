r"""Gossip averaging: the mechanism of D-PSGD.

Each worker replaces its model by a weighted average of its own model and its
neighbours',

.. math:: x_i \leftarrow \textstyle\sum_j w_{ij} x_j
             = x_i + \textstyle\sum_j w_{ij} (x_j - x_i),

with the weights of the mixing matrix of a :class:`djax.Topology`. The average is
computed in the second form, with which equal models stay equal to the last bit. Since
:math:`w_{ij} = w_{ji}`, one end of an edge gains what the other end loses, so that the
mean over the workers is kept.

Lian et al., `Can Decentralized Algorithms Outperform Centralized Algorithms?
<https://arxiv.org/abs/1705.09056>`_, 2017.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax import mixing
from djax._arguments import (
    check_consensus_rate,
    check_flags,
    check_mixing,
    mixing_matrices,
)
from djax._arrays.keys import check_key
from djax._arrays.precision import scale
from djax._calls import by_its_call
from djax._interfaces import Communicator
from djax._mechanism.adapter import build
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism
from djax.topologies import Graph


class GossipState(NamedTuple):
    """State of :func:`gossip`.

    Attributes:
      step: `int32[]`, the number of updates so far. It decides which matrix of a
        schedule is used, and which messages are dropped.
    """

    step: ArrayLike


@by_its_call
def gossip(
    topology: Graph,
    communicator: Communicator,
    *,
    consensus_rate: float = 1.0,
    overlap: bool = False,
    key: jax.Array | None = None,
) -> Mechanism:
    r"""Averages the parameters with those of the neighbours.

    Placed last in a chain, it makes any optimizer decentralized. With the updates
    :math:`u_i` of the links before it and the consensus rate :math:`\rho`,

    .. math::
       y_i &= x_i + u_i \qquad\text{(with overlap: } y_i = x_i\text{)} \\
       x_i &\leftarrow x_i + u_i + \rho \textstyle\sum_j w_{ij} (y_j - y_i)

    The literature calls this "adapt, then combine". With `overlap` it is "combine, then
    adapt": the messages do not depend on this step's gradients, and can travel while
    these are computed. In each step one model travels to each neighbour. On a complete
    graph, gossip has the result of :func:`djax.all_reduce`.

    Some optimizers derive their evaluation point or step size from the parameters, such
    as optax's `schedule_free`, `dadapt_adamw` and `prodigy`. They go wrong in front of
    a mechanism, since averaging changes the parameters. Put the mechanism inside of
    them if possible:
    `optax.contrib.schedule_free(optax.chain(optax.sgd(0.1), gossip), 0.1)`.

    If messages are dropped (`drop_probability` of the communicator), the weights of the
    messages that arrived and the worker's weight for its own model are divided by their
    sum. An entry of a neighbour's model that is NaN or infinite is replaced by the
    worker's own value, so that one diverged model does not spread to all workers.

    Every worker has to take part in every exchange. If one worker leaves an exchange
    out, under MPI the others wait for it for ever. A wrapper that decides by one
    worker's own values, such as `optax.apply_if_finite`, therefore belongs around the
    optimizer in front of the mechanism, never around both.

    Args:
      topology: the graph and its weights: a Topology, or a Schedule with doubly
        stochastic matrices, one for each step.
      communicator: how messages travel.
      consensus_rate: step size of the averaging; 1 replaces the model by the average.
        A float, or a scalar array (`optax.inject_hyperparams` works).
      overlap: average the parameters before this step's updates.
      key: PRNG key that decides which messages are dropped; `jax.random.key(0)` by
        default. Two mechanisms on one graph lose the same messages unless their keys
        differ.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`GossipState`.
      Updates keep their dtypes; sums are in float32 or wider.

    Raises:
      TypeError: if `topology` is not a graph, or `key` is not a key.
      ValueError: if the sizes differ, a matrix is not doubly stochastic, the rate is
        not positive, or it is so large that the models would never become equal.

    Examples:
      >>> import djax, optax
      >>> ring = djax.topologies.ring(16)
      >>> communicator = djax.communicators.simulated(16)
      >>> dpsgd = optax.chain(optax.sgd(0.1), djax.gossip(ring, communicator))

    References:
      Lian et al., `Can Decentralized Algorithms Outperform Centralized Algorithms?
      <https://arxiv.org/abs/1705.09056>`_, 2017, Algorithm 1
    """
    check_mixing("gossip", topology, communicator)
    check_key("gossip", key)
    check_consensus_rate("gossip: consensus_rate", consensus_rate, topology)
    check_flags("gossip", overlap=overlap)

    def init(params):
        return GossipState(jnp.zeros((), jnp.int32))

    def mix(model, state, /):
        check_state("gossip", state, GossipState, model)
        displacement = mixing.displacement(
            model, topology, communicator, step=state.step, key=key
        )
        state = GossipState(optax.safe_increment(state.step))
        return scale(consensus_rate, displacement), state

    return build(
        "gossip",
        init,
        communicator,
        topology,
        mix=mix,
        overlap=overlap,
        skips_silent_steps=True,
        matrices=mixing_matrices(topology, consensus_rate),
        per_rank=["key"],
    )
