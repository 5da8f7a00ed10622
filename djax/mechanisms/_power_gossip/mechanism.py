r"""PowerGossip: low-rank averaging of the differences between neighbours' models.

A compressor that is linear can be applied to a difference that nobody knows: each end
of an edge multiplies its own model, seen as a matrix :math:`M \in R^{m \times k}`, by
the same few vectors, and the products are subtracted. With the worker h of the higher
rank and l of the lower one, the odd and the even iterations are

.. math::
   \text{odd: }  V &\leftarrow \mathrm{orth}(V), &
   U &\leftarrow M_h V - M_l V, \\
   \text{even: } U &\leftarrow \mathrm{orth}(U), &
   V &\leftarrow M_h^\top U - M_l^\top U, \\
   M_l &\leftarrow M_l + \rho w_{hl} U V^\top, &
   M_h &\leftarrow M_h - \rho w_{hl} U V^\top,

of which only :math:`M V` or :math:`M^\top U` travels. :math:`U V^\top` is the
projection of the difference on the orthonormal factor. Since an iteration multiplies by
what the one before it found, the factors follow the leading singular vectors of
the difference as it changes, a power iteration that never starts anew. Both ends hold
the same factors, hence what one gains the other loses, and the mean over the workers
is kept.

All edges' factors are known before an iteration, so that it multiplies each matrix once
by all of them together, and adds all corrections as one product: two passes over the
parameters, whatever the number of neighbours.

Vogels, Karimireddy and Jaggi, `PowerGossip: Practical Low-Rank Communication
Compression in Decentralized Deep Learning <https://arxiv.org/abs/2008.01425>`_, 2020,
Algorithm 1.

This file is longer than 300 lines because half of it describes the algorithm and its
arguments. What the iteration calls is in the files beside it.
"""

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
from djax.mixing._alternate import alternate
from djax.topologies import Graph

from .blocks import (
    blocks_of,
    check_factors,
    factor_shapes,
    stacked,
    unflatten,
    unstacked,
)
from .edges import Edges
from .orthonormal import keep, orthonormal, signs
from .products import added_to_matrices, multiply_blocks, scale_rounds
from .repeat import repeated


