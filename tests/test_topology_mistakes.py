"""Graphs and weights that cannot work are refused, with the place and the remedy."""

import networkx as nx
import numpy as np
import pytest

from djax import topologies as t

SELF_LOOP = nx.Graph([(0, 1), (1, 1)])
APART = nx.Graph([(0, 1), (2, 3)])
HALF = nx.Graph([(0, 1, {"multiplicity": 1.5})])
PAIR = np.full((2, 2), 0.5)
ONE_WAY = np.array([[0.5, 0.0], [0.5, 1.0]])


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: t.ring(0), "ring: size must be an integer of at least 1, got 0"),
        (lambda: t.star(-3), "star: size .* got -3"),
        (lambda: t.complete(8.0), "complete: size .* got 8.0"),
        (lambda: t.chain("8"), "chain: size .* got '8'"),
        (lambda: t.binary_tree(None), "binary_tree: size .* got None"),
        (lambda: t.double_binary_trees(0), "double_binary_trees: size"),
        (lambda: t.exponential(0), "exponential: size"),
        (lambda: t.one_peer_exponential(0), "one_peer_exponential: size .* got 0"),
        (lambda: t.hypercube(12), "power of two, got 12; the nearest are 8 and 16"),
        (lambda: t.torus(7), r"torus: 7 workers .* ring\(7\)"),
        (lambda: t.torus(16, rows=3), "torus: 16 workers are not 3 rows"),
        (lambda: t.torus(16, rows=16), "torus: 16 workers are not 16 rows"),
        (lambda: t.torus(16, rows=1), "torus: 16 workers are not 1 rows"),
        (lambda: t.torus(16, rows=0), "torus: rows must be an integer"),
        (lambda: t.regular_tree(8, 1), "regular_tree: degree .* least 2, got 1"),
        (lambda: t.social_network(16), "has 32 workers, got size=16"),
        (lambda: t.spanning_tree(t.ring(4), 4), "root must be one of 0, ..., 3, got 4"),
    ],
)
def test_impossible_sizes(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "graph, message",
    [
        (APART, "no path leads from worker 0 to worker 2; add an edge"),
        (SELF_LOOP, "worker 1 has an edge to itself; remove it"),
        (HALF, "edge 0-1 has multiplicity 1.5"),
        (nx.Graph(), "the graph has no nodes"),
        (nx.DiGraph([(0, 1)]), r"DiGraph; .* Schedule \(from_matrices"),
        (nx.MultiGraph([(0, 1)]), "MultiGraph; .* edge attribute multiplicity"),
    ],
)
def test_impossible_graphs(graph, message):
    with pytest.raises(ValueError, match=message):
        t.from_networkx(graph)


def test_a_topology_wants_worker_numbers():
    with pytest.raises(
        ValueError, match="2 is no worker number, nodes must be 0, ..., 1"
    ):
        t.Topology(nx.Graph([(1, 2)]), PAIR)


@pytest.mark.parametrize(
    "weights, message",
    [
        ("mean", "'mean' is unknown; choose one of metropolis, uniform, lazy, best"),
        (0.5, "leaves worker 0 of degree 3 .* largest admissible weight is 0.333333"),
        (0.0, "weights=0.0 must be positive"),
        (float("nan"), "weights=nan must be positive"),
        (PAIR, r"shape \(2, 2\); 4 workers need one of \(4, 4\)"),
    ],
)
def test_impossible_rules(weights, message):
    with pytest.raises(ValueError, match=message):
        t.star(4, weights=weights)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({(0, 1): np.nan}, r"\[0, 1\] is nan; it must be finite"),
        ({(2, 2): np.inf}, r"\[2, 2\] is inf; it must be finite"),
        (
            {(0, 1): 0.4},
            r"\[0, 1\] is 0.4 but mixing_matrix\[1, 0\] is 0.25; make both",
        ),
        ({(0, 1): -0.1, (1, 0): -0.1}, r"\[0, 1\] is -0.1; .* the others of row 0"),
        ({(3, 3): -0.5}, r"\[3, 3\] is -0.5; weights may be negative only if"),
        ({(1, 3): 0.1, (3, 1): 0.1}, r"\[1, 3\] is 0.1 but workers 1 and 3 are not"),
        ({(1, 1): 0.25}, r"row 1 .* sums to 0.75, not to 1; add 0.25 to .*\[1, 1\]"),
    ],
)
def test_wrong_weights_are_named(entries, message):
    W = t.ring(4, weights=0.25).mixing_matrix.copy()
    for entry, value in entries.items():
        W[entry] = value
    with pytest.raises(ValueError, match=message):
        t.ring(4, weights=W)


@pytest.mark.parametrize(
    "matrices, message",
    [
        (np.eye(3), r"shape \(3, 3\), not \[period, n, n\]; put a single matrix"),
        (np.ones((2, 3, 4)), r"shape \(2, 3, 4\), .*; a matrix has a row and a column"),
        (np.ones((0, 3, 3)), r"shape \(0, 3, 3\), .*; a period has at least one step"),
        ([PAIR, np.eye(3)], r"matrix 0 has .* \(2, 2\), and matrix 1 has \(3, 3\)"),
        (
            [PAIR, [[0.5, 0.6], [0.5, 0.5]]],
            "column 1 of matrix 1 sums to 1.1, not to 1",
        ),
        ([[[1.5, 0.5], [-0.5, 0.5]]], r"entry \[1, 0\] of matrix 0 is -0.5"),
        ([PAIR, [[0.5, np.nan], [0.5, 0.5]]], r"entry \[0, 1\] of matrix 1 is nan"),
        ([ONE_WAY], "nothing from worker 1 ever reaches worker 0"),
        ([ONE_WAY[::-1, ::-1]], "nothing from worker 0 ever reaches worker 1"),
    ],
)
def test_wrong_schedules_are_named(matrices, message):
    with pytest.raises(ValueError, match=message):
        t.from_matrices(matrices)
