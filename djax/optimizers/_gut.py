r"""Global Update Tracking: every worker corrects itself by how its neighbourhood moves.

If the workers' data differ, gradient tracking follows the mean of all gradients, but
sends twice as much as D-PSGD. Global Update Tracking sends models alone. A worker can
see from two successive models of a neighbour by what update this neighbour has moved,
and tracks the mean of these updates in the way in which gradient tracking tracks the
mean of the gradients.

With the displacement :math:`q_i = \sum_j w_{ij} (x_j - x_i)`, the learning rate
:math:`\eta` and the scaling :math:`\mu`, a worker takes its gradient :math:`g_i` at
:math:`x_i + \gamma q_i`, and steps along

.. math::
   d_i &= g_i - q_i / \eta, \\
   y_i &= d_i - \tfrac{\mu}{\eta} \bigl( (\text{mean change})_i + b \, q_i^{\text{old}}
      \bigr) - \mu \, d_i^{\text{old}}, \qquad
   (\text{mean change})_i = \textstyle\sum_j w_{ij} (x_j - x_j^{\text{old}}).

The displacement enters a model only within :math:`y_i`. Without momentum :math:`b = 1`.

Aketi, Hashemi and Roy, `Global Update Tracking: A Decentralized Learning Algorithm for
Heterogeneous Data <https://arxiv.org/abs/2305.04792>`_, 2023.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax import mixing
from djax._arguments import (
    check_decay,
    check_flags,
    check_mixing,
    check_rate,
    check_reliable,
)
from djax._arrays.precision import add, scale
from djax._calls import by_its_call
from djax._interfaces import Communicator, PyTree
from djax._learning_rate import (
    SMALLEST_LEARNING_RATE,
    check_learning_rate,
    per_rank_of,
    rate_at,
)
from djax._mechanism.adapter import build
from djax._mechanism.states import check_state, label_of
from djax._mechanism.value import Mechanism
from djax.topologies import Graph

from ._gut_convergence import check_convergence


class GutState(NamedTuple):
    r"""State of :func:`gut`.

    Attributes:
      model: :math:`x_i`, a tree like the parameters. The parameters are the point
        :math:`x_i + \gamma q_i` at which the gradient is taken.
      displacement: :math:`q_i = \sum_j w_{ij} (x_j - x_i)`, a tree like the parameters,
        in float32 or wider.
      correction: :math:`y_i - g_i`, a tree like the parameters, in float32 or wider: by
        how much the next step differs from the worker's own gradient.
      momentum: the state of `optax.trace`; no arrays without momentum.
      learning_rate: `float[]`, the rate of the step before; that of the first step at
        first.
      step: `int32[]`, the number of updates so far.
      graph: a static label of the graph that the state belongs to. If it is None, the
        graph is not checked.
    """

    model: PyTree
    displacement: PyTree
    correction: PyTree
    momentum: PyTree
    learning_rate: jax.Array
    step: ArrayLike
    graph: PyTree = None


@by_its_call
def gut(
    learning_rate: optax.ScalarOrSchedule,
    topology: Graph,
    communicator: Communicator,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    scaling: float | None = None,
    consensus_rate: float = 1.0,
    check: bool = True,
) -> Mechanism:
    r"""SGD that tracks the mean update of all workers, and sends its model alone.

    .. math::
       d_i &= g_i - q_i / \eta', \qquad
       y_i = d_i - \tfrac{\mu}{\eta'} \bigl( \textstyle\sum_j w_{ij} (x_j -
          x_j^{\text{old}}) + b \, q_i^{\text{old}} \bigr) - \mu \, d_i^{\text{old}} \\
       x_i &\leftarrow x_i + \gamma (1 - \gamma) q_i - \eta \operatorname{SGD}(y_i)

    Here :math:`q_i = \sum_j w_{ij} (x_j - x_i)`, and :math:`\eta'` is the learning rate
    of the step before. SGD's direction is :math:`y_i`, or that of its momentum with the
    decay m. Then :math:`b = 1 + m`, and with Nesterov's momentum :math:`1 + m + m^2`.
    The algorithm with momentum is the paper's QG-GUTm.

    The gradient :math:`g_i` is taken at :math:`x_i + \gamma q_i`. So that any training
    loop does this, the parameters *are* this point, and the state holds :math:`x_i`,
    which :func:`djax.gut_eval_params` returns. The first gradient is taken at the
    model from which a worker starts.

    In `init` and in every step, a worker sends its model to each neighbour. A learning
    rate that suddenly grows lets the averaging overshoot once, since :math:`\eta /
    \eta'` multiplies the displacement. A warm-up from a rate of 0 therefore needs
    workers that start from equal models.

    Args:
      learning_rate: :math:`\eta`, a positive number, or a schedule of the learning
        rate.
      topology: the graph and its weights.
      communicator: how messages travel; it must not lose any.
      momentum: the decay m of SGD's momentum.
      nesterov: whether that momentum is Nesterov's.
      scaling: :math:`\mu`, in [0, 1), how much of the mean update is tracked. By
        default 0.9 without momentum, and 0.06 with momentum, as in the paper. With 0
        the algorithm is D-PSGD with overlap.
      consensus_rate: :math:`\gamma`, how far from its own model towards the average a
        worker takes its gradient.
      check: whether to refuse numbers with which the models would move apart.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs `params`, with a
      :class:`GutState`. It has to be the last link of a chain.

    Raises:
      TypeError: if `topology` is not a graph.
      ValueError: if the graph changes with time, the sizes differ, messages get lost, a
        number is out of range, or the models would move apart without gradients:
        :math:`\mu + m` must be below 1, and a large :math:`\mu` needs a mixing matrix
        whose smallest eigenvalue is not far below 0, without momentum above
        :math:`-1 / (1 + 2 \mu)`.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.gut(0.1, ring, communicator)
      >>> with_momentum = djax.gut(0.1, ring, communicator, momentum=0.9)

    References:
      Aketi, Hashemi and Roy, `Global Update Tracking: A Decentralized Learning
      Algorithm for Heterogeneous Data <https://arxiv.org/abs/2305.04792>`_, 2023
    """
    check_mixing("gut", topology, communicator, fixed=True)
    check_reliable("gut", communicator)
    check_learning_rate("gut", learning_rate, zero=False)
    check_flags("gut", nesterov=nesterov, check=check)
    if scaling is None:
        scaling = 0.9 if momentum is None else 0.06
    check_decay("gut: scaling", scaling)
    check_rate("gut: consensus_rate", consensus_rate, zero=True)
    decay = 0.0 if momentum is None else momentum
    check_decay("gut: momentum", decay)
    if check:
        check_convergence(topology, scaling, decay, nesterov, consensus_rate)
    sgd = optax.identity() if momentum is None else optax.trace(decay, nesterov)
    # The mean change of the neighbours' models is the own change plus the change of the
    # displacement. Of the factor b therefore b - 1 remains.
    lead = decay + decay * decay if nesterov else decay
    label = label_of(topology, weights=True)

    def exchange(model, step):
        return mixing.displacement(model, topology, communicator, step=step)

    def tracked(change, displacement, before, rate, old):
        """What the next step adds to the worker's own gradient."""

        def of_leaf(dx, q, p, d):
            numbers = (jnp.asarray(x, q.dtype) for x in (scaling, lead, 1 / rate))
            mu, more, inverse = numbers
            return -inverse * (q + mu * (dx + q + more * p)) - mu * d

        return jax.tree.map(of_leaf, change, displacement, before, old)

    def init(params):
        step = jnp.zeros((), jnp.int32)
        model = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        displacement = exchange(model, step)
        rate = jnp.maximum(rate_at(learning_rate, step), SMALLEST_LEARNING_RATE)
        rate = rate.astype(rate.dtype)  # So that its type is the same in later states.
        nothing = jax.tree.map(jnp.zeros_like, displacement)
        known = nothing, displacement, displacement
        correction = tracked(*known, rate, nothing)
        state = model, displacement, correction, sgd.init(correction)
        return GutState(*state, rate, step, label)

    def update(grads, state, params, /):
        trees = "model", "displacement", "correction"
        check_state("gut", state, GutState, params, *trees, label=label)
        rate = rate_at(learning_rate, state.step)
        step = optax.safe_increment(state.step)
        before, old = state.displacement, state.learning_rate
        own = add(grads, scale(1 / old, before), like=before, sign=-1)
        direction = add(grads, state.correction, like=before)
        direction, momentum_state = sgd.update(direction, state.momentum)
        kept = consensus_rate * (1 - consensus_rate)
        moved = add(scale(kept, before), scale(-rate, direction), like=before)
        model = add(state.model, moved, like=state.model)
        change = mixing.difference(model, state.model)
        displacement = exchange(model, step)
        # A rate of 0 says nothing; the displacement cannot be divided by it.
        known_rate = jnp.where(rate < SMALLEST_LEARNING_RATE, old, rate)
        correction = tracked(change, displacement, before, known_rate, own)
        point = add(model, scale(consensus_rate, displacement), like=before)
        updates = add(point, params, like=grads, sign=-1)
        found = model, displacement, correction, momentum_state
        return updates, GutState(*found, known_rate.astype(old.dtype), step, label)

    return build(
        "gut",
        init,
        communicator,
        topology,
        update=update,
        facts={"optimizer": True, "needs_every_message": True},
        per_rank=per_rank_of(learning_rate),
    )


