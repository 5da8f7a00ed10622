r"""All-reduce: the exact average over all workers, with which gossip is compared."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._arguments import check_communicator, check_flags
from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import Communicator
from djax._mechanism.adapter import build
from djax._mechanism.order import report_call
from djax._mechanism.value import Mechanism


class AllReduceState(NamedTuple):
    """State of :func:`all_reduce` with `overlap`.

    Attributes:
      pending: a tree like the parameters, the updates of the step before, which have
        not been averaged yet.
    """

    pending: optax.Updates


@by_its_call
def all_reduce(communicator: Communicator, *, overlap: bool = False) -> Mechanism:
    r"""Replaces the parameters by their mean over all workers.

    .. math::
       x_i \leftarrow \tfrac1n \textstyle\sum_j (x_j + u_j^{t})
       \qquad\text{(with overlap: } u_j^{t-1} \text{ in place of } u_j^{t}\text{)}

    With `overlap` the updates are those of the step before, so that the messages do
    not depend on this step's gradients; in the first step they are zero. Inside of
    :func:`djax.on_updates`, all-reduce averages the updates in place of the models. If
    it is the first link of a chain, the updates are the gradients, and the chain is
    data-parallel SGD.

    Args:
      communicator: how messages travel.
      overlap: average this step's parameters with the updates of the step before.

    Returns:
      A :class:`djax.Mechanism` that needs `params`. It has an :class:`AllReduceState`
      with `overlap`, and no state otherwise.

    Raises:
      TypeError: if `communicator` is not a communicator, for example a Topology.

    Examples:
      >>> import djax, optax
      >>> communicator = djax.communicators.simulated(4)
      >>> gradients_averaged = djax.on_updates(djax.all_reduce(communicator))
      >>> data_parallel = optax.chain(gradients_averaged, optax.adam(1e-3))

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, the baseline "all-reduce"
    """
    check_communicator("all_reduce", communicator)
    check_flags("all_reduce", overlap=overlap)

    def init(params):
        if not overlap:
            return optax.EmptyState()
        return AllReduceState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params, /):
        fresh = updates
        if overlap:
            updates = state.pending
            state = AllReduceState(optax.tree.cast_like(fresh, state.pending))
        mean = communicator.mean(optax.apply_updates(params, updates))
        # The mean itself becomes the new model. If a displacement were added to the
        # updates, rounding errors would make the workers differ.
        step = jax.tree.map(lambda m, x: promote(m) - promote(x), mean, params)
        step = optax.tree.cast_like(step, fresh)
        report_call(fresh, step, params, mean)
        return step, state

    return build(
        "all_reduce",
        init,
        communicator,
        update=update,
        adds_displacement=not overlap,
        facts={"overlap": overlap, "needs_every_message": True},
        sends_to_neighbors=False,
    )
