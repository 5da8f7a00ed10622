"""What a worker does for each of its edges: it keeps, draws and exchanges factors.

PowerGossip keeps two factors for every edge, which are the same at both of its ends. On
a graph that changes with time, a worker meets its neighbours in different steps. The
worker then has to find the factors of this step's edges among the factors of all edges.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from djax import _networkx as nx
from djax import mixing
from djax._arrays.divided import are_divided
from djax._arrays.split import split, unravel
from djax._interfaces import Communicator, PyTree
from djax.topologies import Graph, edge_coloring

from .rows import Kind, Layout, Rows, joined


class Edges:
    """The edges at which one worker meets its neighbours.

    A worker has one place for each of its neighbours. On a fixed graph the places are
    the rounds. On a graph that changes with time an edge may be in several rounds of a
    period. A place then is a colour of an edge colouring of the edges of all steps
    together, which is the same at both ends of an edge.

    Attributes:
      places: the number of places of a worker.
    """

    def __init__(self, graph: Graph, communicator: Communicator, seed: jax.Array):
        """Finds the places.

        Args:
          graph: the graph; its matrices are symmetric.
          communicator: how messages travel.
          seed: the PRNG key of all draws, the same on all workers.
        """
        self._graph, self._communicator, self._seed = graph, communicator, seed
        self._period, size = graph.period, graph.size
        rounds = [graph.rounds_at(t) for t in range(graph.period)]
        count = max(map(len, rounds))
        silent = tuple(range(size))
        self._met = np.array(
            [[*each, *[silent] * (count - len(each))] for each in rounds], np.int32
        ).reshape(graph.period, count, size)
        if graph.period == 1:
            self._neighbors = self._met[0]
        else:
            together = nx.empty_graph(size)
            together.add_edges_from(_pairs(self._met))
            self._neighbors = np.array(edge_coloring(together), np.int32)
        self._neighbors = self._neighbors.reshape(-1, size)
        self.places = len(self._neighbors)

    def neighbors(self) -> jax.Array:
        """Returns the neighbours at this worker's places.

        Returns:
          `int32[places]`; the worker itself at places without a neighbour.
        """
        return jnp.asarray(self._neighbors)[:, self._communicator.rank()]

    def neighbors_at(self, step: ArrayLike) -> jax.Array:
        """Returns the workers that this worker meets in the rounds of a step.

        Returns:
          `int32[rounds]`; the worker itself in rounds in which it meets nobody.
        """
        rank = self._communicator.rank()
        if self._period == 1:
            return jnp.asarray(self._met[0])[:, rank]
        return jnp.asarray(self._met)[jnp.asarray(step) % self._period, :, rank]

    def sides(self) -> list[int]:
        """Returns the side, 0 or 1, from which each step of two periods starts.

        A power iteration needs both sides of an edge in turn: if it always started from
        the same side, the factors would not change. If the sides alternate from step to
        step, and the number of steps in a period is even, an edge that occurs once in a
        period always starts from the same side. Two orders are therefore compared: one
        that alternates, and one that also changes after each period. The order in which
        fewer edges repeat their side is chosen.
        """
        steps = range(2 * self._period)
        alternating = [t % 2 for t in steps]
        changing = [(t + t // self._period) % 2 for t in steps]
        return min(alternating, changing, key=self._repetitions)

    def _repetitions(self, sides: list[int]) -> tuple[int, int]:
        """Counts the edges that always have one side, and the repetitions of a side."""
        met: dict[tuple[int, int], list[int]] = {}
        for t, side in enumerate(sides):
            for edge in _pairs(self._met[t % self._period]):
                met.setdefault(tuple(edge), []).append(side)
        found = list(met.values())
        stuck = sum(len(set(each)) == 1 for each in found)
        repeated = sum(
            a == b
            for each in found
            for a, b in zip(each, each[1:] + each[:1], strict=True)
        )
        return stuck, repeated

    def of_step(
        self, kept: PyTree, step: ArrayLike
    ) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        """Selects what belongs to the edges of one step.

        Args:
          kept: a tree of arrays `[places, ...]` of all edges.
          step: `int32[]`, number of steps so far.

        Returns:
          A tree of arrays `[rounds, ...]`; and a function that takes such a tree, and
          returns all of `kept` with its arrays in their places.
        """
        if self._period == 1:
            return kept, lambda changed: changed
        met = self.neighbors_at(step)
        equal = met[:, None] == self.neighbors()[None]
        # In a round without a neighbour the place is out of bounds.
        places = jnp.where(
            met == self._communicator.rank(), self.places, jnp.argmax(equal, axis=1)
        )

        def put_back(changed: PyTree) -> PyTree:
            return jax.tree.map(
                lambda all_, some: all_.at[places].set(some, mode="drop"), kept, changed
            )

        return jax.tree.map(lambda x: x.at[places].get(mode="clip"), kept), put_back

    def random_factors(
        self,
        shapes: Mapping[Any, jax.ShapeDtypeStruct],
        number: ArrayLike,
        neighbors: jax.Array,
    ) -> dict[Any, jax.Array]:
        """Draws normally distributed rows for each edge, the same at both of its ends.

        A draw takes long to compile, so that there is a single one for all factors of a
        dtype.

        Args:
          shapes: the shapes and dtypes of the factors of one edge, float32 or wider,
            under names of any kind.
          number: `int32[]`, the number of the iteration that draws them, 0 in `init`.
          neighbors: `int32[edges]`, the other ends of this worker's edges.

        Returns:
          The factors under the same names, each with a leading axis of edges.
        """
        me = self._communicator.rank()
        low, high = jnp.minimum(me, neighbors), jnp.maximum(me, neighbors)
        numbers = low * self._graph.size + high
        now, drawn = jax.random.fold_in(self._seed, number), {}
        for dtype in dict.fromkeys(x.dtype for x in shapes.values()):
            some = {name: x for name, x in shapes.items() if x.dtype == dtype}
            sizes = [x.size for x in some.values()]
            key = jax.random.fold_in(now, jnp.finfo(dtype).bits)
            flat = _normal(key, numbers, sum(sizes), dtype)
            parts = split(flat, sizes, axis=1)
            for (name, x), part in zip(some.items(), parts, strict=True):
                drawn[name] = part.reshape(-1, *x.shape)
        return drawn

    def random_rows(
        self, layouts: Mapping[Kind, Layout], number: ArrayLike, step: ArrayLike
    ) -> Rows:
        """Draws new factors of one side for each edge of a step.

        Args:
          layouts: where the factors of each kind are.
          number: `int32[]`, the number of the iteration that draws them.
          step: `int32[]`, number of steps so far.
        """
        shapes = {}
        for layout in layouts.values():
            shapes |= layout.factors
        shapes = dict(sorted(shapes.items()))
        drawn = self.random_factors(shapes, number, self.neighbors_at(step))
        return joined(drawn, layouts)

    def signs(self, step: ArrayLike) -> jax.Array:
        """`int32[rounds]`: 1 where the neighbour has the higher rank, -1 elsewhere."""
        return jnp.where(self.neighbors_at(step) > self._communicator.rank(), 1, -1)

    def differences(
        self,
        products: Mapping[Any, jax.Array],
        vectors: list[jax.Array],
        step: ArrayLike,
    ) -> tuple[dict[Any, jax.Array], list[jax.Array], jax.Array]:
        """Exchanges one message with each neighbour of a step.

        Args:
          products: arrays `[rounds, ...]` with a part for the neighbour of each round.
          vectors: arrays that are sent to all neighbours.
          step: `int32[]`, number of steps so far.

        Returns:
          The products and the vectors of the neighbours minus those of this worker,
          `[rounds, ...]`; and the weights of the neighbours, `float[rounds]`.
        """

        def parts(r):
            return {name: product[r] for name, product in products.items()}, vectors

        # Vectors that are divided among devices travel by themselves, since to join
        # them with others would gather them.
        apart = are_divided()

        def message(r):
            products, vectors = parts(r)
            together = jax.tree.leaves(products if apart else (products, vectors))
            return _joined(together), vectors if apart else []

        differences, weights = [], []
        for r, heard in enumerate(
            mixing.exchange(message, self._graph, self._communicator, step=step)
        ):
            mine, treedef = jax.tree.flatten(parts(r))
            joined, others = jax.tree.map(jnp.subtract, heard.message, heard.own)
            found = unravel(joined, mine[: len(mine) - len(others)]) + others
            found = [x.astype(y.dtype) for x, y in zip(found, mine, strict=True)]
            differences.append(treedef.unflatten(found))
            weights.append(heard.weight)
        stacked = jax.tree.map(lambda *rounds: jnp.stack(rounds), *differences)
        return *stacked, jnp.stack(weights)


def _pairs(met: np.ndarray) -> list[Any]:
    """Lists the pairs of workers that meet, each pair once."""
    workers = np.broadcast_to(np.arange(met.shape[-1]), met.shape)
    ends = np.stack([workers, met], axis=-1).reshape(-1, 2)
    return np.unique(ends[ends[:, 0] < ends[:, 1]], axis=0).tolist()


def _normal(key: jax.Array, edges: jax.Array, count: int, dtype: Any) -> jax.Array:
    """Draws normally distributed numbers for each of the edges, `[edges, count]`."""

    def draw(edge):
        return jax.random.normal(jax.random.fold_in(key, edge), (count,), dtype)

    # XLA fuses an elementwise computation into everything that uses a part of it, and
    # compiles and computes it once for each use. A loop of two iterations or more
    # prevents that.
    looped = jnp.repeat(edges, 2) if edges.size == 1 else edges
    return jax.lax.map(draw, looped)[: edges.size]


def _joined(leaves: Sequence[jax.Array]) -> jax.Array:
    """Joins arrays to one vector, in the widest of their dtypes."""
    dtypes = [jnp.dtype("float32"), *(x.dtype for x in leaves)]
    dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    flat = [jnp.zeros(0, dtype), *(x.astype(dtype).ravel() for x in leaves)]
    return jnp.concatenate(flat)
