"""Graphs keep the weights that are not zero."""

import pickle

import networkx as nx
import numpy as np
import pytest
import scipy.sparse

from djax import topologies

MANY = 600  # More workers than those whose eigenvalues are all computed.


def test_a_large_ring_has_no_dense_matrix():
    ring = topologies.ring(16384)
    assert len(ring.rounds) == 2
    assert ring.round_weights.shape == (2, 16384)
    assert repr(ring) == "Topology(ring, 16384 workers, 16384 edges, 2 rounds)"
    assert pickle.loads(pickle.dumps(ring)) == ring != topologies.chain(16384)
    assert "mixing_matrix" not in vars(ring)


def test_weights_are_the_sparse_form_of_the_matrix():
    for graph in (topologies.social_network(), topologies.one_peer_exponential(6)):
        for t in range(2 * graph.period):
            expected = graph.matrices[t % graph.period]
            np.testing.assert_array_equal(graph.weights_at(t).toarray(), expected)


def test_sparse_weights_make_a_topology():
    ring = topologies.ring(6, weights=0.25)
    for kind in (
        scipy.sparse.coo_array,
        scipy.sparse.lil_array,
        scipy.sparse.dok_array,
    ):
        weights = kind(ring.mixing_matrix)
        made = topologies.from_networkx(ring.graph, weights=weights, name="ring")
        assert made == ring
    for dtype in (bool, complex):
        with pytest.raises(ValueError, match="must be a float64|is unknown"):
            topologies.Topology(ring.graph, weights.astype(dtype))
    with pytest.raises(ValueError, match="row 0 of mixing_matrix sums to 2"):
        topologies.Topology(ring.graph, 2 * weights)


def test_sparse_weights_make_a_schedule():
    dense = topologies.one_peer_exponential(8).matrices
    expected = topologies.from_matrices(dense)
    kinds = scipy.sparse.coo_array, scipy.sparse.lil_array, np.asarray
    mixed = [kind(matrix) for kind, matrix in zip(kinds, dense, strict=True)]
    assert topologies.from_matrices(mixed) == expected
    for wrong in (
        [matrix.astype(complex) for matrix in mixed],
        [scipy.sparse.csr_array(np.ones((1, 1), bool))],
        scipy.sparse.coo_array(dense),
    ):
        with pytest.raises(ValueError, match="a schedule needs weights, a float64"):
            topologies.from_matrices(wrong)
    with pytest.raises(ValueError, match="mixing_matrix must be a float64"):
        topologies.Topology(nx.cycle_graph(8), scipy.sparse.coo_array(dense))


@pytest.mark.parametrize("name", [*topologies.SCHEDULES, "from_matrices"])
def test_large_schedules_have_no_dense_matrices(name):
    if name == "from_matrices":
        steps = topologies.one_peer_exponential(1024)
        weights = [scipy.sparse.coo_array(steps.weights_at(t)) for t in range(10)]
        schedule = topologies.from_matrices(weights, name=steps.name)
        assert schedule == steps
    else:
        schedule = getattr(topologies, name)(1024)
    assert schedule.doubly_stochastic
    assert schedule.rounds_at(0) and schedule.weights_at(0).nnz <= 2048
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert "matrices" not in vars(schedule)


def test_weights_cannot_be_written_to():
    for graph in (topologies.ring(6), topologies.base_graph(6)):
        with pytest.raises(ValueError, match="read-only"):
            graph.weights_at(0).data[0] = 1


@pytest.mark.parametrize(
    "graph",
    [
        nx.cycle_graph(MANY),
        nx.path_graph(MANY),
        nx.star_graph(MANY),
        nx.random_regular_graph(4, MANY, seed=0),
        nx.complete_graph(MANY),
    ],
)
def test_eigenvalues_of_many_workers_are_those_of_the_dense_matrix(graph):
    topology = topologies.from_networkx(graph)
    values = np.linalg.eigvalsh(topology.mixing_matrix)
    np.testing.assert_allclose(topology.lambda_2, values[-2], atol=1e-8)
    np.testing.assert_allclose(topology.lambda_min, values[0], atol=1e-8)
    gap = 1 - np.abs(values[:-1]).max()
    np.testing.assert_allclose(topology.spectral_gap, gap, atol=1e-8)
