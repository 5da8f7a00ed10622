"""Steps of many rounds, in simulation: one matrix product, or a loop.

On a graph with many neighbours a step has many rounds. In simulation, a program that
makes all of them one after the other compiles slowly, and takes longer the more rounds
it has, since every round reads all models again. If the workers share a device, there
are two other ways:

* :func:`by_product` computes the step of all workers as one product of the mixing
  matrix and their messages. That is possible where what is read out of messages is a
  difference of values.
* :func:`by_loop` makes a few rounds at a time in a loop. The size of the program does
  not depend on their number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from djax._arrays.batches import any_of_runs
from djax._arrays.finite import all_finite
from djax._arrays.precision import difference, promote
from djax._counting import present_counter
from djax._interfaces import Communicator, PyTree
from djax.topologies import Graph

from ._narrow import narrow
from ._rounds import mine, place, read_back, round_of

# With more than 6 + n / 6 rounds of n workers, a product takes less time than rounds. A
# loop over more than 8 rounds takes less time than a program that makes all of them one
# after the other, which would compute a sum such as `params + updates` anew in each
# round. Programs of up to 32 rounds do not take long to compile. All numbers were
# measured on CPUs, for 16 to 1,024 workers.
_FEW_ROUNDS = 6
_WORKERS_A_ROUND = 6
_SHORT = 8
_LONG = 32
_TOGETHER = 4  # Rounds that the loop makes at once, with one pass over the sum.
# Weights that should be equal differ by rounding errors only, far less than this.
_ROUNDING = 1e-12


def choose(count: int, linear: bool, communicator: Communicator) -> str | int:
    """Returns in which way a step is computed.

    Args:
      count: the number of rounds of the step.
      linear: whether what is read out of messages is a difference of values.
      communicator: how messages travel.

    Returns:
      "product", "loop", or `count` for the rounds one after the other.
    """
    simulated = (
        # A communicator of one's own may pass on all calls to a simulated one.
        hasattr(type(communicator), "combine")
        and not communicator.drop_probability
        and present_counter() is None
    )
    if not simulated:
        return count
    if linear and count > _FEW_ROUNDS + communicator.size / _WORKERS_A_ROUND:
        return "product"
    return "loop" if count > (_SHORT if linear else _LONG) else count


def by_product(
    values: PyTree,
    graph: Graph,
    communicator: Any,
    steps: Sequence[int],
    step: ArrayLike,
    repair: Callable[[], PyTree] | None,
) -> PyTree:
    r"""Returns :math:`\sum_j w_{ij} (v_j - v_i)` of a step, in float32 or wider.

    The product is taken of differences :math:`v_j - r` from a reference; see
    :func:`_reference`. Without it, rounding would make equal values differ. On a
    complete graph of equal weights no reference is needed: all workers get the same
    mean, and equal values at most move together, by a rounding error.

    Args:
      values: this worker's :math:`v_i`, a tree of arrays of floats.
      graph: the neighbours and the mixing weights.
      communicator: has the method `combine`.
      steps: the steps of the graph's period of which this may be one.
      step: `int32[]`, the number of steps so far.
      repair: makes the rounds. It is called for the result if some number is not
        finite; the program computes that branch only then. None leaves out differences
        that are not finite.
    """
    matrices = np.array([graph.weights_at(t).toarray() for t in steps])
    if repair is None and np.abs(matrices - 1 / graph.size).max() <= _ROUNDING:
        return _from_the_mean(values, communicator)
    rests = matrices - matrices.sum(axis=2)[:, :, None] * np.eye(graph.size)
    weights = mine(rests, communicator, place(steps, graph.period, step))
    reference, sound = _reference(values, communicator)
    moved = difference(values, reference)

    def without_the_infinite():
        ranks = jnp.arange(graph.size, dtype=jnp.int32)
        others = jnp.where(ranks == communicator.rank(), 0, weights)
        known = jax.tree.map(lambda x: jnp.isfinite(x).astype(x.dtype), moved)
        finite = jax.tree.map(_zero_if_not_finite, moved)
        sums = communicator.combine((finite, known), others)
        return jax.tree.map(lambda m, x, s, w: m * (s - w * x), known, finite, *sums)

    return jax.lax.cond(
        any_of_runs(~sound),
        repair or without_the_infinite,
        lambda: communicator.combine(moved, weights),
    )


def _reference(values: PyTree, communicator: Any) -> tuple[PyTree, jax.Array]:
    r"""What is subtracted from the values of all workers before they are multiplied.

    It is :math:`v_0` where all values are close to it, so that the result for equal
    values is exactly 0, and 0 elsewhere. No difference is then larger than
    :math:`3 |v_j|`, so that a worker's rounding errors come from its neighbours and
    itself. Had a worker that is no neighbour much larger numbers, which were subtracted
    and added again, then small second moments of Adam could become negative.

    Returns:
      The reference, the same for all workers, and `bool[]`, whether all values and
      their differences are finite.
    """

    def of_leaf(start, distance):
        close = 2 * communicator.size * distance <= jnp.abs(start)
        return jnp.where(close, start, 0)

    start = jax.tree.map(promote, communicator.broadcast(values))
    distances = jax.tree.map(jnp.abs, difference(values, start))
    distances = communicator.mean(distances)
    return jax.tree.map(of_leaf, start, distances), all_finite(distances)


def _from_the_mean(values: PyTree, communicator: Any) -> PyTree:
    """The sum on a complete graph of equal weights, in the time of an all-reduce.

    Each worker gets :math:`s - c v_i`, in which s is the sum of the finite values over
    n, and c the share of the workers that have one. Usually c is 1.
    """

    def with_shares():
        finite = jax.tree.map(_zero_if_not_finite, values)
        known = jax.tree.map(lambda x: jnp.isfinite(x).astype(x.dtype), values)
        return communicator.mean((finite, known))

    values = jax.tree.map(promote, values)
    mean = communicator.mean(values)
    broken = any_of_runs(~all_finite(mean))
    mean, share = jax.lax.cond(
        broken, with_shares, lambda: (mean, jax.tree.map(jnp.zeros_like, mean))
    )

    def moved(x, m, c):
        # A number 1 in place of an array of ones saves a third of the step's time.
        return _zero_if_not_finite(m - jnp.where(broken, c, 1) * x)

    return jax.tree.map(moved, values, mean, share)


def _zero_if_not_finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def by_loop(
    message: PyTree,
    own: PyTree,
    read: Callable[[PyTree, PyTree], PyTree],
    graph: Graph,
    communicator: Communicator,
    steps: Sequence[int],
    step: ArrayLike,
) -> PyTree:
    """Returns what :func:`by_rounds` returns if no message is lost, without weights.

    A loop makes a few rounds at a time. The arguments are those of :func:`by_rounds`.
    """
    wire = narrow(message, communicator, step)
    count = max(len(graph.rounds_at(t)) for t in steps)
    exchanges = [round_of(graph, t, r) for t in steps for r in range(count)]
    sources, weights = zip(*exchanges, strict=True)
    first = place(steps, graph.period, step) * count

    def one_round(total, r):
        received = communicator.permute_one_of(wire, sources, first + r)
        found = read(read_back(received, message), own)
        weight = mine(np.array(weights), communicator, first + r)
        part = jax.tree.map(lambda x: weight.astype(x.dtype) * x, found)
        return jax.tree.map(jnp.add, total, part), None

    nothing = jax.tree.map(jnp.zeros_like, read(own, own))
    rounds = jnp.arange(count, dtype=jnp.int32)
    return jax.lax.scan(one_round, nothing, rounds, unroll=_TOGETHER)[0]
