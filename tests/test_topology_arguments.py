"""What is no graph, schedule, size or key is refused at once, with what was meant."""

import copy
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

import djax
from djax import asynchronous, communicators, compressors, theory, topologies

RING, PEERS = topologies.ring(4), topologies.one_peer_exponential(4)
COMMUNICATOR = communicators.simulated(4)
SIGN, FINE = compressors.sign(), compressors.quantize(8)
TOPOLOGIES = {
    "gossip": lambda t: djax.gossip(t, COMMUNICATOR),
    "relay": lambda t: djax.relay(t, COMMUNICATOR),
    "power_gossip": lambda t: djax.power_gossip(t, COMMUNICATOR),
    "moniqua": lambda t: djax.moniqua(t, COMMUNICATOR, 1.0, 0.1),
    "choco_gossip": lambda t: djax.choco_gossip(t, COMMUNICATOR, SIGN, 0.1),
    "deep_squeeze": lambda t: djax.deep_squeeze(t, COMMUNICATOR, SIGN, 0.1),
    "momentum_tracking": lambda t: djax.momentum_tracking(0.1, t, COMMUNICATOR),
    "beer": lambda t: djax.beer(0.1, t, COMMUNICATOR, SIGN, 0.1),
    "gut": lambda t: djax.gut(0.1, t, COMMUNICATOR),
    "dcd": lambda t: djax.dcd(t, COMMUNICATOR, FINE),
    "ecd": lambda t: djax.ecd(t, COMMUNICATOR, FINE),
    "dpsgd": lambda t: djax.dpsgd(0.1, t, COMMUNICATOR),
    "relay_sgd": lambda t: djax.relay_sgd(0.1, t, COMMUNICATOR),
    "d2_sgd": lambda t: djax.d2_sgd(0.1, t, COMMUNICATOR),
    "choco_sgd": lambda t: djax.choco_sgd(0.1, t, COMMUNICATOR, SIGN, 0.1),
    "acid_constants": djax.acid_constants,
    "edge_rates": asynchronous.edge_rates,
    "draw_events": lambda t: asynchronous.draw_events(t, gradients=1),
    "relay_learning_rate_factor": djax.relay_learning_rate_factor,
    "relay_delays": theory.relay_delays,
    "relay_matrix": theory.relay_matrix,
    "relay_perron_vector": theory.relay_perron_vector,
    "relay_constant": theory.relay_constant,
    "spanning_tree": topologies.spanning_tree,
}
TAKE_SCHEDULES = {
    *("gossip", "power_gossip", "moniqua", "deep_squeeze", "dpsgd", "d2_sgd"),
    *("choco_gossip", "choco_sgd", "dcd", "ecd"),
    *("momentum_tracking", "beer", "gut"),
}
SCHEDULES = {
    "push_sum": lambda s: djax.push_sum(s, COMMUNICATOR),
    "sgp": lambda s: djax.sgp(0.1, s, COMMUNICATOR),
}
NO_TOPOLOGIES = [
    (nx.cycle_graph(4), r"networkx.Graph of 4 nodes; .*topologies.from_networkx"),
    (nx.DiGraph([(0, 1)]), r"from_matrices.*from_networkx\(graph.to_undirected"),
    (RING.mixing_matrix, r"array of shape \(4, 4\); .*from_networkx"),
    (PEERS.matrices, r"from_matrices\(array\)"),
    (PEERS.matrices[0], r"from_matrices\(\[array\]\)"),
    (jnp.eye(4), r"array of shape \(4, 4\); .*from_networkx"),
    (PEERS, "a Schedule has no fixed neighbours"),
    (topologies.chain, r"the function chain; call .*chain\(8\)"),
    (topologies.Topology, r"the class Topology; call .*ring\(8\)"),
    ("torus", r"got 'torus'; .*torus\(8\)"),
    ("circle", r"got 'circle'; .*ring\(8\)"),
    (8, r"got 8; .* number of workers: ring\(8\)"),
    (None, r"got None; .*ring\(8\)"),
    (COMMUNICATOR, "the topology comes before the communicator"),
]


