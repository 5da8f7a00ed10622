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
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax import mixing
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
    matrix_shape,
)
from djax._arrays.precision import promote
from djax._arrays.split import (
    is_small,
    join,
    split,
    unravel,
)
from djax._calls import by_its_call
from djax._interfaces import (
    Communicator,
    PyTree,
)
from djax._mechanism.adapter import build
from djax._mechanism.states import (
    check_state,
    label_of,
)
from djax._mechanism.value import Mechanism
from djax._values import check_integer
from djax.mechanisms._edges import Edges
from djax.mixing._alternate import alternate
from djax.topologies import Graph

from .factors import (
    keep,
    orthonormal,
    signs,
)
from .products import (
    multiply,
    product_of,
)

Block = tuple[int, ...]
"""Numbers of small matrices of one shape, or of one large matrix, among the leaves."""


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
    seed = shared_key("power_gossip", key)
    orthogonalize = signs if sign else orthonormal
    first = 0 if idle_first_step else 1  # Number of the first iteration.

    label, edges = label_of(topology, weights=False), Edges(topology)

    def init(params):
        check_real("power_gossip", params)
        check_rows_axis("power_gossip", params, rows_axis)
        check_not_dealt_out("power_gossip")
        leaves, treedef = jax.tree.flatten(params)
        everyone = edges.neighbors(communicator.rank())
        drawn = random_factors(shapes_of_factors(leaves), 0, everyone)
        left, right = (
            _unflatten(treedef, {i: x for (i, s), x in drawn.items() if s == side})
            for side in (0, 1)
        )
        return PowerGossipState(left, right, jnp.zeros((), jnp.int32), label)

    # After an odd number of iterations a step starts from the other side.
    turns = edges.sides() if iterations % 2 else [0]
    parities = [(first + turn) % 2 for turn in sorted(set(turns))]

    def shapes_of_factors(leaves):
        """Of both sides of all matrices, in one round; side 0 is the left one."""
        factors = {}
        for i, x in enumerate(leaves):
            if is_matrix(x):
                shape, dtype = matrix_shape(x, rows_axis), jnp.result_type(promote(x))
                for side in (0, 1):
                    rows = min(rank, *shape), shape[side]
                    factors[i, side] = jax.ShapeDtypeStruct(rows, dtype)
        return factors

    def check_factors(leaves, sides):
        for (i, side), x in shapes_of_factors(leaves).items():
            if np.shape(sides[side][i])[1:] != x.shape:
                raise ValueError(
                    "power_gossip: the state belongs to another rank or rows_axis, or "
                    "to other parameters: make a new state by its init."
                )

    def mix(model, state, /, **extra):
        del extra
        check_state("power_gossip", state, PowerGossipState, model, label=label)
        step = optax.safe_increment(state.step)
        if not edges.places:  # There is one worker only.
            nothing = jax.tree.map(lambda x: jnp.zeros_like(promote(x)), model)
            return nothing, state._replace(step=step)
        leaves, treedef = jax.tree.flatten(model)
        # What is put together and cut apart is compiled once, outside of the branches.
        matrices = {block: _stacked(leaves, block, 0) for block in _blocks(leaves)}
        sides = [treedef.flatten_up_to(side) for side in (state.left, state.right)]
        check_factors(leaves, sides)
        factors = tuple(
            {block: _stacked(side, block, 1) for block in matrices} for side in sides
        )
        now, put_back = edges.of_step(factors, communicator.rank(), state.step)
        vectors = {i: x for i, x in enumerate(leaves) if not is_matrix(x)}
        joined, cut = join(list(vectors.values()))
        branches = [functools.partial(all_iterations, odd) for odd in parities]
        operands = state.step, matrices, now, joined
        found = alternate(state.step, turns, branches, *operands)
        corrections, vector_parts, now = found
        matrix_parts = {}
        for block, rows in corrections.items():
            like = leaves[block[0]]
            product = functools.partial(product_of, like=like, rows_axis=rows_axis)
            matrix_parts[block] = _each(product, block, 2, 0)(rows)
        parts = dict(zip(vectors, cut(vector_parts), strict=True))
        parts |= _unstacked(matrix_parts, 0)
        displacement = _unflatten(treedef, parts)
        left, right = (
            _unflatten(treedef, _unstacked(side, 1)) for side in put_back(now)
        )
        return displacement, PowerGossipState(left, right, step, label)

    def all_iterations(odd, step, matrices, before, vectors):
        """All that travels in one step.

        Args:
          odd: whether the right factor is the first one to orthogonalize.
          step: number of updates so far.
          matrices: the model's, in blocks.
          before: the factors of the blocks, left and right.
          vectors: the model's, joined; a list of arrays.

        Returns:
          What the step adds to each block of matrices, as rows on the left and on the
          right; what it adds to the vectors; and the next factors, left and right.
        """
        matrices, vectors = jax.tree.map(promote, (matrices, vectors))
        number = first + step * iterations
        change, parts, factors = iteration(
            odd, number, step, matrices, before, {}, vectors
        )
        corrections = jax.tree.map(lambda x: x[None], change)
        if iterations > 1:

            def make_room(x):
                return jnp.pad(x, ((0, iterations - 1),) + ((0, 0),) * (x.ndim - 1))

            corrections = jax.tree.map(make_room, corrections)

            def move(odd, t, factors, corrections):
                change, _, factors = iteration(
                    odd, number + t, step, matrices, factors, corrections, []
                )
                corrections = jax.tree.map(
                    lambda rows, new: rows.at[t].set(new), corrections, change
                )
                return t + 1, factors, corrections

            carry = 1, factors, corrections
            if iterations > 2:
                carry, _ = jax.lax.scan(
                    lambda carry, _: (move(odd, *move(1 - odd, *carry)), None),
                    carry,
                    length=(iterations - 1) // 2,
                )
            if iterations % 2 == 0:
                carry = move(1 - odd, *carry)
            _, factors, corrections = carry
        if idle_first_step:
            idle = step == 0
            corrections, factors = optax.tree.where(
                idle,
                (optax.tree.zeros_like(corrections), before),
                (corrections, factors),
            )
        return corrections, parts, factors

    def iteration(odd, number, step, matrices, factors, corrections, vectors):
        """One exchange.

        Args:
          odd: whether the right factor is the one to orthogonalize.
          number: of the iteration.
          step: number of updates so far.
          matrices: the model's in blocks, before the first iteration of the step.
          factors: of the differences, left and right.
          corrections: what the step's iterations so far have added to each block.
          vectors: what else is to be sent, a list of arrays.

        Returns:
          What it adds to the blocks, as rows on the left and on the right, and to the
          vectors; and the next factors.
        """
        left, right = factors
        given, found = (1, 0) if odd else (0, 1)
        bases = orthogonalize(factors[given])

        def product(basis, matrix, correction):
            return multiply(basis, matrix, given, rows_axis, correction)

        products = {
            block: _each(product, block, (1, 0, 2), 1)(
                bases[block], matrix, corrections.get(block)
            )
            for block, matrix in matrices.items()
        }
        differences, vector_differences, weights = exchange(products, vectors, step)

        def weighted(x, rate):
            return _scale(weights, x) * jnp.asarray(rate, x.dtype)

        steps = {i: weighted(x, consensus_rate) for i, x in differences.items()}
        change = {
            i: (step, bases[i]) if odd else (bases[i], step)
            for i, step in steps.items()
        }
        parts = [weighted(x, vector_rate).sum(axis=0) for x in vector_differences]
        # Both ends keep the product of the higher rank's model minus the lower one's.
        me = communicator.rank()
        neighbors = edges.neighbors_at(me, step)
        higher = jnp.where(neighbors > me, 1, -1)
        products = {i: _scale(higher, x) for i, x in differences.items()}
        if not warm_start:  # What the next iteration multiplies by is drawn anew.
            shapes = {
                i: jax.ShapeDtypeStruct(x.shape[-2:], x.dtype)
                for block, x in products.items()
                for i in block
            }
            drawn = random_factors(dict(sorted(shapes.items())), number, neighbors)
            products = {block: _stacked(drawn, block, 1) for block in products}
        if odd:
            return change, parts, (keep(products, left), keep(bases, right))
        return change, parts, (keep(bases, left), keep(products, right))

    def exchange(products, vectors, step):
        """The neighbours' minus my arrays, and the neighbours' weights.

        Of each the first axis is the round's.
        """

        def parts(r):
            return {i: product[r] for i, product in products.items()}, vectors

        def message(r):
            return _joined(jax.tree.leaves(parts(r)))

        differences, weights = [], []
        for r, heard in enumerate(
            mixing.exchange(message, topology, communicator, step=step)
        ):
            mine, treedef = jax.tree.flatten(parts(r))
            found = unravel(heard.message - heard.own, mine)
            found = [x.astype(y.dtype) for x, y in zip(found, mine, strict=True)]
            differences.append(treedef.unflatten(found))
            weights.append(heard.weight)
        stacked = jax.tree.map(lambda *rounds: jnp.stack(rounds), *differences)
        return *stacked, jnp.stack(weights)

    def random_factors(shapes, number, neighbors):
        """Normally distributed rows for each edge, the same at both of its ends.

        A draw takes long to compile. All factors of one dtype therefore get their parts
        of a single draw.

        Args:
          shapes: of the factors of one edge, float32 or wider, under names of any kind.
          number: of the iteration that has drawn them, 0 for the first.
          neighbors: `int32[edges]`, the other ends of this worker's edges.

        Returns:
          The factors under the same names, each with a leading axis of edges.
        """
        me = communicator.rank()
        low, high = jnp.minimum(me, neighbors), jnp.maximum(me, neighbors)
        numbers = low * topology.size + high
        now, drawn = jax.random.fold_in(seed, number), {}
        for dtype in dict.fromkeys(x.dtype for x in shapes.values()):
            some = {name: x for name, x in shapes.items() if x.dtype == dtype}
            sizes = [x.size for x in some.values()]
            flat = _normal(
                jax.random.fold_in(now, jnp.finfo(dtype).bits),
                numbers,
                sum(sizes),
                dtype,
            )
            parts = split(flat, sizes, axis=1)
            for (name, x), part in zip(some.items(), parts, strict=True):
                drawn[name] = part.reshape(-1, *x.shape)
        return drawn

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


