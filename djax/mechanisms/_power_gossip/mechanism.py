r"""PowerGossip: low-rank averaging of the differences between neighbours' models.

Neighbours want to send the difference of their models, which is small and nearly of low
rank, but neither of them knows the difference. A *linear* compressor can be applied to
it all the same: each end of an edge multiplies its own model, seen as a matrix
:math:`M \in R^{m \times k}`, by the same few vectors, and the products are subtracted.
Of the two workers of an edge, let h be the one with the higher number, and l the one
with the lower number. The odd and the even iterations are

.. math::
   \text{odd: }  V &\leftarrow \mathrm{orth}(V), \qquad &
   U &\leftarrow M_h V - M_l V, \\
   \text{even: } U &\leftarrow \mathrm{orth}(U), \qquad &
   V &\leftarrow M_h^\top U - M_l^\top U, \\
   M_l &\leftarrow M_l + \rho w_{hl} U V^\top, \qquad &
   M_h &\leftarrow M_h - \rho w_{hl} U V^\top,

of which only :math:`M V` or :math:`M^\top U` is sent. :math:`U V^\top` is the
projection of the difference on the orthonormal factor. An iteration multiplies by the
factor that the iteration before it has found. In this way the factors follow the
leading singular vectors of the difference as it changes, in a power iteration that
never starts again. Both ends hold the same factors. One end gains what the other loses,
so that the mean over the workers is kept.

The factors of all edges are known before an iteration. Each matrix is therefore
multiplied once by all factors together, and all corrections are added as one product.
These are two passes over the parameters, whatever the number of neighbours.

Vogels, Karimireddy and Jaggi, `PowerGossip: Practical Low-Rank Communication
Compression in Decentralized Deep Learning <https://arxiv.org/abs/2008.01425>`_, 2020,
Algorithm 1.
"""

# This file is longer than 300 lines because half of it describes the algorithm and
# its arguments. What the iteration calls is in the files beside it.

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arguments import (
    check_consensus_rate,
    check_flags,
    check_mixing,
    check_reliable,
    check_static,
    mixing_matrices,
)
from djax._arrays.checks import check_real
from djax._arrays.keys import shared_key
from djax._arrays.matrices import (
    check_axis,
    check_not_dealt_out,
    check_rows_axis,
    is_matrix,
)
from djax._arrays.precision import promote
from djax._arrays.split import join
from djax._calls import by_its_call
from djax._interfaces import Communicator, PyTree
from djax._mechanism.adapter import build
from djax._mechanism.states import check_state, label_of
from djax._mechanism.value import Mechanism
from djax._values import check_integer
from djax.mixing import alternate
from djax.topologies import Graph

from .blocks import blocks_of, check_factors, factor_shapes, stacked, unflatten
from .edges import Edges
from .orthonormal import keep, orthonormal, signs
from .products import (
    added_to_matrices,
    factors_of_blocks,
    multiply_blocks,
    repeated,
    scale_rounds,
)
from .rows import joined, layouts_of, separated


class PowerGossipState(NamedTuple):
    r"""State of :func:`power_gossip`.

    A worker has one place for each of its neighbours. On a fixed graph this is the
    round in which they exchange messages. On a graph that changes with time it is a
    colour of an edge colouring of the edges of all steps together.

    Attributes:
      left: a tree like the parameters. For each matrix it has :math:`U^\top` of each
        edge, `float[places, r, m]` in float32 or wider, and None for each other leaf.
      right: a tree of the same form with :math:`V^\top`, `float[places, r, k]`.
      step: `int32[]`, the number of updates so far.
      graph: a static label of the graph that the state belongs to. If it is None, the
        graph is not checked.
    """

    left: PyTree
    right: PyTree
    step: ArrayLike
    graph: PyTree = None