@pytest.mark.parametrize(("given", "message"), NO_TOPOLOGIES)
@pytest.mark.parametrize("taker", TOPOLOGIES)
def test_what_is_no_topology(taker, given, message):
    if given is PEERS and taker in TAKE_SCHEDULES:
        return  # Who refuses them is tested with the mechanisms.
    match = f"needs a Topology( or a Schedule)?, .*{message}"
    with pytest.raises(TypeError, match=match):
        TOPOLOGIES[taker](given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nx.cycle_graph(4), r"topologies.from_networkx\(graph\)"),
        (nx.DiGraph([(0, 1)]), r"networkx.DiGraph of 2 nodes; .*from_matrices"),
        (PEERS.matrices, r"from_matrices\(array\)"),
        (PEERS.matrices[0], r"from_matrices\(\[array\]\)"),
        (topologies.one_peer_exponential, r"function .*one_peer_exponential\(8\)"),
        ("one_peer_exponential", r"one_peer_exponential\(8\)"),
        (4, r"one_peer_exponential\(4\)"),
        (None, r"one_peer_exponential\(8\)"),
        (COMMUNICATOR, "the schedule comes before the communicator"),
    ],
)
@pytest.mark.parametrize("taker", SCHEDULES)
def test_what_is_no_schedule(taker, given, message):
    with pytest.raises(TypeError, match=f"push_sum needs a Schedule, .*{message}"):
        SCHEDULES[taker](given)


def test_an_array_is_a_topology_as_the_error_says():
    with pytest.raises(TypeError) as error:
        djax.gossip(RING.mixing_matrix, COMMUNICATOR)
    assert "networkx.from_numpy_array(array * (1 - numpy.eye(len(array))))" in str(
        error.value
    )
    array = RING.mixing_matrix
    graph = nx.from_numpy_array(array * (1 - np.eye(len(array))))
    made = topologies.from_networkx(graph, weights=array, name="ring")
    assert made == RING


@pytest.mark.parametrize("communicator", [None, 4, RING, communicators.simulated])
def test_what_is_no_communicator(communicator):
    for make in (
        lambda: djax.gossip(RING, communicator),
        lambda: djax.push_sum(PEERS, communicator),
        lambda: djax.all_reduce(communicator),
    ):
        with pytest.raises(TypeError, match="needs a communicator such as"):
            make()


@pytest.mark.parametrize(
    "topology", [nx.cycle_graph(4), np.eye(4), topologies.ring, "ring", None]
)
def test_the_cost_of_no_topology(topology):
    gossip = djax.gossip(RING, COMMUNICATOR)
    with pytest.raises(TypeError, match="communication_cost needs the topology"):
        djax.communication_cost(gossip, jnp.ones(3), topology)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (RING, "that is one already"),
        (np.eye(4), "networkx.from_numpy_array"),
        ([(0, 1)], r"networkx.Graph\(edges\)"),
        (8, r"ring\(8\)"),
        (None, r"ring\(8\)"),
    ],
)
def test_from_networkx_of_something_else(graph, message):
    with pytest.raises(TypeError, match=f"needs a networkx.Graph, got .*{message}"):
        topologies.from_networkx(graph)
    with pytest.raises(TypeError, match=f"needs a networkx.Graph, got .*{message}"):
        topologies.Topology(graph, np.eye(4))


@pytest.mark.parametrize("weights", [None, True, "mean", {}, [[1, 2], [3]], 1j, ["a"]])
def test_weights_that_are_none_say_what_weights_can_be(weights):
    with pytest.raises(ValueError, match="metropolis, .*fastest, a number .*array"):
        topologies.ring(4, weights=weights)


@pytest.mark.parametrize("matrices", [None, RING, [RING], nx.cycle_graph(3), "ring"])
def test_matrices_that_are_none(matrices):
    with pytest.raises(ValueError, match=r"needs weights.*\[topology.mixing_matrix\]"):
        topologies.from_matrices(matrices)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: topologies.torus("ring"), r"got 'ring'; the number .*torus\(8\)"),
        (lambda: topologies.ring("lazy", weights=4), "number of workers comes first"),
        (lambda: topologies.ring(COMMUNICATOR), r"ring\(communicator.size\)"),
        (lambda: topologies.star(nx.star_graph(3)), "from_networkx makes a topology"),
        (lambda: topologies.ring(True), "integer of at least 1, got True"),
        (lambda: topologies.ring(np.bool_(True)), "integer of at least 1, got .*True"),
        (lambda: topologies.torus(4, rows=True), "rows must be an integer"),
        (lambda: topologies.regular_tree(4, "3"), "degree must be an integer"),
        (lambda: topologies.spanning_tree(RING, True), "root must be one of"),
        (lambda: topologies.spanning_tree(RING, [0]), "root must be one of"),
        (lambda: compressors.low_rank(True), "rank must be an integer"),
        (lambda: compressors.top_k(rank=True), "rank must be an integer"),
        (lambda: compressors.quantize(True), "bits must be 2 to 8"),
        (lambda: compressors.quantize(4, bucket_size=True), "bucket_size must be"),
        (lambda: compressors.top_k(True), "fraction must be in"),
        (lambda: compressors.random_k("0.1"), "fraction must be in"),
        (lambda: djax.power_gossip(RING, COMMUNICATOR, True), "rank must be"),
        (lambda: djax.every(True, djax.all_reduce(COMMUNICATOR)), "k must be"),
    ],
)
def test_numbers_that_are_none(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "key", [0, np.int64(0), True, 0.0, "0", jnp.zeros((), jnp.int32), np.arange(2)]
)
def test_a_seed_is_no_key(key):
    for make in (
        lambda: compressors.quantize(4, key=key),
        lambda: compressors.random_k(0.1, key=key),
        lambda: djax.gossip(RING, COMMUNICATOR, key=key),
        lambda: djax.relay(topologies.chain(4), COMMUNICATOR, key=key),
        lambda: djax.push_sum(PEERS, COMMUNICATOR, key=key),
        lambda: djax.moniqua(RING, COMMUNICATOR, 1.0, 0.1, key=key),
        lambda: djax.power_gossip(RING, COMMUNICATOR, key=key),
    ):
        with pytest.raises(TypeError, match=r"key must be .* jax.random.key\(0\), got"):
            make()