def _normal(key: jax.Array, edges: jax.Array, count: int, dtype: Any) -> jax.Array:
    """Normally distributed numbers for each of the edges, `[edges, count]`."""

    def draw(edge):
        return jax.random.normal(jax.random.fold_in(key, edge), (count,), dtype)

    # XLA computes what is made element by element anew within everything that needs a
    # part of it, and compiles it as often. A loop of two iterations or more ends that.
    looped = jnp.repeat(edges, 2) if edges.size == 1 else edges
    return jax.lax.map(draw, looped)[: edges.size]


def _joined(leaves: Sequence[jax.Array]) -> jax.Array:
    """The raveled arrays one after another, in the widest of their dtypes."""
    dtypes = [jnp.dtype("float32"), *(x.dtype for x in leaves)]
    dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    flat = [jnp.zeros(0, dtype), *(x.astype(dtype).ravel() for x in leaves)]
    return jnp.concatenate(flat)


def _blocks(leaves: Sequence[jax.Array]) -> list[Block]:
    """One block for all small matrices of a shape and dtype; one a large matrix."""
    blocks: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        if is_matrix(x):
            blocks.setdefault((x.shape, x.dtype) if is_small(x) else i, []).append(i)
    return [tuple(block) for block in blocks.values()]


def _stacked(some: Any, block: Block, axis: int) -> jax.Array:
    """The arrays of a block's matrices, along a new axis if there are several."""
    if len(block) == 1:
        return some[block[0]]
    return jnp.stack([some[i] for i in block], axis)


def _unstacked(blocks: dict[Block, jax.Array], axis: int) -> dict[int, jax.Array]:
    """Undoes :func:`_stacked`: the array of each matrix, under its number."""
    found = {}
    for block, x in blocks.items():
        if len(block) == 1:
            found[block[0]] = x
        else:
            pieces = split(jnp.moveaxis(x, axis, 0), [1] * len(block))
            found |= {i: piece[0] for i, piece in zip(block, pieces, strict=True)}
    return found


def _each(fn: Callable, block: Block, in_axes: Any, out_axes: int) -> Callable:
    """Makes a function of one matrix a function of all matrices of a block."""
    return fn if len(block) == 1 else jax.vmap(fn, in_axes, out_axes)


def _unflatten(treedef: Any, leaves: dict[int, jax.Array]) -> PyTree:
    """The tree with these leaves under their numbers, None in place of all others."""
    return treedef.unflatten(leaves.get(i) for i in range(treedef.num_leaves))


def _scale(coefficients: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies along the first axis."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    return coefficients.astype(x.dtype).reshape(shape) * x
