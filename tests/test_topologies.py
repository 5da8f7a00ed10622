"""Undirected graphs, their weights and their rounds."""

from unittest import mock

import hypothesis.strategies as st
import networkx as nx
import numpy as np
import pytest
from hypothesis import given

from djax import topologies
from djax.topologies import _rounds


def multiplicities(topology):
    indices = range(topology.size)
    return np.array([[topology.multiplicity(i, j) for j in indices] for i in indices])


def check_topology(topology):
    """All that holds for every topology."""
    W, size = topology.mixing_matrix, topology.size
    assert W.dtype == np.float64 and W.shape == (size, size)
    np.testing.assert_array_equal(W, W.T)
    np.testing.assert_allclose(W.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert (W >= 0).all()
    linked = multiplicities(topology) > 0
    np.testing.assert_array_equal(W * ~linked, np.diag(np.diag(W)))
    assert topology.edges == tuple(zip(*np.nonzero(np.triu(linked)), strict=True))
    for i in range(size):
        assert topology.neighbors(i) == tuple(np.flatnonzero(linked[i]))
    check_rounds(topology)


def check_rounds(topology):
    size, degree = topology.size, topology.max_degree
    met = []
    for source in topology.rounds:
        assert sorted(source) == list(range(size))
        assert [source[j] for j in source] == list(range(size))
        met += [(i, j) for i, j in enumerate(source) if i < j]
    assert sorted(met) == list(topology.edges)
    bipartite = nx.is_bipartite(topology.graph)
    assert degree <= len(topology.rounds) <= degree + (not bipartite)
    mixed = np.diag(np.diag(topology.mixing_matrix))
    for source, weights in zip(topology.rounds, topology.round_weights, strict=True):
        mixed += np.diag(weights) @ np.eye(size)[list(source)]
    np.testing.assert_array_equal(mixed, topology.mixing_matrix)


@st.composite
def connected_graphs(draw):
    size = draw(st.integers(1, 12))
    tree = [(draw(st.integers(0, i - 1)), i) for i in range(1, size)]
    pairs = [(i, j) for j in range(size) for i in range(j)]
    more = draw(st.lists(st.sampled_from(pairs))) if pairs else []
    graph = nx.Graph()
    graph.add_nodes_from(range(size))
    for edge in tree + more:
        graph.add_edge(*edge, multiplicity=draw(st.integers(1, 3)))
    return graph


# The graphs.


@pytest.mark.parametrize("name", topologies.BUILDERS)
def test_every_builder_takes_a_number_of_workers(name):
    topology = getattr(topologies, name)(32)
    assert topology.size == 32
    assert topology.name == name
    check_topology(topology)


@pytest.mark.parametrize("name", topologies.BUILDERS)
def test_every_builder_takes_weights(name):
    topology = getattr(topologies, name)(32, weights="lazy")
    check_topology(topology)
    assert topology.lambda_min > -1e-12


@pytest.mark.parametrize("name", sorted({*topologies.BUILDERS} - {"social_network"}))
def test_one_worker_alone(name):
    topology = getattr(topologies, name)(1)
    check_topology(topology)
    assert topology.mixing_matrix.tolist() == [[1.0]]
    assert topology.edges == topology.rounds == topology.neighbors(0) == ()
    assert topology.round_weights.shape == (0, 1)
    assert (topology.lambda_2, topology.lambda_min, topology.spectral_gap) == (0, 1, 1)
    assert topology.is_tree and topology.diameter == topology.max_degree == 0
    assert repr(topology) == (
        f"Topology({name}, 1 worker, 0 edges, 0 rounds, spectral gap 1)"
    )


@pytest.mark.parametrize("name", ["ring", "chain", "star", "complete", "hypercube"])
def test_two_workers_have_one_edge(name):
    topology = getattr(topologies, name)(2)
    assert topology.rounds == ((1, 0),)
    assert topology.mixing_matrix.tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("size", range(1, 20))
@pytest.mark.parametrize(
    "builder",
    [
        topologies.ring,
        topologies.chain,
        topologies.star,
        topologies.complete,
        topologies.exponential,
        topologies.binary_tree,
        topologies.regular_tree,
        lambda size: topologies.double_binary_trees(size)[1],
    ],
)
def test_builders_of_any_size(builder, size):
    check_topology(builder(size))


@pytest.mark.parametrize("size, rows", [(12, 3), (12, 4), (15, 3), (20, 10), (8, 2)])
def test_torus_is_a_product_of_two_rings(size, rows):
    torus = topologies.torus(size, rows)
    columns = size // rows
    # As powergossip's matrix: a neighbour on both sides has its weight twice.
    W = np.eye(size)
    for i in range(size):
        for step in (1, -1):
            W[i, i // columns * columns + (i + step) % columns] += 1
            W[i, (i + step * columns) % size] += 1
    np.testing.assert_allclose(torus.mixing_matrix, W / 5, rtol=0, atol=1e-15)
    check_topology(torus)


def test_torus_is_as_square_as_possible():
    assert topologies.torus(36) == topologies.torus(36, rows=6)
    assert topologies.torus(32) == topologies.torus(32, rows=8)
    assert topologies.torus(10) == topologies.torus(10, rows=5)


def test_exponential_of_other_sizes():
    assert topologies.exponential(12).neighbors(0) == (1, 2, 4, 8, 10, 11)
    assert topologies.exponential(6).neighbors(0) == (1, 2, 4, 5)
    assert topologies.exponential(3).edges == topologies.ring(3).edges
    assert topologies.exponential(2).multiplicity(0, 1) == 2


def test_antipodes_have_twice_the_weight():
    exponential = topologies.exponential(8)
    assert exponential.multiplicity(1, 5) == exponential.multiplicity(5, 1) == 2
    assert exponential.multiplicity(1, 2) == 1
    assert exponential.multiplicity(1, 4) == exponential.multiplicity(1, 1) == 0
    np.testing.assert_allclose(
        exponential.mixing_matrix[1, [1, 2, 5]], [1 / 7, 1 / 7, 2 / 7]
    )
    assert exponential.max_degree == len(exponential.rounds) == 5


def test_double_binary_trees_share_the_load():
    pair = topologies.double_binary_trees(16)
    load = [sum(len(tree.neighbors(i)) for tree in pair) for i in range(16)]
    assert load == [2] + [4] * 14 + [2]


@pytest.mark.parametrize("degree", [2, 3, 4, 5])
def test_regular_tree_has_inner_workers_of_one_degree(degree):
    tree = topologies.regular_tree(1 + degree + degree * (degree - 1), degree)
    assert {len(tree.neighbors(i)) for i in range(tree.size)} == {1, degree}
    assert tree.is_tree and tree.diameter == 4


def test_spanning_tree_keeps_the_distances_to_the_root():
    torus = topologies.torus(30)
    tree = topologies.spanning_tree(torus, 7)
    hops = nx.single_source_shortest_path_length
    assert hops(tree.graph, 7) == hops(torus.graph, 7)
    assert tree.is_tree
    assert topologies.spanning_tree(topologies.exponential(4)).multiplicity(0, 2) == 1


@given(connected_graphs())
def test_spanning_tree_has_the_smallest_shortest_paths(graph):
    tree = topologies.spanning_tree(topologies.from_networkx(graph), 0)
    for i in graph:
        smallest = min(nx.all_shortest_paths(graph, 0, i))
        assert nx.shortest_path(tree.graph, 0, i) == smallest


# Any graph, weights and rounds.


@given(connected_graphs(), st.sampled_from(["metropolis", "uniform", "lazy"]))
def test_any_graph_mixes_in_rounds(graph, weights):
    topology = topologies.from_networkx(graph, weights=weights)
    check_topology(topology)
    assert topology.lambda_2 < 1 - 1e-9
    assert topology.is_tree == nx.is_tree(graph)


@given(connected_graphs())
def test_weights_follow_their_definition(graph):
    def weights(rule):
        return topologies.from_networkx(graph, weights=rule).mixing_matrix

    degree = dict(graph.degree(weight="multiplicity"))
    metropolis, uniform, lazy = map(weights, ("metropolis", "uniform", "lazy"))
    for i, j, m in graph.edges.data("multiplicity"):
        assert metropolis[i, j] == m / (1 + max(degree[i], degree[j]))
        assert uniform[i, j] == m / (1 + max(degree.values()))
        assert lazy[i, j] == metropolis[i, j] / 2
    large = 0.99 / max(1, *degree.values())  # With 1 the workers might only swap.
    constant = weights(large)
    for i, j, m in graph.edges.data("multiplicity"):
        assert constant[i, j] == m * large
    assert (constant >= 0).all()


@given(connected_graphs(), st.randoms())
def test_equal_graphs_are_equal_topologies(graph, random):
    shuffled = nx.Graph()
    nodes = list(graph)
    random.shuffle(nodes)
    shuffled.add_nodes_from(nodes)
    edges = [(j, i, data) for i, j, data in graph.edges.data()]
    random.shuffle(edges)
    shuffled.add_edges_from(edges)
    one, other = map(topologies.from_networkx, (graph, shuffled))
    assert one == other and hash(one) == hash(other)
    assert one.rounds == other.rounds


@pytest.mark.parametrize(
    "graph, rounds",
    [
        (nx.cycle_graph(16), 2),
        (nx.cycle_graph(15), 3),
        (nx.complete_graph(16), 15),
        (nx.complete_graph(15), 15),
        (nx.complete_bipartite_graph(5, 9), 9),
        (nx.petersen_graph(), 4),
        (nx.circular_ladder_graph(5), 3),
        (nx.complement(nx.cycle_graph(12)), 9),
        (nx.random_regular_graph(3, 100, seed=0), 3),
        (nx.random_regular_graph(8, 200, seed=1), 8),
        (nx.random_regular_graph(8, 75, seed=2), 9),
        (nx.barbell_graph(5, 0), 5),
    ],
)
def test_few_rounds(graph, rounds):
    topology = topologies.from_networkx(graph)
    check_rounds(topology)
    assert len(topology.rounds) == rounds


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_exponential_needs_no_more_rounds_than_neighbors(size):
    exponential = topologies.exponential(size)
    assert len(exponential.rounds) == exponential.max_degree


def test_from_networkx_numbers_strange_nodes_in_sorted_order():
    graph = nx.Graph([("c", "a"), ("a", "b")])
    assert topologies.from_networkx(graph).edges == ((0, 1), (0, 2))
    swapped = nx.Graph([(2, 0), (0, 1)])
    assert topologies.from_networkx(swapped).edges == ((0, 1), (0, 2))
    graph["a"]["b"]["multiplicity"] = 3
    assert topologies.from_networkx(graph).multiplicity(0, 1) == 3


def test_an_array_is_the_mixing_matrix():
    W = np.array([[0.5, 0.5, 0.0], [0.5, 0.3, 0.2], [0.0, 0.2, 0.8]])
    topology = topologies.chain(3, weights=W)
    np.testing.assert_array_equal(topology.mixing_matrix, W)
    W[0] = np.nan
    assert topology.mixing_matrix[0, 0] == 0.5


@given(connected_graphs())
def test_fans_alone_need_at_most_one_more_round(graph):
    with mock.patch.object(_rounds, "_MOVES", 0):
        rounds = topologies.edge_coloring(graph)
    partners = [{source[i] for source in rounds} - {i} for i in graph]
    assert partners == [set(graph[i]) for i in graph]
    assert sum(i < j for source in rounds for i, j in enumerate(source)) == graph.size()
    assert len(rounds) <= 1 + max(degree for _, degree in graph.degree)