def test_several_keys_are_refused_and_single_ones_of_both_kinds_taken():
    with pytest.raises(TypeError, match="a single PRNG key"):
        compressors.quantize(4, key=jax.random.split(jax.random.key(0), 4))
    for key in (jax.random.key(0), jax.random.PRNGKey(0), None):
        compressors.quantize(4, key=key)
        djax.gossip(RING, COMMUNICATOR, key=key)


@pytest.mark.parametrize(
    "nodes",
    [
        [0.0, 1.0, 2.0, 3.0],
        [3.0, 1.0, 0.0, 2.0],
        [np.int64(2), np.int64(0), np.int64(3), np.int64(1)],
        [10.5, 2.5, 7.25, 1.5],
        [100, 20, 3, 1],
        ["b", "a", "d", "c"],
        [(1, 1), (0, 0), (1, 0), (0, 1)],
    ],
)
def test_nodes_that_can_be_sorted_are_numbered_in_that_order(nodes):
    """As those of a data frame's edge list, which are floats in any order."""
    numbers = [sorted(nodes).index(node) for node in nodes]
    for data in ({}, {"multiplicity": 2.0}):
        graph = nx.Graph([(*e, data) for e in zip(nodes, nodes[1:], strict=False)])
        wanted = nx.Graph([(*e, data) for e in zip(numbers, numbers[1:], strict=False)])
        topology = topologies.from_networkx(graph)
        assert topology == topologies.from_networkx(wanted)
        assert all(type(i) is int for edge in topology.edges for i in edge)
        assert all(type(j) is int for i in range(4) for j in topology.neighbors(i))


def test_float_edges_between_whole_nodes_index_arrays():
    graph = nx.empty_graph(3)
    graph.add_edges_from([(0.0, 1.0), (1.0, 2.0)])
    assert topologies.from_networkx(graph) == topologies.from_networkx(nx.path_graph(3))


@pytest.mark.parametrize(
    "nodes",
    [["b", 1, None.__class__], [frozenset({1}), frozenset({0}), frozenset({2})]],
)
def test_nodes_that_cannot_be_sorted_keep_the_order_of_the_graph(nodes):
    graph = nx.Graph([(nodes[0], nodes[1]), (nodes[0], nodes[2])])
    assert topologies.from_networkx(graph).edges == ((0, 1), (0, 2))


def test_weights_are_indexed_by_the_numbers_of_the_nodes():
    graph = nx.Graph([("c", "a"), ("a", "b")])
    weights = np.array([[0.1, 0.6, 0.3], [0.6, 0.4, 0.0], [0.3, 0.0, 0.7]])
    topology = topologies.from_networkx(graph, weights=weights)
    assert topology.mixing_matrix[0, 1] == 0.6  # Of a and b.


@pytest.mark.parametrize("value", [RING, PEERS])
def test_copies_are_the_same_immutable_values(value):
    hash(value), value.rounds
    pickled = pickle.dumps(value)
    for same in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickled)):
        assert same == value and hash(same) == hash(value)
        array = same.mixing_matrix if value is RING else same.matrices
        assert not array.flags.writeable


@pytest.mark.slow
def test_a_value_of_another_process_has_this_process_hash():
    """Such a topology is found in dictionaries, and is no new static argument."""
    code = (
        "import pickle, sys; from djax import topologies;"
        "ring = topologies.ring(4); hash(ring);"
        "sys.stdout.buffer.write(pickle.dumps(ring))"
    )
    sent = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    ring = pickle.loads(sent.stdout)
    assert ring == RING and hash(ring) == hash(RING)
