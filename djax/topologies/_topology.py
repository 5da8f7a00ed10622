"""Undirected graphs, in which neighbours give each other the same fixed weight."""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from djax import _networkx as nx
from djax._values import counted, describe, read_only

from . import _sparse
from ._plot import plot_graph
from ._rounding import numbers, rounding_of, symmetric_weights
from ._rounds import Rounds, edge_coloring, round_weights
from ._topology_checks import (
    check_graph,
    check_is_graph,
    check_mixing_matrix,
    check_shape,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from scipy.sparse import csr_array

# The eigenvalues of more workers take seconds, which is too long for a `repr`.
_LARGEST_REPR_WITH_GAP = 1024


def _dense(topology: "Topology") -> np.ndarray:
    return read_only(topology.weights.toarray())


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Topology:
    r"""The neighbours of `n` workers and their mixing weights: an immutable value.

    One step of gossip is :math:`x_i \leftarrow \sum_j w_{ij} x_j`. Since the weights
    are symmetric and doubly stochastic, the mean of the workers stays, and each step
    multiplies the distance to it by at most 1 - `spectral_gap`.

    Two topologies are equal when their names, graphs and weights are. They can be
    static arguments of `jax.jit`.

    A topology keeps the weights that are not zero. The attributes `mixing_matrix` and
    `matrices` are made when they are first asked for. They take `8 n**2` bytes: 2 GiB
    for 16,384 workers.

    Args:
      graph: a connected simple graph on the nodes `0, ..., n - 1`. The edge attribute
        `multiplicity` (1 where missing) says how often a neighbour counts. The topology
        keeps a frozen copy.
      mixing_matrix: `float64[n, n]`, symmetric and doubly stochastic. The entry
        `[i, j]` is the weight that worker `i` gives to the message of worker `j`, and 0
        where there is no edge. Weights may be negative if the spectral gap is positive.
        Weights of lower precision, whose rows sum to one up to rounding, are
        converted to float64 and made exact. The matrix may be one of scipy.sparse. The
        attribute is a read-only copy.
      name: the name that pictures and `repr` show.

    Attributes:
      weights: the mixing matrix as a read-only `scipy.sparse.csr_array`.

    Raises:
      TypeError: the graph is not a graph of networkx.
      ValueError: the graph is not connected or has an edge from a worker to itself, or
        the weights are not a doubly stochastic matrix on its edges, or never reach a
        consensus.

    Examples:
      >>> from djax import topologies
      >>> ring = topologies.ring(16)
      >>> ring
      Topology(ring, 16 workers, 16 edges, 2 rounds, spectral gap 0.0507)
      >>> ring.neighbors(0)
      (1, 15)
      >>> ring.mixing_matrix[0, :3].round(4).tolist()
      [0.3333, 0.3333, 0.0]

    .. seealso:: :func:`djax.topologies.from_networkx` makes a topology of any graph.
    """

    graph: "nx.Graph"
    mixing_matrix: np.ndarray = cached_property(_dense)  # pyrefly: ignore
    name: str = "graph"

    def __init__(
        self, graph: "nx.Graph", mixing_matrix: Any, name: str = "graph"
    ) -> None:
        """See :class:`Topology`."""
        check_is_graph("Topology", graph)
        check_graph(graph)
        weights = numbers(mixing_matrix)
        if weights is None:
            raise ValueError(
                "Topology: mixing_matrix must be a float64[n, n], got "
                f"{describe(mixing_matrix)}; from_networkx makes one of a graph"
            )
        check_shape(weights.shape, len(graph))
        rounding = rounding_of(weights)
        matrix = symmetric_weights(_sparse.as_sparse(weights), rounding)
        check_mixing_matrix(matrix, graph)
        self.weights: csr_array
        object.__setattr__(self, "graph", _frozen_copy(graph))
        object.__setattr__(self, "weights", _sparse.read_only(matrix))
        object.__setattr__(self, "name", name)

    @property
    def size(self) -> int:
        """The number of workers, `n`."""
        return len(self.graph)

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The pairs `(i, j)` of neighbours with `i < j`, in ascending order."""
        return tuple(self.graph.edges)

    def neighbors(self, i: int) -> tuple[int, ...]:
        """The workers that worker `i` exchanges messages with, in ascending order."""
        return tuple(self.graph[i])

    def multiplicity(self, i: int, j: int) -> int:
        """How often worker `j` counts as a neighbour of `i`; 0 if it is none."""
        return self.graph.get_edge_data(i, j, {"multiplicity": 0})["multiplicity"]

    @cached_property
    def rounds(self) -> Rounds:
        """The exchanges, in rounds where each worker has at most one partner.

        Each round is a full permutation of `range(n)` as a source list: worker `i`
        hears `source[i]`, or itself if it is silent. Together the rounds are an edge
        colouring, in which every pair of neighbours meets in exactly one round. There
        are at least `max_degree` rounds and at most one more.
        """
        return edge_coloring(self.graph)

    @cached_property
    def round_weights(self) -> np.ndarray:
        """`float64[rounds, n]`: the weight of what worker `i` hears in each round.

        The entry is `mixing_matrix[i, source[i]]`, and 0 where the worker is silent.
        """
        return round_weights(self.weights, self.rounds)

    # The attributes up to `doubly_stochastic` are those that a Schedule has as well.

    @property
    def period(self) -> int:
        """1: the weights are the same in every step."""
        return 1

    @property
    def matrices(self) -> np.ndarray:
        """`float64[1, n, n]`: the mixing matrix of each step of the period."""
        return self.mixing_matrix[np.newaxis]

    def weights_at(self, t: int) -> "csr_array":
        """The mixing matrix of step `t` as a sparse matrix: see `weights`."""
        del t
        return self.weights

    def rounds_at(self, t: int) -> Rounds:
        """The rounds of step `t`, which are those of every step: see `rounds`."""
        del t
        return self.rounds

    def round_weights_at(self, t: int) -> np.ndarray:
        """The weights in the rounds of step `t`: see `round_weights`."""
        del t
        return self.round_weights

    @property
    def symmetric(self) -> bool:
        """True: neighbours give each other the same weight."""
        return True

    @property
    def doubly_stochastic(self) -> bool:
        """True: rows and columns of the mixing matrix sum to one."""
        return True

    @property
    def max_degree(self) -> int:
        """The largest number of neighbours, each counted once."""
        return max(degree for _, degree in self.graph.degree)

    @property
    def is_tree(self) -> bool:
        """Whether exactly one path connects any two workers."""
        return len(self.edges) == self.size - 1

    @cached_property
    def distances(self) -> np.ndarray:
        """`int64[n, n]`: the number of hops between any two workers."""
        lengths = dict(nx.all_pairs_shortest_path_length(self.graph))
        workers = range(self.size)
        return read_only(np.array([[lengths[i][j] for j in workers] for i in workers]))

    @cached_property
    def diameter(self) -> int:
        """The largest number of hops between two workers."""
        return nx.diameter(self.graph)

    @cached_property
    def _eigenvalues(self) -> tuple[float, float]:
        if self.size == 1:
            return 0.0, 1.0
        return _sparse.extreme_eigenvalues(self.weights)

    @property
    def lambda_2(self) -> float:
        """The second largest eigenvalue of the mixing matrix; 0 for one worker."""
        return self._eigenvalues[0]

    @property
    def lambda_min(self) -> float:
        """The smallest eigenvalue of the mixing matrix."""
        return self._eigenvalues[1]

    @property
    def spectral_gap(self) -> float:
        """1 - the second largest modulus of an eigenvalue; 1 for one worker."""
        return 1.0 if self.size == 1 else 1.0 - max(map(abs, self._eigenvalues))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws the graph with matplotlib; the widths of edges show their weights.

        Args:
          ax: where to draw; by default new axes.

        Returns:
          The axes.
        """
        title = f"{self.name}, {self.size} workers"
        widths = np.abs(_sparse.entries(self.weights, *self._ends))
        return plot_graph(self.graph, widths, title, ax)

    @property
    def _ends(self) -> np.ndarray:
        return np.array(self.edges, np.int64).reshape(-1, 2).T

    @cached_property
    def _links(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(self.graph.edges.data("multiplicity"))

    @cached_property
    def _hash(self) -> int:
        # The hash leaves the weights out, since few graphs occur with several weights.
        return hash((self.name, self.size, self._links))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles make the value anew. Otherwise arrays would lose their
        # write protection, and another process would get a hash that is wrong there,
        # since hashes of strings differ between processes.
        return type(self), (nx.Graph(self.graph), self.weights, self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topology):
            return NotImplemented
        return self is other or (
            self.name == other.name
            and self._links == other._links
            and _sparse.equal(self.weights, other.weights)
        )

    def __repr__(self) -> str:
        parts = [
            self.name,
            counted(self.size, "worker"),
            counted(len(self.edges), "edge"),
            counted(len(self.rounds), "round"),
        ]
        if self.size <= _LARGEST_REPR_WITH_GAP:
            parts.append(f"spectral gap {self.spectral_gap:.3g}")
        return f"Topology({', '.join(parts)})"


def _frozen_copy(graph: "nx.Graph") -> "nx.Graph":
    """Copies a graph with all nodes, edges and neighbours in ascending order."""
    copy = nx.empty_graph(len(graph))
    edges = graph.edges.data("multiplicity", default=1)
    for i, j, multiplicity in sorted((min(i, j), max(i, j), m) for i, j, m in edges):
        # Nodes such as 1.0 are equal to workers' numbers, but cannot index arrays.
        copy.add_edge(int(i), int(j), multiplicity=int(multiplicity))
    return nx.freeze(copy)
