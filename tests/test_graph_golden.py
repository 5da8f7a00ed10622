"""Schedules and optimal weights are those of the published code, number by number.

The golden arrays were recorded from BaseGraph (yukiTakezawa/BaseGraph, c89b116),
EquiTopo (kexinjinnn/EquiTopo, e7eb8d3) and MATCHA (JYWa/MATCHA, db7e7da). Those of the
fastest weights come from a general solver of semidefinite programs.
"""

import json
import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from djax import topologies as t
from djax.topologies import _base_graphs, _matcha, _random, _semidefinite

GOLDEN = Path(__file__).parent / "golden"
BASE = np.load(GOLDEN / "graphs_base.npz")
EQUI = np.load(GOLDEN / "graphs_equitopo.npz")
MATCHA = np.load(GOLDEN / "matcha.npz")
FASTEST = np.load(GOLDEN / "fdla.npz")
FASTEST_VALUES = json.loads((GOLDEN / "fdla.json").read_text())
MATCHA_VALUES = json.loads((GOLDEN / "matcha.json").read_text())

BASE_BUILDERS = {
    "base": t.base_graph,
    "simple": t.simple_base_graph,
    "hhc": t.hyper_hypercube,
    "onepeer_hypercube": t.one_peer_hypercube,
}


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("name", BASE)
def test_base_graphs(name):
    kind, arguments = name.split("__")
    if kind == "simple_noinner":
        steps = _base_graphs.simple_base_graph_steps(
            *numbers(arguments), inner_edges=False
        )
        matrices = [step.toarray() for step in steps]
    elif kind == "onepeer_exp":  # Published with the direction of messages reversed.
        schedule = t.one_peer_exponential(*numbers(arguments))
        matrices = schedule.matrices.transpose(0, 2, 1)
    else:
        matrices = BASE_BUILDERS[kind](*numbers(arguments)).matrices
    np.testing.assert_allclose(matrices, BASE[name], rtol=0, atol=1e-15)


EQUI_NAMES = [name for name in EQUI if not re.search("basis|draws", name)]


@pytest.mark.parametrize("name", EQUI_NAMES)
def test_equi_topo_draws_the_published_graphs(name):
    kind, arguments = name.split("__")
    size, seed = numbers(arguments)
    options = {"directed": kind.startswith(("d", "od")), "seed": seed}
    if "eps" in kind:
        graph = t.equi_static(size, accuracy=0.9, probability=0.5, **options)
    elif "static" in kind:
        graph = t.equi_static(size, degree=max(2, size // 2), **options)
    else:
        options |= {"eta": float(kind.partition("_eta")[2]), "period": 12}
        degree = None if "complete" in kind else max(2, size // 2)
        graph = t.equi_dyn(size, degree=degree, **options)
    expected = EQUI[name].reshape(-1, size, size)
    np.testing.assert_allclose(graph.matrices, expected, rtol=0, atol=1e-15)
    assert graph.doubly_stochastic and graph.symmetric >= (not options["directed"])


@pytest.mark.parametrize("name", [name for name in EQUI if "basis" in name])
def test_the_shifts_of_equi_topo_are_the_published_ones(name):
    size, seed = numbers(name.split("__")[1])
    shifts = _random.basis("equi_static", size, len(EQUI[name]), seed)
    assert shifts.tolist() == EQUI[name].tolist()


@pytest.mark.parametrize("name", [name for name in EQUI if "ouequi_draws" in name])
def test_the_walk_of_equi_topo_pairs_the_published_workers(name):
    size, _ = numbers(name.split("__")[1])
    matrices = EQUI[name.replace("draws", "eta1")]
    for (shift, start), matrix in zip(EQUI[name].tolist(), matrices, strict=True):
        pairs = np.eye(size)[_random.pairs(size, shift, start - 1)]
        expected = np.eye(size) / size + (size - 1) / size * pairs
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", MATCHA_VALUES)
def test_matcha_connects_the_workers_as_well_as_the_published_probabilities(name):
    laplacians = MATCHA[f"L__{name}"]
    budget = MATCHA_VALUES[name]["budget"]
    probabilities = _semidefinite.activation_probabilities(laplacians, budget)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert probabilities.sum() <= MATCHA_VALUES[name]["limit"]
    mean = np.tensordot(probabilities, laplacians, axes=1)
    lambda_2 = np.linalg.eigvalsh(mean)[1]
    np.testing.assert_allclose(lambda_2, MATCHA[f"lambda2__{name}"], rtol=0, atol=2e-8)
    published = MATCHA[f"p__{name}"]  # By a solver that stops at this accuracy.
    np.testing.assert_allclose(probabilities, published, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MATCHA_VALUES)
def test_matcha_mixes_with_the_published_weight(name):
    laplacians, published = MATCHA[f"L__{name}"], MATCHA[f"p__{name}"]
    of_code, of_minimum = MATCHA[f"alpha__{name}"]
    weight, rho = _matcha.mixing_weight(laplacians, published)
    assert weight == pytest.approx(of_code, abs=1e-5)
    assert weight == pytest.approx(of_minimum, abs=1e-8)
    np.testing.assert_allclose(rho, MATCHA[f"rho__{name}"], rtol=0, atol=2e-8)
    budget = MATCHA_VALUES[name]["budget"]
    probabilities = _semidefinite.activation_probabilities(laplacians, budget)
    weight, rho = _matcha.mixing_weight(laplacians, probabilities)
    assert weight == pytest.approx(of_code, abs=2e-5)
    np.testing.assert_allclose(rho, MATCHA[f"rho__{name}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FASTEST_VALUES)
def test_the_fastest_weights(name):
    graph, values = nx.Graph(FASTEST[f"edges__{name}"].tolist()), FASTEST_VALUES[name]
    for weights, key in (
        ("fastest", "rho_fdla"),
        ("best_constant", "rho_const"),
        ("uniform", "rho_maxdegree"),
        ("metropolis", "rho_metropolis"),
    ):
        topology = t.from_networkx(graph, weights=weights)
        assert 1 - topology.spectral_gap == pytest.approx(values[key], abs=1e-9)
    constant = t.from_networkx(graph, weights="best_constant").mixing_matrix
    edges = np.array([constant[edge] for edge in graph.edges])
    np.testing.assert_allclose(edges, values["alpha_const"], rtol=1e-12)


@pytest.mark.parametrize("name", ["ring6", "irr8"])
def test_matcha_without_saving_is_the_best_constant(name):
    laplacians = MATCHA[f"L__{name}_b0p5"]
    probabilities = _semidefinite.activation_probabilities(laplacians, 1.0)
    weight, _ = _matcha.mixing_weight(laplacians, probabilities)
    assert probabilities.tolist() == [1.0] * len(laplacians)
    assert weight == pytest.approx(MATCHA[f"fixed_alpha__{name}"].item(), abs=1e-12)
