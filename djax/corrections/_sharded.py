r"""Each member of a group carries its own share of the coordinates to other groups.

If every worker of a node sent its whole model to other nodes, the same model would
travel as often as the node has workers. If only one worker of the node sent it, the
links of all others would be idle. Here, the g workers of a group divide the model into
g shares:

.. math::
   x_i^{(p)} &\leftarrow \operatorname{average}_i\bigl(x_1^{(p)} + u_1^{(p)}, \dots,
      x_G^{(p)} + u_G^{(p)}\bigr) \\
   x_i &\leftarrow \bigl(x_i^{(1)}, \dots, x_i^{(g)}\bigr).

The member at the place p of group i averages the share p with the members at the same
place of other groups, and then the members of a group collect the shares of each other.
All links between groups are used, and each carries a g-th of a model.
"""

import optax

from djax._arguments import check_communicator
from djax._arrays.checks import check_params
from djax._arrays.divided import check_not_divided
from djax._arrays.shares import collect_shares, own_share
from djax._calls import by_its_call
from djax._interfaces import Communicator
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.levels import sharing_out
from djax._mechanism.refusals import Part
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation


@by_its_call
def sharded(mechanism: optax.GradientTransformation, local: Communicator) -> Mechanism:
    r"""Lets each member of a group average its own share of the coordinates.

    A mechanism over the second communicator of :func:`djax.communicators.grouped`
    averages between groups. With `sharded` around it, a worker gives the mechanism one
    share of the parameters and of the updates, and then collects the shares that the
    other members of its group have averaged. Between groups a worker sends the g-th
    part of what it would send without `sharded`, if groups have g members; within the
    group, an all-gather of the shares follows.

    **Members of a group stay equal**, bit for bit, if they start equal: a coordinate
    has the same update on all members. The update contains the gradient of the one
    member that has the coordinate in its share. In front of the optimizer, average the
    gradients within the group, as in the example, so that all of them count, and so
    that the optimizers of the members agree.

    **Shares.** A leaf is cut along its longest axis into pieces of one length, so that
    matrices stay matrices; zeros fill the last pieces up. A mechanism that compresses
    its messages compresses each share by itself. In :func:`djax.power_gossip`, of each
    matrix `[m, k]` with m rows or more only `[m / g, k]` is a share, whose right
    factor is as long as before: the messages become fewer than g times shorter. Other
    mechanisms do on shares what they do on whole models, so that a group behaves as one
    worker does without groups.

    Between groups, members of all places lose the same messages of a
    :func:`djax.communicators.lossy` communicator.

    If workers have several devices, put :func:`djax.per_shard` around `sharded`.

    Around mechanisms that communicate rarely, the all-gather would be made in each
    step. Put :func:`djax.every`, :func:`djax.outer` and their kind around `sharded`,
    as in `every(8, sharded(gossip, local))`. Inside of it, they would work as well. An
    optimizer such as :func:`djax.quasi_global_momentum` or :func:`djax.decentralized`
    keeps its state for the worker's share alone if it is inside; it then has to treat
    each coordinate by itself, as Adam does, and optimizers that divide by norms of the
    whole gradient do not.

    Args:
      mechanism: any mechanism over `across`, the second communicator of the same call
        of :func:`djax.communicators.grouped`.
      local: the first communicator of that call.

    Returns:
      A :class:`djax.Mechanism` with the attributes and the state of the given one. The
      state belongs to the worker's share.

    Raises:
      TypeError: if `local` is not a communicator.
      ValueError: if `local` is not the first communicator of
        :func:`djax.communicators.grouped`; in `init`, if the mechanism is over another
        communicator than `across`, or is sharded already.

    Examples:
      >>> import djax, jax, optax
      >>> workers, ring = djax.communicators.simulated(32), djax.topologies.ring(4)
      >>> local, across = djax.communicators.grouped(workers, 8)
      >>> optimizer = optax.chain(
      ...     djax.on_updates(djax.all_reduce(local)),  # the mean gradient of the group
      ...     optax.sgd(0.1),
      ...     djax.sharded(djax.gossip(ring, across), local),
      ... )
      >>> weights = jax.ShapeDtypeStruct((1000, 256), "float32")
      >>> cost = djax.communication_cost(optimizer, weights, workers)
      >>> cost["local"].mean_bytes, cost["across"].mean_bytes  # of 1024000
      (1152000, 256000)

    References:
      Lin, Stich, Patel and Jaggi, `Don't Use Large Mini-Batches, Use Local SGD
      <https://arxiv.org/abs/1808.07217>`_, 2020, hierarchical local SGD
    """
    mechanism = as_transformation("sharded", mechanism)
    check_communicator("sharded", local)
    level = getattr(local, "level", None)
    if level is None or level.name != "local":
        raise ValueError(
            f"sharded: local must be the first of the two communicators that "
            f"djax.communicators.grouped returns, got {local!r}."
        )

    def init(params):
        check_params("sharded", params)
        with around("sharded({}, local)"), sharing_out(local):
            return mechanism.init(own_share(params, local))

    def update(updates, state, params=None, **extra_args):
        check_not_divided("sharded")
        mine = None if params is None else own_share(params, local)
        share, state = mechanism.update(
            own_share(updates, local), state, mine, **extra_args
        )
        return collect_shares(share, updates, local), state

    own = Part("sharded", None, {}, conditions={"equal_within": local})
    return wrap(
        *("sharded", mechanism, init, update), parts=[own, *parts_of(mechanism)]
    )