class PowerGossipState(NamedTuple):
    r"""State of :func:`power_gossip`.

    A worker has one place for each neighbour that it ever meets: on a fixed graph the
    round in which it meets it, on graphs that change with time a colour of an edge
    colouring of all edges together.

    Attributes:
      left: for each matrix, `float[places, r, m]`, the rows :math:`U^\top` of both ends
        of the edge, in float32 or wider; None for each other leaf.
      right: for each matrix, `float[places, r, k]`, the rows :math:`V^\top`, likewise.
      step: `int32[]`, number of updates so far.
      graph: static label of the graph that the state belongs to; None is not checked.
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
    r"""Averages the parameters with the neighbours', by low-rank differences.

    Placed last in a chain it makes any optimizer decentralized, for few of the bytes
    of :func:`djax.gossip` (of rank 1 and for a ResNet-20 a 56th), with no copies of the
    neighbours' models and nothing to tune. With the updates :math:`u_i` of the links
    before it, the equations of this module are those of :math:`x_i + u_i`; with
    overlap, as in the paper's experiments, of :math:`x_i`, and the updates then come on
    top.

    An iteration sends one message to each neighbour: the products of all matrices, m or
    k numbers a column in turn, in float32 or, if a parameter is, float64. That of the
    first iteration of a step also carries the leaves that are no matrices, those with
    fewer than two dimensions, for an average without compression.

    With rank min(m, k) on square matrices it is :func:`djax.gossip`, but for the
    :math:`10^{-8}` that the orthogonalization adds to the norms: differences that are
    not larger are hardly averaged. A column whose
    product is zero or not finite, since the models are equal, or one has diverged,
    leaves the factor of both ends as it was.

    Args:
      topology: the graph and its weights: a Topology, or a Schedule of symmetric
        matrices, of which each step takes the next one.
      communicator: how messages travel; it must not lose any.
      rank: number r of columns; of a matrix at most min(m, k) are used.
      iterations: power iterations in each step, each with its own exchange.
      warm_start: whether an iteration multiplies by the product of the one before it,
        or by new random vectors.
      sign: multiply by the signs of the factor, over the square root of their number,
        in place of its orthonormal columns; for rank 1.
      consensus_rate: :math:`\rho`; best on a fixed graph is
        :math:`2 / ((1 - \lambda_2) + (1 - \lambda_{min}))`, 1.308 on a ring of 8. A
        float, or a scalar array (`optax.inject_hyperparams` needs `static_args=("rank",
        "iterations", "rows_axis")`).
      vector_rate: the same for the leaves that are no matrices, for which the
        published code always has 1.
      rows_axis: the axis of a leaf that becomes the m rows of its matrix; all others
        together are the k columns. The last is the output axis of flax's kernels, 0
        that of PyTorch's.
      overlap: average the parameters before this step's updates.
      idle_first_step: leave the matrices and their factors as they are in the first
        step, as the published code does; its first iteration has the number 0, not 1.
      key: PRNG key of the first vectors, the same on all workers, who make each edge's
        own of it; `jax.random.key(0)` by default.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a
      :class:`PowerGossipState`. Updates keep their dtypes.

    Raises:
      TypeError: if `topology` is no graph; in `init`, if a parameter is complex.
      ValueError: if the sizes differ, a matrix is not symmetric, a number is out of
        range, or messages get lost; in `init`, if a matrix has no axis `rows_axis`, or
        inside of :func:`djax.interleave`, which deals out the matrices' single
        coordinates.

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
    first = 0 if idle_first_step else 1  # Number of the first iteration.
    # After an odd number of iterations a step starts from the other side.
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

    def iteration(step, odd, t, matrices, factors, corrections, vectors):
        """One power iteration over all edges of this worker.

        Args:
          step: `int32[]`, number of updates so far.
          odd: whether the right factor is the one to orthogonalize.
          t: number of the iteration within the step, from 0.
          matrices: the model's in blocks, before the first iteration of the step.
          factors: of this step's edges, left and right, `[rounds, r, m or k]`.
          corrections: what the step's iterations so far have added to each block.
          vectors: what else is to be sent and averaged, a list of arrays.

        Returns:
          What it adds to the blocks, as rows on the left and on the right, and to the
          vectors; and the next factors.
        """
        given, found = (1, 0) if odd else (0, 1)
        bases = orthogonalize(factors[given])
        # M_i V, or its transpose times U: the only arrays that travel besides vectors.
        products = multiply_blocks(bases, matrices, given, rows_axis, corrections)
        differences, vector_differences, weights = edges.differences(
            products, vectors, step
        )

        # The sum over neighbours j of rate w_ij (M_j - M_i) V V^T, as its two factors.
        def weighted(x, rate):
            return scale_rounds(weights, x) * jnp.asarray(rate, x.dtype)

        steps = {i: weighted(x, consensus_rate) for i, x in differences.items()}
        rows = {given: bases, found: steps}
        change = {block: (rows[0][block], rows[1][block]) for block in steps}
        parts = [weighted(x, vector_rate).sum(axis=0) for x in vector_differences]

        # Both ends keep the product of the higher rank's model minus the lower one's.
        signs_of_rounds = edges.signs(step)
        new = {i: scale_rounds(signs_of_rounds, x) for i, x in differences.items()}
        if not warm_start:  # What the next iteration multiplies by is drawn anew.
            new = edges.random_blocks(new, first + step * iterations + t, step)
        next_factors = {given: bases, found: new}
        return change, parts, tuple(keep(next_factors[s], factors[s]) for s in (0, 1))

    def all_iterations(odd, step, matrices, factors, vectors):
        matrices, vectors = jax.tree.map(promote, (matrices, vectors))
        one = functools.partial(iteration, step)
        corrections, parts, new = repeated(
            one, odd, iterations, matrices, factors, vectors
        )
        if idle_first_step:
            corrections, new = optax.tree.where(
                step == 0,
                (optax.tree.zeros_like(corrections), factors),
                (corrections, new),
            )
        return corrections, parts, new

    def mix(model, state, /, **extra):
        del extra
        check_state("power_gossip", state, PowerGossipState, model, label=label)
        step = optax.safe_increment(state.step)
        if not edges.places:  # There is one worker only.
            nothing = jax.tree.map(lambda x: jnp.zeros_like(promote(x)), model)
            return nothing, state._replace(step=step)
        leaves, treedef = jax.tree.flatten(model)
        sides = [treedef.flatten_up_to(side) for side in (state.left, state.right)]
        check_factors(leaves, sides, rank, rows_axis)
        # What is put together and cut apart is compiled once, outside of the branches.
        matrices = stacked(leaves, blocks_of(leaves), 0)
        factors = tuple(stacked(side, matrices, 1) for side in sides)
        now, put_back = edges.of_step(factors, state.step)
        vectors = {i: x for i, x in enumerate(leaves) if not is_matrix(x)}
        joined, cut = join(list(vectors.values()))
        corrections, parts, now = alternate(
            state.step,
            turns,
            [functools.partial(all_iterations, odd) for odd in parities],
            *(state.step, matrices, now, joined),
        )
        changes = dict(zip(vectors, cut(parts), strict=True))
        changes |= added_to_matrices(corrections, leaves, rows_axis)
        left, right = (unflatten(treedef, unstacked(s, 1)) for s in put_back(now))
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
        facts={"needs_every_message": True},
        # Of full rank; of a lower one it averages less, with which no more converges.
        matrices=mixing_matrices(topology, consensus_rate),
    )