@by_its_call
def power_gossip(
    topology: Graph,
    communicator: Communicator,
    rank: int = 1,
    iterations: int = 1,
    *,
    warm_start: bool = True,
    sign: bool = False,
    consensus_rate: float = 1.0,
    vector_rate: float = 1.0,
    rows_axis: int = -1,
    overlap: bool = False,
    idle_first_step: bool = False,
    key: jax.Array | None = None,
) -> Mechanism:
    r"""Averages the parameters with the neighbours' by low-rank differences.

    Placed last in a chain, it makes any optimizer decentralized. It sends few of the
    bytes of :func:`djax.gossip` (one 56th for a ResNet-20 and rank 1), stores no copies
    of the neighbours' models, and has nothing to tune. Let :math:`M_i` be a matrix of
    :math:`x_i + u_i`, where :math:`u_i` are the updates of the links before it, and let
    :math:`V_{ij}` be the factor of an edge. An odd iteration is

    .. math::
       V_{ij} &\leftarrow \mathrm{orth}(V_{ij}), \qquad
       U_{ij} \leftarrow M_j V_{ij} - M_i V_{ij} \\
       M_i &\leftarrow M_i + \rho \textstyle\sum_j w_{ij} U_{ij} V_{ij}^\top

    In an even iteration, U takes the part of V, and V the part of U. With overlap, as
    in the paper's experiments, :math:`M_i` is a matrix of :math:`x_i`, and the updates
    are added afterwards.

    In each iteration one message is sent to each neighbour. It consists of the products
    of all matrices. For each of the r columns, a product has m numbers in odd
    iterations and k numbers in even ones, in float32, or in float64 if a parameter is
    float64. In the first iteration of a step, the message also has the leaves with
    fewer than two dimensions, which are averaged without compression.

    With rank min(m, k) on square matrices, the result is that of :func:`djax.gossip`,
    except that differences of :math:`10^{-8}` and less are hardly averaged, since the
    orthogonalization adds this number to the norms. If the models are equal, the
    difference of their products is zero. If one of them has diverged, the difference is
    not finite. In both cases both ends keep the factor that they had.

    Args:
      topology: the graph and its weights: a Topology, or a Schedule with symmetric
        matrices, one for each step.
      communicator: how messages travel; it must not lose any.
      rank: the number r of columns. For a matrix with min(m, k) < r it is min(m, k).
      iterations: the number of power iterations in each step, each with an exchange.
      warm_start: whether an iteration multiplies by the factor that the iteration
        before it has found. Otherwise it multiplies by new random vectors.
      sign: multiply by the signs of the factor, divided by the square root of their
        number, instead of by orthonormal columns; for rank 1 only.
      consensus_rate: :math:`\rho`, a float or a scalar array. The best rate on a fixed
        graph is :math:`2 / ((1 - \lambda_2) + (1 - \lambda_{min}))`, which is 1.308 on
        a ring of 8. `optax.inject_hyperparams` needs `static_args=("rank",
        "iterations", "rows_axis")`.
      vector_rate: the consensus rate of the leaves that are not matrices. It is 1 in
        the published code.
      rows_axis: the axis of a leaf that becomes the m rows of its matrix; all others
        together become the k columns. The output axis is the last one of flax's
        kernels, and axis 0 of PyTorch's.
      overlap: average the parameters before this step's updates.
      idle_first_step: leave the matrices and their factors as they are in the first
        step, as the published code does. The published code gives its first iteration
        the number 0 in place of 1.
      key: PRNG key of the first vectors, the same on all workers, which derive a key of
        each edge from it; `jax.random.key(0)` by default.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a
      :class:`PowerGossipState`. Updates keep their dtypes.

    Raises:
      TypeError: if `topology` is not a graph; `init` raises it if a parameter is
        complex.
      ValueError: if the sizes differ, a matrix is not symmetric, a number is out of
        range, or messages get lost. `init` raises it if a leaf has no axis `rows_axis`,
        and inside of :func:`djax.interleave`, which takes matrices apart.

    Examples:
      >>> import djax, optax
      >>> ring = djax.topologies.ring(8)
      >>> communicator = djax.communicators.simulated(8)
      >>> averaging = djax.power_gossip(ring, communicator, rank=2)
      >>> optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), averaging)

    References:
      Vogels, Karimireddy and Jaggi, `PowerGossip: Practical Low-Rank Communication
      Compression in Decentralized Deep Learning <https://arxiv.org/abs/2008.01425>`_,
      2020, Algorithm 1
    """
    check_mixing("power_gossip", topology, communicator, symmetric=True)
    check_reliable("power_gossip", communicator)
    check_static("power_gossip", rank=rank, iterations=iterations, rows_axis=rows_axis)
    rank = check_integer(rank, "power_gossip: rank")
    iterations = check_integer(iterations, "power_gossip: iterations")
    rows_axis = check_axis("power_gossip", rows_axis)
    check_consensus_rate("power_gossip: consensus_rate", consensus_rate, topology)
    check_consensus_rate("power_gossip: vector_rate", vector_rate, topology)
    check_flags(
        "power_gossip",
        warm_start=warm_start,
        sign=sign,
        overlap=overlap,
        idle_first_step=idle_first_step,
    )
    if sign and rank > 1:
        raise ValueError(f"power_gossip: sign=True is for rank 1, not {rank}.")
    edges = Edges(topology, communicator, shared_key("power_gossip", key))
    label = label_of(topology, weights=False)
    orthogonalize = signs if sign else orthonormal
    first = 0 if idle_first_step else 1  # The number of the first iteration.
    # After an odd number of iterations, the next step starts with the other factor.
    turns = edges.sides() if iterations % 2 else [0]
    parities = [(first + turn) % 2 for turn in sorted(set(turns))]

    def init(params):
        check_real("power_gossip", params)
        check_rows_axis("power_gossip", params, rows_axis)
        check_not_dealt_out("power_gossip")
        leaves, treedef = jax.tree.flatten(params)
        shapes = factor_shapes(leaves, rank, rows_axis)
        drawn = edges.random_factors(shapes, 0, edges.neighbors())
        left, right = (
            unflatten(treedef, {i: x for (i, s), x in drawn.items() if s == side})
            for side in (0, 1)
        )
        return PowerGossipState(left, right, jnp.zeros((), jnp.int32), label)

    def iteration(layouts, step, odd, t, matrices, factors, corrections, vectors):
        """One power iteration over all edges of this worker.

        Args:
          layouts: where the left and the right factors are in their arrays.
          step: `int32[]`, the number of updates so far.
          odd: whether the right factor is orthogonalized, and the left one computed.
          t: the number of the iteration within the step, from 0.
          matrices: the matrices of the model in blocks, as they were at the start of
            the step.
          factors: the left and the right factors of this step's edges.
          corrections: what the iterations of this step so far have added to the
            matrices, as left and right factors. None in the first one.
          vectors: the arrays that are also sent and averaged: the leaves that are no
            matrices, in the first iteration of a step.

        Returns:
          What the iteration adds to the matrices, as left and right factors; what it
          adds to the vectors; and the next factors.
        """
        given, found = (1, 0) if odd else (0, 1)
        bases = orthogonalize(factors[given], layouts[given])
        # M_i V, or the transpose of M_i times U. Only these and the vectors are sent.
        products = multiply_blocks(
            bases, matrices, given, rows_axis, layouts, corrections
        )
        sent = {k: layout.message(products) for k, layout in layouts[found].items()}
        differences, vector_differences, weights = edges.differences(
            sent, vectors, step
        )
        differences = {k: layouts[found][k].place(x) for k, x in differences.items()}

        # The sum over neighbours j of rate w_ij (M_j - M_i) V V^T, as its two factors.
        def weighted(x, rate):
            return scale_rounds(weights, x) * jnp.asarray(rate, x.dtype)

        steps = {k: weighted(x, consensus_rate) for k, x in differences.items()}
        change = {given: bases, found: steps}
        parts = [weighted(x, vector_rate).sum(axis=0) for x in vector_differences]

        # Both ends keep the difference of the products, the higher rank's minus the
        # lower rank's.
        signs_of_rounds = edges.signs(step)
        new = {k: scale_rounds(signs_of_rounds, x) for k, x in differences.items()}
        if not warm_start:  # The next iteration gets factors that are drawn anew.
            number = first + step * iterations + t
            new = edges.random_rows(layouts[found], number, step)
        next_factors = {given: bases, found: new}
        kept = (keep(next_factors[s], factors[s], layouts[s]) for s in (0, 1))
        return (change[0], change[1]), parts, tuple(kept)

    def all_iterations(layouts, odd, step, matrices, factors, vectors):
        matrices, vectors = jax.tree.map(promote, (matrices, vectors))
        one = functools.partial(iteration, layouts, step)
        corrections, parts, new = repeated(
            one, odd, iterations, matrices, factors, vectors
        )
        if idle_first_step:
            corrections, new = optax.tree.where(
                step == 0,
                (optax.tree.zeros_like(corrections), factors),
                (corrections, new),
            )
        return factors_of_blocks(corrections, layouts), parts, new

    def mix(model, state, /):
        check_state("power_gossip", state, PowerGossipState, model, label=label)
        step = optax.safe_increment(state.step)
        if not edges.places:  # There is one worker only.
            nothing = jax.tree.map(lambda x: jnp.zeros_like(promote(x)), model)
            return nothing, state._replace(step=step)
        leaves, treedef = jax.tree.flatten(model)
        sides = [treedef.flatten_up_to(side) for side in (state.left, state.right)]
        check_factors(leaves, sides, rank, rows_axis)
        # Joining and splitting stay outside of the branches, to be compiled only once.
        matrices = stacked(leaves, blocks_of(leaves))
        layouts = layouts_of(leaves, matrices, rank, rows_axis)
        factors = tuple(map(joined, sides, layouts))
        now, put_back = edges.of_step(factors, state.step)
        vectors = {i: x for i, x in enumerate(leaves) if not is_matrix(x)}
        together, cut = join(list(vectors.values()))
        corrections, parts, now = alternate(
            state.step,
            turns,
            [functools.partial(all_iterations, layouts, odd) for odd in parities],
            *(state.step, matrices, now, together),
        )
        changes = dict(zip(vectors, cut(parts), strict=True))
        changes |= added_to_matrices(corrections, leaves, rows_axis)
        left, right = (
            unflatten(treedef, separated(s, layout))
            for s, layout in zip(put_back(now), layouts, strict=True)
        )
        state = PowerGossipState(left, right, step, label)
        return unflatten(treedef, changes), state

    return build(
        "power_gossip",
        init,
        communicator,
        topology,
        mix=mix,
        overlap=overlap,
        skips_silent_steps=True,
        facts={"needs_every_message": True, "compresses": True},
        # These are the matrices of full rank. With a lower rank less is averaged.
        matrices=mixing_matrices(topology, consensus_rate),
    )
