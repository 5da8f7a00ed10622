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
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from djax._base import (
    Communicator,
    PyTree,
    alternate,
    check_no_overlap,
    check_params,
    check_rate,
    check_real,
    check_reliable,
    check_topology,
    shared_key,
    wide,
)
from djax._matrix import (
    as_matrix,
    check_rows_axis,
    from_matrix,
    is_matrix,
    layout,
    matrix_shape,
)
from djax.topologies import Topology
from djax.topologies._checks import check_integer

from ._gossip import add_pull

EPSILON = 1e-8  # Of the reference's Gram-Schmidt, added to the norms.
DEPENDENT = 1e-3  # What is left of a row, relative to it, when little of it is new.


class PowerGossipState(NamedTuple):
    r"""State of :func:`power_gossip`; a worker meets one neighbour a round.

    Attributes:
      left: for each matrix, `float[rounds, r, m]`, the rows :math:`U^\top` of both ends
        of the round's edge, in float32 or wider; None for each other leaf.
      right: for each matrix, `float[rounds, r, k]`, the rows :math:`V^\top`, likewise.
      step: `int32[]`, number of updates so far.
    """

    left: PyTree
    right: PyTree
    step: ArrayLike


def power_gossip(
    topology: Topology,
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
) -> optax.GradientTransformationExtraArgs:
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
    fewer than two dimensions, for an average without compression. (Inside of
    :func:`djax.interleave`, which deals out single coordinates, nothing is a matrix.)

    With rank min(m, k) on square matrices it is :func:`djax.gossip`, but for the
    :math:`10^{-8}` that the orthogonalization adds to the norms: differences that are
    not larger are hardly averaged. A column whose
    product is zero or not finite, since the models are equal, or one has diverged,
    leaves the factor of both ends as it was.

    Args:
      topology: the graph and its weights.
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
      A :class:`optax.GradientTransformationExtraArgs` that needs `params`, with a
      :class:`PowerGossipState`. Updates keep their dtypes.

    Raises:
      TypeError: if `topology` is none, for example a Schedule, or a parameter is
        complex.
      ValueError: if the sizes differ, a number is out of range, or messages get lost;
        in `init`, if a matrix has no axis `rows_axis`.

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
    check_topology("power_gossip", topology, communicator)
    check_reliable("power_gossip", communicator)
    rank = check_integer(rank, "power_gossip: rank")
    iterations = check_integer(iterations, "power_gossip: iterations")
    check_rate("power_gossip: consensus_rate", consensus_rate)
    check_rate("power_gossip: vector_rate", vector_rate)
    if sign and rank > 1:
        raise ValueError(f"power_gossip: sign=True is for rank 1, not {rank}.")
    seed = shared_key("power_gossip", key)
    orthogonalize = _signs if sign else _orthonormal
    first = 0 if idle_first_step else 1  # Number of the first iteration.

    def init_fn(params):
        check_real("power_gossip", check_params("power_gossip", params))
        check_rows_axis("power_gossip", params, rows_axis)
        if overlap:
            check_no_overlap("power_gossip")
        leaves, treedef = jax.tree.flatten(params)

        def factors(side):
            """The rows of all matrices; side 0 is the left one."""
            for i, x in enumerate(leaves):
                if not is_matrix(x):
                    yield None
                    continue
                shape = matrix_shape(x, rows_axis)
                rows = min(rank, *shape), shape[side]
                yield random_factor((i, side), 0, rows, wide(x).dtype)

        left, right = treedef.unflatten(factors(0)), treedef.unflatten(factors(1))
        return PowerGossipState(left, right, jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = check_params("power_gossip", params)
        step = optax.safe_increment(state.step)
        if not topology.rounds:  # There is one worker only.
            return updates, state._replace(step=step)
        model = params if overlap else optax.apply_updates(params, updates)
        # After an odd number of iterations a step starts from the other side.
        parities = [(first + t * iterations) % 2 for t in range(1 + iterations % 2)]
        branches = [functools.partial(all_iterations, odd) for odd in parities]
        schedule, now = range(len(branches)), communicator.agreed(state.step)
        pull, left, right = alternate(now, schedule, branches, model, state)
        return add_pull(updates, pull, 1.0), PowerGossipState(left, right, step)

    def all_iterations(odd, model, state):
        """Returns what one step adds to the model, and its factors."""
        leaves, treedef = jax.tree.flatten(model)
        places = [i for i, x in enumerate(leaves) if is_matrix(x)]
        layouts = [layout(leaves[i], rows_axis) for i in places]
        start = [as_matrix(wide(leaves[i]), rows_axis) for i in places]
        vectors = [wide(x) for x in leaves if not is_matrix(x)]
        left, right = (
            [f for f in treedef.flatten_up_to(side) if f is not None]
            for side in (state.left, state.right)
        )
        number = first + state.step * iterations
        advance = functools.partial(iteration, places, layouts)
        pulls, vector_pulls, factors = advance(
            odd, number, start, (left, right), vectors
        )

        def move(odd, matrices, factors, number):
            pulls, _, factors = advance(odd, number, matrices, factors)
            return jax.tree.map(jnp.add, matrices, pulls), factors, number + 1

        if iterations > 1:
            carry = jax.tree.map(jnp.add, start, pulls), factors, number + 1
            if iterations > 2:
                carry, _ = jax.lax.scan(
                    lambda carry, _: (move(odd, *move(1 - odd, *carry)), None),
                    carry,
                    length=(iterations - 1) // 2,
                )
            if iterations % 2 == 0:
                carry = move(1 - odd, *carry)
            matrices, factors, _ = carry
            pulls = jax.tree.map(jnp.subtract, matrices, start)
        if idle_first_step:
            idle = state.step == 0
            zeros = jax.tree.map(jnp.zeros_like, pulls)
            pulls = optax.tree.where(idle, zeros, pulls)
            factors = optax.tree.where(idle, (left, right), factors)
        return assemble(leaves, treedef, pulls, vector_pulls, factors)

    def iteration(places, layouts, odd, number, matrices, factors, vectors=()):
        """One exchange; returns what it adds to matrices and vectors, and factors."""
        left, right = factors
        given, found = "km" if odd else "mk"
        bases = orthogonalize(right if odd else left)
        products = [
            _einsum(f"rc{given},{shape}->rc{found}", basis, matrix)
            for basis, shape, matrix in zip(bases, layouts, matrices, strict=True)
        ]
        gaps, vector_gaps = exchange(products, vectors)
        weights = jnp.asarray(topology.round_weights)[:, communicator.rank()]
        pulls = [
            _einsum(
                f"rc{found},rc{given}->{shape}",
                _scale(weights, gap) * jnp.asarray(consensus_rate, gap.dtype),
                basis,
            )
            for gap, shape, basis in zip(gaps, layouts, bases, strict=True)
        ]
        vector_pulls = [
            _scale(weights, gap).sum(axis=0) * jnp.asarray(vector_rate, gap.dtype)
            for gap in vector_gaps
        ]
        # Both ends keep the product of the higher rank's model minus the lower one's.
        signs = jnp.where(peers() > communicator.rank(), 1, -1)
        products = [_scale(signs, gap) for gap in gaps]
        if odd:
            factors = _keep(products, left), _keep(bases, right)
        else:
            factors = _keep(bases, left), _keep(products, right)
        if not warm_start:
            factors = redraw(factors, 1 - odd, places, number)
        return pulls, vector_pulls, factors

    def exchange(products, vectors):
        """Returns the neighbour's minus my arrays; their first axis is the round's."""
        gaps = []
        for i, source in enumerate(topology.rounds):
            parts = [product[i] for product in products], vectors
            message, unravel = jax.flatten_util.ravel_pytree(parts)
            gaps.append(unravel(communicator.permute(message, source) - message))
        return jax.tree.map(lambda *rounds: jnp.stack(rounds), *gaps)

    def redraw(factors, side, places, number):
        """Replaces the factors that the next iteration multiplies by."""
        fresh = [
            random_factor((place, side), number, factor.shape[1:], factor.dtype)
            for place, factor in zip(places, factors[side], strict=True)
        ]
        return (fresh, factors[1]) if side == 0 else (factors[0], fresh)

    def random_factor(which, number, shape, dtype):
        """Normally distributed rows for each round, the same at both ends of an edge.

        Args:
          which: the leaf's number, and 0 for left or 1 for right.
          number: of the iteration that has drawn them, 0 for the first.
          shape: of the factor in one round.
          dtype: of the factor.
        """
        drawn = functools.reduce(jax.random.fold_in, (number, *which), seed)
        me = communicator.rank()
        edges = jnp.minimum(me, peers()) * topology.size + jnp.maximum(me, peers())
        return jax.vmap(
            lambda edge: jax.random.normal(
                jax.random.fold_in(drawn, edge), shape, dtype
            )
        )(edges)

    def peers():
        """`int32[rounds]`, whom this worker meets."""
        rounds = np.array(topology.rounds, np.int32).reshape(-1, topology.size)
        return jnp.asarray(rounds)[:, communicator.rank()]

    def assemble(leaves, treedef, pulls, vector_pulls, factors):
        """Puts matrices and vectors back where they belong."""
        pulls, vector_pulls = iter(pulls), iter(vector_pulls)
        left, right = map(iter, factors)
        total, lefts, rights = [], [], []
        for x in leaves:
            if is_matrix(x):
                total.append(from_matrix(next(pulls), x, rows_axis))
            else:
                total.append(next(vector_pulls))
            lefts.append(next(left) if is_matrix(x) else None)
            rights.append(next(right) if is_matrix(x) else None)
        return tuple(map(treedef.unflatten, (total, lefts, rights)))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A product of which a difference will be taken: without reduced precision."""
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def _scale(coefficients: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies along the first axis."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    return coefficients.astype(x.dtype).reshape(shape) * x


def _keep(new: list[jax.Array], old: list[jax.Array]) -> list[jax.Array]:
    """The new rows, and the old ones in place of those with no finite, positive norm.

    From zero there is no way back: both factors would be zero for ever.
    """

    def keep(new, old):
        norm = jnp.linalg.norm(new, axis=-1, keepdims=True)
        return jnp.where((norm > 0) & jnp.isfinite(norm), new, old)

    return jax.tree.map(keep, new, old)


def _signs(factors: list[jax.Array]) -> list[jax.Array]:
    return [jnp.sign(x) / np.sqrt(x.shape[-1]).astype(x.dtype) for x in factors]


def _orthonormal(factors: list[jax.Array]) -> list[jax.Array]:
    """Orthonormalizes the rows of `[rounds, r, length]`, all of one shape together."""
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(factors):
        groups.setdefault((x.shape, x.dtype), []).append(i)
    result = list(factors)
    for indices in groups.values():
        together = _gram_schmidt(jnp.stack([factors[i] for i in indices]))
        for i, rows in zip(indices, together, strict=True):
            result[i] = rows
    return result


def _gram_schmidt(rows: jax.Array) -> jax.Array:
    """Orthonormalizes `[..., r, length]` row by row, as the reference does.

    Of a row that depends on the ones before it only rounding errors are left, in any
    direction. The earlier rows are then removed again, where the reference does not:
    together its rows would be longer than one.
    """
    count = rows.shape[-2]
    lengths = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    number = jnp.arange(count)[:, None]

    def normalize(row):
        length = jnp.linalg.norm(row, axis=-1, keepdims=True)
        return row / (length + EPSILON), length

    def projections(rows, row, some):
        along = jnp.sum(rows * row, axis=-1, keepdims=True)
        return jnp.where(some, along, 0)

    def take(i, rows):
        row, length = normalize(jax.lax.dynamic_index_in_dim(rows, i, axis=-2))
        new = length / jax.lax.dynamic_index_in_dim(lengths, i, axis=-2)
        for _ in range(2):
            earlier = projections(rows, row, number < i) * rows
            again, length = normalize(row - earlier.sum(axis=-2, keepdims=True))
            row = jnp.where(new < DEPENDENT, again, row)
            new = jnp.where(new < DEPENDENT, length, new)
        rows = rows - projections(rows, row, number > i) * row
        return jax.lax.dynamic_update_slice_in_dim(rows, row, i, axis=-2)

    return jax.lax.fori_loop(0, count, take, rows, unroll=count <= 4)