def gut_eval_params(state: Any, params: PyTree) -> PyTree:
    r"""Returns the model :math:`x_i` of a worker that uses :func:`gut`.

    The parameters are the point at which the next gradient is taken. Evaluate the
    models that this function returns, unless a model that has been averaged once more
    is wanted.

    Args:
      state: the :class:`GutState`, or the state of a chain that contains it.
      params: the worker's parameters. Leaves that `optax.masked` or `optax.partition`
        keep away from :func:`gut` are returned as they are.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if the state contains no :class:`GutState` or several.

    Examples:
      >>> import djax, jax.numpy as jnp, optax
      >>> ring, communicator = djax.topologies.ring(4), djax.communicators.simulated(4)
      >>> optimizer = djax.gut(0.1, ring, communicator)
      >>> def worker(x):  # one step without a gradient
      ...     updates, state = optimizer.update(0 * x, optimizer.init(x), x)
      ...     return djax.gut_eval_params(state, x + updates)
      >>> x = communicator.spmd(worker)(jnp.asarray([0.0, 0.0, 4.0, 0.0]))
      >>> print(x.sum().round(3))
      4.0

    References:
      Aketi, Hashemi and Roy, `Global Update Tracking: A Decentralized Learning
      Algorithm for Heterogeneous Data <https://arxiv.org/abs/2305.04792>`_, 2023
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, GutState))
    found = [node for node in nodes if isinstance(node, GutState)]
    if len(found) != 1:
        raise ValueError(
            f"gut_eval_params needs a state with exactly one GutState, got {len(found)}"
            ": pass the one of the chain in question."
        )

    def is_left_out(node):
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(
        lambda x, param: param if is_left_out(x) else x,
        *(found[0].model, params),
        is_leaf=is_left_out,
    )
