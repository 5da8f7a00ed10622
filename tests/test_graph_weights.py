"""Weights of the largest spectral gap, and negative ones."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from test_topologies import check_rounds, connected_graphs

from djax import topologies as t
from djax.topologies import _semidefinite

RULES = "metropolis", "uniform", "lazy", "best_constant"


def modulus(topology):
    return np.linalg.norm(topology.mixing_matrix - 1 / topology.size, 2)


@given(connected_graphs())
@settings(max_examples=40)
def test_no_rule_is_faster_than_the_fastest_weights(graph):
    topology = t.from_networkx(graph, weights="fastest")
    W = topology.mixing_matrix
    np.testing.assert_array_equal(W, W.T)
    np.testing.assert_allclose(W.sum(axis=1), 1, rtol=0, atol=1e-12)
    check_rounds(topology)
    assert modulus(topology) < 1
    for rule in RULES:
        other = t.from_networkx(graph, weights=rule)
        assert modulus(topology) <= modulus(other) + 1e-9
    # Nor is what is close to them.
    generator = np.random.default_rng(0)
    for size in (1e-2, 1e-4):
        nearby = W.copy()
        for i, j in graph.edges:
            change = size * generator.normal()
            nearby[[i, j], [j, i]] += change
            nearby[[i, j], [i, j]] -= change
        nearby_modulus = np.linalg.norm(nearby - 1 / len(W), 2)
        assert modulus(topology) <= nearby_modulus + 1e-9


@given(connected_graphs())
@settings(max_examples=40)
def test_the_best_constant_is_the_best_of_all_constants(graph):
    best = t.from_networkx(graph, weights="best_constant")
    adjacency = nx.to_numpy_array(graph, range(len(graph)), weight="multiplicity")
    laplacian = np.diag(adjacency.sum(axis=0)) - adjacency
    rest = np.eye(len(graph)) - 1 / len(graph)
    for weight in np.linspace(0.01, 1, 50):
        other = np.linalg.norm(rest - weight * laplacian, 2)
        assert modulus(best) <= other + 1e-12
    off_diagonal = best.mixing_matrix * (1 - np.eye(best.size))
    constants = off_diagonal[adjacency > 0] / adjacency[adjacency > 0]
    assert np.ptp(constants) < 1e-12 if constants.size else best.size == 1


@pytest.mark.parametrize(
    "name, size",
    [
        ("ring", 2),
        ("ring", 9),
        ("ring", 64),
        ("torus", 64),
        ("hypercube", 16),
        ("complete", 7),
        ("star", 20),
    ],
)
def test_where_all_edges_are_alike_the_fastest_weights_are_constant(name, size):
    topology = getattr(t, name)(size, weights="fastest")
    constant = t.from_networkx(topology.graph, weights="best_constant")
    assert modulus(topology) == pytest.approx(modulus(constant), abs=1e-9)
    edges = tuple(np.transpose(topology.edges))
    weights = topology.mixing_matrix[edges]
    np.testing.assert_allclose(weights, constant.mixing_matrix[edges], atol=1e-8)


@pytest.mark.parametrize("size", [4, 6, 17, 40])
def test_closed_forms(size):
    chain = t.chain(size, weights="fastest")
    assert modulus(chain) == pytest.approx(np.cos(np.pi / size), abs=1e-9)
    for rule in ("fastest", "best_constant"):
        star = t.star(size, weights=rule)
        assert modulus(star) == pytest.approx((size - 1) / (size + 1), abs=1e-9)
        assert star.mixing_matrix[0, 0] < 0


def test_one_worker_and_multiplicities():
    assert t.ring(1, weights="fastest").mixing_matrix.tolist() == [[1.0]]
    assert t.ring(1, weights="best_constant").mixing_matrix.tolist() == [[1.0]]
    graph = nx.petersen_graph()
    plain = t.from_networkx(graph, weights="fastest").mixing_matrix
    graph[0][1]["multiplicity"] = 3
    multiple = t.from_networkx(graph, weights="fastest").mixing_matrix
    np.testing.assert_array_equal(plain, multiple)


@pytest.mark.parametrize("rule", ["fastest", "best_constant"])
def test_weights_below_zero_can_be_given_as_an_array_and_drawn(rule):
    plt = pytest.importorskip("matplotlib.pyplot")
    star = t.star(6, weights=rule)
    assert t.star(6, weights=star.mixing_matrix) == star
    single = star.mixing_matrix.astype(np.float32)
    again = t.star(6, weights=single).mixing_matrix
    np.testing.assert_allclose(again, star.mixing_matrix, atol=1e-6)
    network = t.social_network(weights=rule)
    ax = network.plot()
    (lines,) = (c for c in ax.collections if hasattr(c, "get_segments"))
    assert min(lines.get_linewidths()) >= 0
    plt.close(ax.figure)


@pytest.mark.parametrize(
    "weight, accepted", [(0.39, True), (0.41, False), (0.6, False), (-0.1, False)]
)
def test_weights_below_zero_have_to_bring_the_workers_together(weight, accepted):
    # 1 - 5 w is the smallest eigenvalue, and has to be above -1.
    laplacian = nx.laplacian_matrix(nx.star_graph(4)).toarray()
    matrix = np.eye(5) - weight * laplacian
    if accepted:
        assert t.star(5, weights=matrix).spectral_gap == pytest.approx(0.05)
        return
    with pytest.raises(ValueError, match="factor .* below 1; .*smaller weights"):
        t.star(5, weights=matrix)


def test_the_interior_point_method_solves_a_program_of_its_own():
    """The largest x + 2 y in the triangle x >= 0, y >= 0, x + y <= 1 is at (0, 1)."""

    def limits(x):
        return np.array([x[0], x[1], 1 - x[0] - x[1]])

    def barrier(x):
        with np.errstate(all="ignore"):
            value = -np.log(limits(x)).sum()
        return value if (limits(x) > 0).all() else np.inf

    def derivatives(x):
        relative = np.array([[1, 0], [0, 1], [-1, -1]]) / limits(x)[:, None]
        return -relative.sum(axis=0), relative.T @ relative

    cost, start = np.array([-1.0, -2.0]), np.array([0.3, 0.3])
    options = {"degree": 3, "accuracy": 1e-9}
    found = _semidefinite.minimize(cost, barrier, derivatives, start, **options)
    assert cost @ found == pytest.approx(-2, abs=1e-9)
    np.testing.assert_allclose(found, [0, 1], atol=1e-8)
