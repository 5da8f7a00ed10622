"""Messages as rounds: full permutations of the workers."""

import networkx as nx
import numpy as np

from ._checks import TOLERANCE
from ._coloring import (
    Rounds,
    edge_coloring,
)


def messages_in_rounds(matrix: np.ndarray) -> Rounds:
    """The rounds of a matrix: matchings of the workers if it is symmetric."""
    if np.abs(matrix - matrix.T).max() > TOLERANCE:
        return permutations(matrix)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(matrix)))
    rows, columns = np.nonzero(np.triu((matrix != 0) | (matrix.T != 0), k=1))
    graph.add_edges_from(zip(rows.tolist(), columns.tolist(), strict=True))
    return edge_coloring(graph)


def permutations(matrix: np.ndarray) -> Rounds:
    """Splits the messages of a matrix into rounds.

    The bipartite graph of receivers `i` and senders `n + j` has an edge for each
    nonzero entry `[i, j]` off the diagonal. It is coloured with as many colours as the
    busiest worker has messages to send or to receive, and that is the best possible.
    """
    size = len(matrix)
    graph = nx.Graph()
    graph.add_nodes_from(range(2 * size))
    receivers, senders = np.nonzero(matrix)
    graph.add_edges_from(
        (i, size + j)
        for i, j in zip(receivers.tolist(), senders.tolist(), strict=True)
        if i != j
    )
    return tuple(_fill_up(matching[:size]) for matching in edge_coloring(graph))


def _fill_up(matching: tuple[int, ...]) -> tuple[int, ...]:
    """Turns a matching of receivers `i` with senders `n + j` into a permutation.

    Who neither receives nor sends is silent. Who only sends has to hear somebody, and
    gets one of those who only receive.
    """
    size = len(matching)
    source = [partner - size for partner in matching]
    not_sending = set(range(size)) - set(source)
    not_receiving = {i for i, sender in enumerate(source) if sender < 0}
    for i in not_sending & not_receiving:
        source[i] = i
    only_send = sorted(not_receiving - not_sending)
    only_receive = sorted(not_sending - not_receiving)
    for i, j in zip(only_send, only_receive, strict=True):
        source[i] = j
    return tuple(source)


def round_weights(matrix: np.ndarray, rounds: Rounds) -> np.ndarray:
    """The entries of the matrix, `float64[rounds, n]`, each in one round only.

    A message that fills up a permutation may be one that another round carries: the
    first round to have it counts.
    """
    rest = matrix.copy()
    np.fill_diagonal(rest, 0.0)
    weights = np.zeros((len(rounds), len(matrix)))
    workers = np.arange(len(matrix))
    for r, source in enumerate(rounds):
        weights[r] = rest[workers, source]
        rest[workers, source] = 0.0
    weights.setflags(write=False)
    return weights
