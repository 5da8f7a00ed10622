"""Our graphs are those of the published code, number by number.

The golden arrays were recorded from RelaySGD (epfml/relaysgd, e1e332b; the torus
follows epfml/powergossip, 087eb09) and from A2CiD2 (AdelNabli/ACiD, 89393fd).
"""

import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from djax import topologies

GOLDEN = Path(__file__).parent / "golden"
RELAY = np.load(GOLDEN / "relay_topologies.npz")
ACID = np.load(GOLDEN / "acid_topologies.npz")

BUILDER_OF_GOLDEN_NAME = {
    "ring": topologies.ring,
    "chain": topologies.chain,
    "star": topologies.star,
    "bintree": topologies.binary_tree,
    "tree3_": topologies.regular_tree,
    "hypercube": topologies.hypercube,
    "full": topologies.complete,
    "torus": topologies.torus,
    "social": topologies.social_network,
}
GOLDEN_NAMES = [key.removeprefix("W__") for key in RELAY if key.startswith("W__")]


def golden_topology(name):
    """Ours for a golden name: `ring16`, `bintree8_rev`, `socialtree32_root5`."""
    if root := re.fullmatch(r"socialtree32_root(\d+)", name):
        return topologies.spanning_tree(topologies.social_network(), int(root[1]))
    kind, size, reverse = re.fullmatch(r"(\D+|tree3_)(\d+)(_rev)?", name).groups()
    if reverse:
        return topologies.double_binary_trees(int(size))[1]
    return BUILDER_OF_GOLDEN_NAME[kind](int(size))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_matches_the_published_graph(name):
    topology = golden_topology(name)
    np.testing.assert_allclose(
        topology.mixing_matrix, RELAY[f"W__{name}"], rtol=0, atol=1e-12
    )
    for i, neighbors in enumerate(RELAY[f"neighbors__{name}"]):
        assert topology.neighbors(i) == tuple(sorted(neighbors[neighbors >= 0]))
    distance = RELAY[f"dist__{name}"]
    hops = dict(nx.all_pairs_shortest_path_length(topology.graph))
    assert all(hops[i][j] == d for (i, j), d in np.ndenumerate(distance))
    assert topology.diameter == distance.max()
    assert topology.is_tree == ("tree" in name or name.startswith(("chain", "star")))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_matches_the_published_eigenvalues(name):
    topology, eigenvalues = golden_topology(name), RELAY[f"eig__{name}"]
    assert topology.lambda_2 == pytest.approx(eigenvalues[-2], abs=1e-12)
    assert topology.lambda_min == pytest.approx(eigenvalues[0], abs=1e-12)
    gap = 1 - max(abs(eigenvalues[0]), abs(eigenvalues[-2]))
    assert topology.spectral_gap == pytest.approx(gap, abs=1e-12)


def test_matches_all_published_spanning_trees():
    network = topologies.social_network()
    trees = [topologies.spanning_tree(network, root) for root in range(32)]
    for tree, edges in zip(trees, RELAY["social_tree_edges"], strict=True):
        assert tree.is_tree
        assert tree.edges == tuple(sorted((min(e), max(e)) for e in edges.tolist()))
    assert {tree.diameter for tree in trees} == {5, 6, 7}
    assert {min(t.max_degree for t in trees), max(t.max_degree for t in trees)} == {
        6,
        14,
    }


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64])
def test_exponential_matches_the_published_neighbors(size):
    exponential = topologies.exponential(size)
    counted = nx.to_numpy_array(exponential.graph, weight="multiplicity")
    for i, neighbors in enumerate(ACID[f"neighbors__exponential{size}"].tolist()):
        assert all(
            exponential.multiplicity(i, j) == neighbors.count(j) for j in range(size)
        )
    laplacian = np.eye(size) - counted / counted.sum(axis=1)
    np.testing.assert_allclose(laplacian, ACID[f"L__exponential{size}"], atol=1e-15)
