"""What topologies and schedules have in common, and who accepts which of them."""

import time

import networkx as nx
import numpy as np
import pytest

from djax import topologies as t
from djax.topologies.checks import check_graph_kind

GATHER = np.array([[1.0, 0.5, 0.5], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]])
SCATTER = np.array([[1 / 3, 0.0, 0.0], [1 / 3, 1.0, 0.0], [1 / 3, 0.0, 1.0]])
TO_THE_MEAN = t.from_matrices([SCATTER, GATHER], name="to_the_mean")
PEERS = t.one_peer_exponential(6)
GRAPHS = [
    t.ring(1),
    t.ring(5),
    t.torus(12),
    PEERS,
    TO_THE_MEAN,
    t.from_matrices([t.star(5).mixing_matrix, np.eye(5), t.ring(5).mixing_matrix]),
    t.from_matrices(np.ones((1, 1, 1))),
]


def matchings(size, period):
    """Matrices in which pairs of workers average."""
    matrices = []
    for order in np.random.default_rng(0).permuted([range(size)] * period, axis=1):
        matrix = np.eye(size) / 2
        matrix[order[::2], order[1::2]] = matrix[order[1::2], order[::2]] = 0.5
        matrices.append(matrix)
    return np.array(matrices)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_rounds_and_weights_of_any_step_make_its_matrix(graph):
    assert graph.matrices.shape == (graph.period, graph.size, graph.size)
    assert not graph.matrices.flags.writeable
    for step in range(2 * graph.period + 1):
        matrix = graph.matrices[step % graph.period]
        rounds, weights = graph.rounds_at(step), graph.round_weights_at(step)
        assert weights.shape == (len(rounds), graph.size)
        rebuilt = np.diag(np.diag(matrix))
        for source, weight in zip(rounds, weights, strict=True):
            rebuilt += np.diag(weight) @ np.eye(graph.size)[list(source)]
        np.testing.assert_array_equal(rebuilt, matrix)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_properties_are_those_of_the_matrices(graph):
    matrices = graph.matrices
    assert graph.symmetric == np.allclose(matrices, matrices.transpose(0, 2, 1))
    assert graph.doubly_stochastic == np.allclose(matrices.sum(2), 1)
    product = np.eye(graph.size)
    for matrix in matrices:
        product = matrix @ product
    others = np.sort(np.abs(np.linalg.eigvals(product)))[:-1]
    modulus = others.max(initial=0.0) ** (1 / graph.period)
    assert graph.spectral_gap == pytest.approx(1 - modulus, abs=1e-7)


def test_a_topology_is_the_schedule_of_its_matrix():
    for topology in (t.ring(6), t.star(5), t.social_network()):
        schedule = t.from_matrices([topology.mixing_matrix])
        assert schedule.spectral_gap == pytest.approx(topology.spectral_gap, abs=1e-12)
        assert schedule.rounds_at(7) == topology.rounds_at(7) == topology.rounds
        np.testing.assert_array_equal(
            schedule.round_weights_at(7), topology.round_weights_at(7)
        )


def test_the_gap_of_long_periods_is_no_rounding():
    matrices = np.tile(t.ring(8).mixing_matrix, (5000, 1, 1))
    gap = t.from_matrices(matrices).spectral_gap
    assert gap == pytest.approx(t.ring(8).spectral_gap, rel=1e-9)


def test_exact_averages_have_a_gap_of_one():
    assert t.one_peer_exponential(16).spectral_gap == 1
    assert TO_THE_MEAN.spectral_gap < 1
    gather = np.zeros((3, 3))
    gather[0] = 1
    scatter = np.eye(3)
    scatter[:, 0] = 1 / 3
    assert t.from_matrices([gather, scatter]).spectral_gap == 1


