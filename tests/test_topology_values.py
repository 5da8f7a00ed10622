"""Topologies and schedules as values: immutable, comparable, readable."""

import jax
import networkx as nx
import numpy as np
import pytest

from djax import topologies


def test_topology_is_immutable():
    ring = topologies.ring(4)
    with pytest.raises(ValueError, match="read-only"):
        ring.mixing_matrix[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        ring.round_weights[0, 0] = 1
    with pytest.raises(nx.NetworkXError, match="Frozen"):
        ring.graph.add_edge(0, 2)
    with pytest.raises(AttributeError):
        ring.name = "line"


def test_topology_leaves_the_graph_of_the_user_alone():
    graph = nx.path_graph(3)
    topology = topologies.from_networkx(graph)
    graph.add_edge(0, 2)
    assert topology.edges == ((0, 1), (1, 2))


def test_equality_is_by_value():
    ring = topologies.ring(8)
    assert ring == topologies.ring(8) and ring is not topologies.ring(8)
    assert len({ring, topologies.ring(8)}) == 1
    cycle = topologies.from_networkx(nx.cycle_graph(8), name="ring")
    assert ring == cycle
    multiple = nx.cycle_graph(8)
    multiple[0][1]["multiplicity"] = 2
    weights = ring.mixing_matrix
    for other in (
        topologies.ring(9),
        topologies.chain(8),
        topologies.ring(8, weights=0.3),
        topologies.from_networkx(nx.cycle_graph(8)),
        topologies.from_networkx(multiple, weights=weights, name="ring"),
        "ring",
    ):
        assert ring != other


def test_schedule_is_a_value():
    schedule = topologies.one_peer_exponential(8)
    same = topologies.one_peer_exponential(8)
    assert schedule == same and hash(schedule) == hash(same)
    assert schedule != topologies.from_matrices(schedule.matrices)
    assert schedule != topologies.one_peer_exponential(7)
    assert schedule != "one_peer_exponential"
    with pytest.raises(ValueError, match="read-only"):
        schedule.matrices[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        schedule.round_weights[0][0, 0] = 1


def test_values_are_static_arguments_of_jit():
    traces = []

    @jax.jit(static_argnums=(0, 1))
    def size(topology, schedule, x):
        traces.append(topology)
        return x + topology.size + schedule.size

    for builder in (topologies.ring, topologies.ring, topologies.chain):
        assert size(builder(4), topologies.one_peer_exponential(4), 1) == 9
    assert len(traces) == 2


def test_repr_of_many_workers_does_not_compute_eigenvalues():
    assert repr(topologies.chain(1025)) == (
        "Topology(chain, 1025 workers, 1024 edges, 2 rounds)"
    )


@pytest.mark.parametrize("name", topologies.BUILDERS)
def test_plot_draws_each_worker_and_edge(name):
    plt = pytest.importorskip("matplotlib.pyplot")
    topology = getattr(topologies, name)(32)
    ax = topology.plot()
    assert {text.get_text() for text in ax.texts} == set(map(str, range(32)))
    (lines,) = (c for c in ax.collections if hasattr(c, "get_segments"))
    assert len(lines.get_segments()) == len(topology.edges)
    assert topology.plot(ax) is ax
    plt.close(ax.figure)


def test_plot_of_small_trees():
    plt = pytest.importorskip("matplotlib.pyplot")
    for size in (1, 2, 3):
        ax = topologies.chain(size).plot()
        positions = {text.get_position() for text in ax.texts}
        assert len(positions) == size
        plt.close(ax.figure)


def test_weights_in_single_precision_are_accepted():
    ring = topologies.ring(5)
    weights = np.asarray(ring.mixing_matrix, np.float32)
    again = topologies.from_networkx(ring.graph, weights=weights)
    np.testing.assert_allclose(again.mixing_matrix, ring.mixing_matrix, atol=1e-7)
    np.testing.assert_allclose(again.mixing_matrix.sum(1), 1, atol=1e-15)
