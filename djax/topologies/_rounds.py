"""Rounds: which messages can travel at the same time.

A worker exchanges with one partner at a time. The messages of a step are therefore
split into rounds, in which each worker sends to at most one worker and hears at most
one. That is an edge colouring: edges of one colour share no node.

Every edge is coloured in turn. If no colour is free at both ends of the edge, a *Kempe
chain* is recoloured to free one: a maximal path whose edges alternate between two
colours.
"""

import random
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

import numpy as np

from djax import _networkx as nx
from djax._values import read_only

from ._sparse import as_sparse, entries, positions, size_of
from ._topology_checks import TOLERANCE

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Rounds = tuple[tuple[int, ...], ...]

# If no Kempe chain gives an edge a colour, the edge takes the colour of another edge,
# which has to be coloured in its place. This is the largest number of such moves.
_MOVES = 100


def edge_coloring(graph: "nx.Graph") -> Rounds:
    r"""Splits the edges of a graph into few matchings.

    With :math:`\Delta` the largest number of neighbours, there are

    * :math:`\Delta` rounds on bipartite graphs (König): trees, even rings, hypercubes;
    * :math:`\Delta` on complete graphs of even size, :math:`\Delta + 1` of odd size;
    * :math:`\Delta` on most other graphs, where a bounded search finds the colours;
    * never more than :math:`\Delta + 1` (Vizing, by the method of Misra and Gries).

    Args:
      graph: a simple graph on the nodes `0, ..., n - 1`.

    Returns:
      The rounds. Each is a full permutation of `range(n)` as a source list, in which
      node `i` hears `source[i]`, and `source[i] == i` says that it is silent. Each edge
      is in exactly one round. Equal graphs have equal rounds.

    Examples:
      >>> import networkx as nx
      >>> from djax import topologies
      >>> topologies.edge_coloring(nx.path_graph(4))
      ((1, 0, 3, 2), (0, 2, 1, 3))

    References:
      König, `Über Graphen und ihre Anwendung auf Determinantentheorie und Mengenlehre
      <https://doi.org/10.1007/BF01456961>`_, 1916

      Misra and Gries, `A constructive proof of Vizing's theorem
      <https://doi.org/10.1016/0020-0190(92)90041-S>`_, 1992
    """
    size = len(graph)
    edges = sorted((min(edge), max(edge)) for edge in graph.edges)
    if len(edges) == size * (size - 1) // 2:
        return _round_robin(size)
    max_degree = max(degree for _, degree in graph.degree)
    # A matching has at most size // 2 edges, so that max_degree matchings may be too
    # few for all edges.
    if len(edges) <= max_degree * (size // 2):
        coloring = _PartialColoring(size, max_degree)
        generator = random.Random(0)
        if all(_color_by_search(coloring, *edge, generator) for edge in edges):
            return coloring.rounds()
    coloring = _PartialColoring(size, max_degree + 1)
    for edge in edges:
        _color_by_fan(coloring, *edge)
    return coloring.rounds()


def rounds_of(matrix: "csr_array") -> Rounds:
    """The rounds that carry the messages of one step.

    Args:
      matrix: `float64[n, n]`: the entry `[i, j]` is not zero where `j` sends to `i`.

    Returns:
      An edge colouring if the matrix is symmetric, so that partners hear each other.
      Other matrices take as many rounds as the busiest worker has messages to send or
      to receive.
    """
    size = size_of(matrix)
    receivers, senders = positions(matrix)
    pairs = zip(receivers.tolist(), senders.tolist(), strict=True)
    messages = {(i, j) for i, j in pairs if i != j}
    symmetric = np.abs((matrix - matrix.T).data).max(initial=0.0) <= TOLERANCE
    if symmetric:
        messages |= {(j, i) for i, j in messages}
    ends = [set(end) for end in zip(*messages, strict=True)]
    if messages and all(len(end) == len(messages) for end in ends):
        # One round is enough. It is the one that a colouring would find.
        source = list(range(size)) if symmetric else [-1] * size
        for i, j in messages:
            source[i] = j
        return (tuple(source) if symmetric else _fill_up(source),)
    if symmetric:
        graph = nx.empty_graph(size)
        graph.add_edges_from(messages)
        return edge_coloring(graph)
    # In the bipartite graph of receivers i and senders n + j each message is an edge.
    graph = nx.empty_graph(2 * size)
    graph.add_edges_from((i, size + j) for i, j in messages)
    return tuple(
        _fill_up([partner - size for partner in matching[:size]])
        for matching in edge_coloring(graph)
    )


def _fill_up(source: list[int]) -> tuple[int, ...]:
    """Makes a permutation of whom each worker hears, below 0 if it hears no worker.

    Workers that neither receive nor send are silent. In a permutation every
    worker hears some worker: those that only send are given those that only receive.
    """
    size = len(source)
    not_sending = set(range(size)) - set(source)
    not_receiving = {i for i, sender in enumerate(source) if sender < 0}
    for i in not_sending & not_receiving:
        source[i] = i
    only_send = sorted(not_receiving - not_sending)
    only_receive = sorted(not_sending - not_receiving)
    for i, j in zip(only_send, only_receive, strict=True):
        source[i] = j
    return tuple(source)


def round_weights(matrix: Any, rounds: Rounds) -> np.ndarray:
    """The entries of a matrix in the rounds that carry its messages.

    A permutation may contain pairs only to be complete, and such a pair may also be a
    message of another round. The first of these rounds then has the weight of the
    message, and the others have the weight 0.

    Args:
      matrix: `float64[n, n]`, the weights of the messages, as an array or sparse.
      rounds: the rounds, from :func:`rounds_of`.

    Returns:
      `float64[rounds, n]`, read-only.
    """
    size = matrix.shape[0]
    sources = np.array(rounds, np.int64).reshape(len(rounds), size)
    workers = np.broadcast_to(np.arange(size), sources.shape)
    found = entries(as_sparse(matrix), workers, sources)
    first = np.unique(workers * size + sources, return_index=True)[1]
    weights = np.zeros(sources.size)
    weights[first] = found.ravel()[first]
    return read_only(np.where(sources == workers, 0.0, weights.reshape(sources.shape)))


def _round_robin(size: int) -> Rounds:
    """All pairs of nodes in the fewest rounds, by the circle method.

    In round `r` those nodes meet whose numbers add up to `2 r`, modulo the number of
    nodes on the circle. With an odd size all nodes are on the circle, and node `r`,
    which would meet itself, is silent. With an even size the last node stays outside
    the circle, and meets node `r`.
    """
    circle = size - 1 if size % 2 == 0 else size
    rounds = []
    for r in range(circle if size > 1 else 0):
        source = [(2 * r - i) % circle for i in range(circle)]
        if circle < size:
            source[r] = circle
            source.append(r)
        rounds.append(tuple(source))
    return tuple(rounds)


class _PartialColoring:
    """A proper colouring of some edges: `partner[node][color]` is a neighbour."""

    def __init__(self, size: int, colors: int) -> None:
        self.colors = range(colors)
        self.partner: list[dict[int, int]] = [{} for _ in range(size)]

    def free(self, *nodes: int) -> list[int]:
        """The colours that no edge of these nodes has, in ascending order."""
        used = set().union(*(self.partner[node] for node in nodes))
        return [color for color in self.colors if color not in used]

    def color(self, a: int, b: int) -> int:
        """The colour of an edge that has one."""
        return next(color for color, other in self.partner[a].items() if other == b)

    def paint(self, a: int, b: int, color: int) -> None:
        """Gives a colour to an edge that has none."""
        self.partner[a][color], self.partner[b][color] = b, a

    def erase(self, a: int, b: int, color: int) -> None:
        """Takes the colour of an edge away."""
        del self.partner[a][color], self.partner[b][color]

    def chain(self, node: int | None, first: int, second: int) -> list[int]:
        """The path from a node over edges `first, second, first, ...`, to its end.

        The node must have no edge of colour `second`. The path is then no cycle, and
        begins at the node.
        """
        path = []
        while node is not None:
            path.append(node)
            node = self.partner[node].get(first)
            first, second = second, first
        return path

    def swap(self, path: list[int], first: int, second: int) -> None:
        """Exchanges the two colours of a chain."""
        edges = list(zip(path, path[1:], strict=False))
        for edge, old in zip(edges, cycle((first, second)), strict=False):
            self.erase(*edge, old)
        for edge, new in zip(edges, cycle((second, first)), strict=False):
            self.paint(*edge, new)

    def rounds(self) -> Rounds:
        """One source list for each colour that some edge has."""
        silent = list(range(len(self.partner)))
        rounds = [silent.copy() for _ in self.colors]
        for node, partner in enumerate(self.partner):
            for color, other in partner.items():
                rounds[color][node] = other
        return tuple(tuple(source) for source in rounds if source != silent)


def _color_by_chain(coloring: _PartialColoring, a: int, b: int) -> bool:
    """Colours an edge if one chain is enough: on bipartite graphs it always is."""
    if common := coloring.free(a, b):
        coloring.paint(a, b, common[0])
        return True
    for first, second in product(coloring.free(a), coloring.free(b)):
        path = coloring.chain(b, first, second)
        if path[-1] != a:
            coloring.swap(path, first, second)
            coloring.paint(a, b, first)
            return True
    return False


def _color_by_search(
    coloring: _PartialColoring, a: int, b: int, generator: random.Random
) -> bool:
    """Colours an edge by chains, and takes colours from other edges if it has to.

    While no chain helps, one is recoloured at random. The edge then takes its colour
    from another edge of `a`, and the search goes on with that edge.
    """
    for _ in range(_MOVES):
        if _color_by_chain(coloring, a, b):
            return True
        free = generator.choice(coloring.free(b))
        other = generator.choice(coloring.colors)
        if other != free:
            coloring.swap(coloring.chain(b, other, free), other, free)
        color = generator.choice(coloring.free(b))
        third = coloring.partner[a].get(color)
        if third is not None:
            coloring.erase(a, third, color)
            coloring.paint(a, b, color)
            b = third
    return False


def _color_by_fan(coloring: _PartialColoring, center: int, leaf: int) -> None:
    """Colours an edge with one colour more than the largest degree (Misra and Gries).

    A fan is a list of neighbours of the center. The colour of each neighbour's edge to
    the center is free at the neighbour before it, so that all of these colours can move
    one place towards the first neighbour.
    """
    partner = coloring.partner
    fan = [leaf]
    while more := [
        partner[center][color]
        for color in coloring.free(fan[-1])
        if color in partner[center] and partner[center][color] not in fan
    ]:
        fan.append(more[0])
    color, spare = coloring.free(fan[-1])[0], coloring.free(center)[0]
    coloring.swap(coloring.chain(center, color, spare), color, spare)
    # Now `color` is free at the center. If the chain has recoloured an edge of the fan,
    # then `color` is still free at the member before that edge, or else at the last.
    end = next(k for k, member in enumerate(fan) if color not in partner[member])
    for here, there in zip(fan[:end], fan[1:], strict=False):
        moved = coloring.color(center, there)
        coloring.erase(center, there, moved)
        coloring.paint(center, here, moved)
    coloring.paint(center, fan[end], color)