def test_symmetric_steps_are_carried_by_pairs_and_silent_ones_by_nothing():
    chain = t.chain(5).mixing_matrix
    schedule = t.from_matrices(
        [chain, np.eye(5), PEERS.matrices[0][:5, :5] * 0 + chain]
    )
    assert schedule.rounds_at(0) == t.chain(5).rounds
    assert schedule.rounds_at(1) == () and schedule.round_weights_at(1).shape == (0, 5)
    assert schedule.rounds_at(2) is schedule.rounds_at(0)
    assert schedule.round_weights_at(2) is schedule.round_weights_at(0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_symmetric_weights_of_low_precision_stay_symmetric(dtype):
    matrices = np.array([t.ring(5).mixing_matrix, t.star(5).mixing_matrix], dtype)
    schedule = t.from_matrices(matrices)
    assert schedule.symmetric and schedule.doubly_stochastic


def test_a_thousand_matchings_are_made_at_once():
    matrices = matchings(16, 1000)
    start = time.perf_counter()
    schedule = t.from_matrices(matrices)
    assert {len(schedule.rounds_at(step)) for step in range(1000)} == {1}
    assert len(schedule.round_weights) == 1000
    assert time.perf_counter() - start < 2


def test_negative_weights_are_taken_where_they_contract():
    laplacian = nx.laplacian_matrix(nx.cycle_graph(5)).toarray()
    matrix = np.eye(5) - 0.55 * laplacian
    schedule = t.from_matrices([matrix])
    assert schedule.matrices.min() < 0 and schedule.doubly_stochastic
    modulus = np.abs(np.linalg.eigvalsh(matrix)[[0, -2]]).max()
    assert schedule.spectral_gap == pytest.approx(1 - modulus)
    with pytest.raises(ValueError, match=r"factor 1\.5.* a step.*\[0, 0\] of matrix 0"):
        t.from_matrices([np.eye(5) - 0.7 * laplacian])


# Who accepts which graph.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nx.cycle_graph(4), r"networkx.Graph .*topologies.from_networkx\(graph\)"),
        (nx.DiGraph([(0, 1)]), "directed communication is a Schedule"),
        (PEERS.matrices, r"topologies.from_matrices\(array\)"),
        (t.ring(4).mixing_matrix, r"array of shape \(4, 4\)"),
        ("torus", r"torus\(8\)"),
        (8, r"ring\(8\)"),
        (None, r"ring\(8\)"),
        (t.one_peer_exponential, r"one_peer_exponential\(8\)"),
    ],
)
def test_what_is_no_graph(given, message):
    with pytest.raises(
        TypeError, match=f"gossip needs a Topology or a Schedule, got .*{message}"
    ):
        check_graph_kind("gossip", given)


@pytest.mark.parametrize(
    ("graph", "kind", "message"),
    [
        (
            PEERS,
            "fixed",
            r"does not change with time, .* Schedule\(one_peer_exponential, \.\.\.\) "
            "has a period of 3",
        ),
        (PEERS, "undirected", r"a Topology such as ring\(6\)"),
        (
            PEERS,
            "symmetric",
            "symmetric schedule, .* in step 0 worker 0 gives the weight 0 to worker 1, "
            "which gives 0.5 to worker 0",
        ),
        (
            TO_THE_MEAN,
            "doubly_stochastic",
            r"doubly stochastic in each step, but in step 0 the row of worker 0 sums "
            r"to 0\.333333: use push_sum",
        ),
    ],
)
def test_graphs_of_the_wrong_kind(graph, kind, message):
    with pytest.raises(ValueError, match=f"some_mechanism needs a.* {message}"):
        check_graph_kind("some_mechanism", graph, **{kind: True})
    check_graph_kind("some_mechanism", graph)


def test_graphs_of_the_right_kind():
    kinds = "fixed", "undirected", "symmetric", "doubly_stochastic"
    check_graph_kind("some_mechanism", t.ring(4), **dict.fromkeys(kinds, True))
    pairs = t.from_matrices(matchings(6, 10))
    check_graph_kind("some_mechanism", pairs, symmetric=True, doubly_stochastic=True)
    check_graph_kind("some_mechanism", PEERS, doubly_stochastic=True)
    one_way = t.from_matrices([(np.eye(4) + np.roll(np.eye(4), 1, axis=0)) / 2])
    check_graph_kind("some_mechanism", one_way, fixed=True)


# Pictures and names.


def test_plot_draws_lines_in_symmetric_steps_and_arrows_in_others():
    plt = pytest.importorskip("matplotlib.pyplot")
    star = t.star(6).mixing_matrix
    schedule = t.from_matrices([star, np.eye(6), PEERS.matrices[1]])
    axes = schedule.plot()
    assert [ax.get_title() for ax in axes] == ["step 0", "step 1", "step 2"]
    for ax in axes:
        assert {text.get_text() for text in ax.texts} == set("012345")
    lines = [c for c in axes[0].collections if hasattr(c, "get_segments")]
    assert [len(line.get_segments()) for line in lines] == [5]
    assert [len(ax.patches) for ax in axes] == [0, 0, 6]
    plt.close(axes[0].figure)


def test_plot_of_a_long_period_says_how_much_is_missing():
    plt = pytest.importorskip("matplotlib.pyplot")
    schedule = t.from_matrices(matchings(4, 20))
    axes = schedule.plot()
    assert axes.shape == (12,)
    assert "and 8 more" in {text.get_text() for text in axes[-1].texts}
    given = schedule.plot(axes[:5])
    assert list(given) == list(axes[:5])
    assert "and 15 more" in {text.get_text() for text in given[-1].texts}
    assert len(t.one_peer_exponential(4).plot(axes)) == 2
    plt.close(axes[0].figure)


def test_repr_of_many_steps_of_many_workers_does_not_compute_eigenvalues():
    assert "spectral gap 0.4" in repr(PEERS)
    assert "gap" not in repr(t.one_peer_exponential(512))
