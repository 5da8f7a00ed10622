"""The edges of a worker, over all steps of a graph's period."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jax.typing import ArrayLike

from djax._interfaces import PyTree
from djax.topologies import Graph, edge_coloring


class Edges:
    """Where a mechanism keeps what belongs to an edge, at both of its ends.

    A worker has one place for each neighbour that it ever meets. On a fixed graph these
    are the rounds. Over a period the same edge may be in several rounds; then a place
    is a colour of an edge colouring of all edges together, the same at both ends.

    Attributes:
      places: number of places of a worker.
    """

    def __init__(self, graph: Graph):
        """Finds the places.

        Args:
          graph: of symmetric matrices.
        """
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

    def neighbors(self, rank: ArrayLike) -> jax.Array:
        """`int32[places]`, the neighbours of a worker; itself where it has none."""
        return jnp.asarray(self._neighbors)[:, rank]

    def neighbors_at(self, rank: ArrayLike, step: ArrayLike) -> jax.Array:
        """`int32[rounds]`, whom a worker meets in a step; itself where nobody."""
        if self._period == 1:
            return jnp.asarray(self._met[0])[:, rank]
        return jnp.asarray(self._met)[jnp.asarray(step) % self._period, :, rank]

    def sides(self) -> list[int]:
        """From which side, 0 or 1, the steps of two periods start.

        Whenever an edge is there again, it should start from the other side than
        before; if it started from one side for ever, nothing new would be found. In a
        period of an even number of steps sides that just alternate would do that to an
        edge that is there once. So the alternation is also tried with a change after
        each period, and the one is taken that leaves fewer edges at their side.
        """
        steps = range(2 * self._period)
        alternating = [t % 2 for t in steps]
        changing = [(t + t // self._period) % 2 for t in steps]
        return min(alternating, changing, key=self._repetitions)

    def _repetitions(self, sides: list[int]) -> tuple[int, int]:
        """How many edges have one side only, and how often one is repeated at all."""
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
        self, kept: PyTree, rank: ArrayLike, step: ArrayLike
    ) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        """Takes what belongs to the edges of one step.

        Args:
          kept: arrays `[places, ...]` of all edges.
          rank: the worker's.
          step: `int32[]`, number of steps so far.

        Returns:
          Arrays `[rounds, ...]`; and a function that returns all of `kept`, with such
          arrays put back to their places.
        """
        if self._period == 1:
            return kept, lambda changed: changed
        met = self.neighbors_at(rank, step)
        equal = met[:, None] == self.neighbors(rank)[None]
        # Where nobody is met there is no place: out of bounds.
        places = jnp.where(met == rank, self.places, jnp.argmax(equal, axis=1))

        def put_back(changed: PyTree) -> PyTree:
            return jax.tree.map(
                lambda all_, some: all_.at[places].set(some, mode="drop"), kept, changed
            )

        return jax.tree.map(lambda x: x.at[places].get(mode="clip"), kept), put_back


def _pairs(met: np.ndarray) -> list[Any]:
    """The pairs of workers that meet, each once."""
    workers = np.broadcast_to(np.arange(met.shape[-1]), met.shape)
    ends = np.stack([workers, met], axis=-1).reshape(-1, 2)
    return np.unique(ends[ends[:, 0] < ends[:, 1]], axis=0).tolist()
