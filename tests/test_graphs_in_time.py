"""Schedules of all kinds: what they promise, for many sizes."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from test_schedules import check_schedule
from test_topologies import check_topology, connected_graphs

from djax import topologies as t
from djax.topologies import _base_graphs, _matcha, _semidefinite

EXACT = "base_graph", "simple_base_graph", "hyper_hypercube", "one_peer_hypercube"
SEEDS = st.integers(0, 2**32 - 1)


def product(schedule):
    result = np.eye(schedule.size)
    for matrix in schedule.matrices:
        result = matrix @ result
    return result


def check_symmetric(schedule):
    check_schedule(schedule)
    matrices = schedule.matrices
    np.testing.assert_array_equal(matrices, matrices.transpose(0, 2, 1))
    assert schedule.symmetric and schedule.doubly_stochastic


@pytest.mark.parametrize("name", t.SCHEDULES)
@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_every_builder_takes_a_number_of_workers(name, size):
    schedule = getattr(t, name)(size)
    assert isinstance(schedule, t.Schedule)
    assert (schedule.size, schedule.name) == (size, name)
    check_schedule(schedule)
    assert schedule.doubly_stochastic
    assert schedule.symmetric or name == "one_peer_exponential"
    assert 0 < schedule.spectral_gap <= 1


# Exact after a period.


@pytest.mark.parametrize("max_degree", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [*range(1, 34), 50, 64, 77])
def test_base_graphs_average_exactly_with_few_partners(size, max_degree):
    base, simple = (
        builder(size, max_degree) for builder in (t.base_graph, t.simple_base_graph)
    )
    assert base.period <= simple.period
    for schedule in (base, simple):
        check_symmetric(schedule)
        assert schedule.matrices.min() >= 0
        partners = (schedule.matrices > 0).sum(axis=2) - 1
        assert partners.max() <= max_degree
        np.testing.assert_allclose(product(schedule), 1 / size, rtol=0, atol=1e-14)
        assert schedule.spectral_gap == 1
    if max_degree == 1:
        assert {len(rounds) for rounds in base.rounds} <= {0, 1}


@pytest.mark.parametrize("size, max_degree", [(21, 1), (23, 2), (50, 3)])
def test_averages_are_exact_without_inner_edges_too(size, max_degree):
    steps = _base_graphs.simple_base_graph_steps(size, max_degree, inner_edges=False)
    full = t.simple_base_graph(size, max_degree)
    bare = t.from_matrices(steps)
    assert bare.period == full.period
    assert (bare.matrices > 0).sum() < (full.matrices > 0).sum()
    np.testing.assert_allclose(product(bare), 1 / size, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size, max_degree", [(1, 1), (8, 1), (12, 2), (30, 4), (7, 6)])
def test_smooth_sizes_need_no_donors(size, max_degree):
    hypercube = t.hyper_hypercube(size, max_degree)
    np.testing.assert_allclose(product(hypercube), 1 / size, rtol=0, atol=1e-14)
    for builder in (t.base_graph, t.simple_base_graph):
        np.testing.assert_array_equal(
            builder(size, max_degree).matrices, hypercube.matrices
        )


@pytest.mark.parametrize("size", [2, 4, 32])
def test_the_one_peer_hypercube_uses_the_edges_of_the_hypercube_in_turn(size):
    schedule, hypercube = t.one_peer_hypercube(size), t.hypercube(size)
    assert {rounds for (rounds,) in schedule.rounds} == set(hypercube.rounds)
    np.testing.assert_array_equal(schedule.matrices, t.hyper_hypercube(size).matrices)


# Drawn at random.


@given(st.integers(2, 20), st.integers(1, 6), st.booleans(), SEEDS)
def test_equi_static_is_doubly_stochastic(size, degree, directed, seed):
    try:
        graph = t.equi_static(size, degree=degree, directed=directed, seed=seed)
    except ValueError as error:
        assert "do not connect all" in str(error)
        return
    if directed:
        check_schedule(graph)
        assert graph.period == 1 and len(graph.rounds[0]) <= degree
    else:
        check_topology(graph)
        assert graph.max_degree <= 2 * degree
    assert graph.doubly_stochastic


@given(st.integers(1, 12), st.booleans(), st.floats(0.1, 1), SEEDS)
@settings(max_examples=30)
def test_equi_dyn_has_one_partner_a_step(size, directed, eta, seed):
    schedule = t.equi_dyn(size, directed=directed, eta=eta, seed=seed)
    check_schedule(schedule)
    assert schedule.doubly_stochastic and schedule.period == 64
    assert {len(rounds) for rounds in schedule.rounds} <= {0, 1}
    if not directed:
        check_symmetric(schedule)
    own = schedule.matrices.diagonal(axis1=1, axis2=2)
    assert own.min() >= 1 - eta * (size - 1) / size - 1e-12


@given(st.integers(1, 12), SEEDS)
@settings(max_examples=30)
def test_random_matchings_pair_all_workers(size, seed):
    schedule = t.random_matchings(size, seed=seed)
    check_symmetric(schedule)
    for matrix in schedule.matrices:
        assert np.isin(matrix, [0, 0.5, 1]).all()
        assert (matrix.diagonal() == 1).sum() == size % 2


@pytest.mark.parametrize("size, matchings", [(4, 3), (5, 15), (6, 15)])
def test_random_matchings_are_uniform(size, matchings):
    schedule = t.random_matchings(size, period=200 * matchings)
    counts = Counter(schedule.rounds)
    assert len(counts) == matchings
    # Within five standard deviations of the binomial distribution.
    assert max(abs(count - 200) for count in counts.values()) < 5 * 200**0.5


def test_seeds_choose_and_repeat_the_draws():
    ring = t.ring(8)
    for build in (
        lambda seed: t.random_matchings(8, seed=seed),
        lambda seed: t.equi_dyn(8, seed=seed),
        lambda seed: t.equi_static(8, degree=3, directed=True, seed=seed),
        lambda seed: t.matcha(ring, 0.5, seed=seed),
    ):
        assert build(3) == build(3) != build(4)


# MATCHA.


@given(connected_graphs(), st.sampled_from([0.2, 0.5, 0.9, 1.0]), SEEDS)
@settings(max_examples=15)
def test_matcha_uses_the_rounds_of_the_topology(graph, budget, seed):
    topology = t.from_networkx(graph)
    schedule = t.matcha(topology, budget, period=300, seed=seed)
    check_schedule(schedule)
    assert schedule.symmetric and schedule.doubly_stochastic
    assert 0 < schedule.spectral_gap <= 1
    rounds = {source for rounds in schedule.rounds for source in rounds}
    partners = {(i, j) for source in rounds for i, j in enumerate(source) if i < j}
    assert partners <= set(topology.edges)  # Some edges may not be worth their cost.


@pytest.mark.parametrize("topology", [t.exponential(12), t.torus(16), t.star(6)])
@pytest.mark.parametrize("budget", [0.3, 0.7, 1.0])
def test_matcha_keeps_its_budget(topology, budget):
    own = np.eye(topology.size)
    laplacians = np.array([own - own[list(source)] for source in topology.rounds])
    probabilities = _semidefinite.activation_probabilities(laplacians, budget)
    weight, rho = _matcha.mixing_weight(laplacians, probabilities)
    assert probabilities.mean() == pytest.approx(budget, abs=1e-8) and rho < 1
    schedule = t.matcha(topology, budget, period=2000)
    for source, probability in zip(topology.rounds, probabilities, strict=True):
        i = next(i for i, j in enumerate(source) if i != j)
        exchanged = schedule.matrices[:, i, source[i]]
        active = np.isclose(exchanged, weight)
        assert active.mean() == pytest.approx(probability, abs=0.06)
        np.testing.assert_allclose(exchanged[~active], 0, atol=1e-15)
    # The square of a step's matrix contracts by rho on average.
    squares = np.mean([m @ m for m in schedule.matrices], axis=0)
    assert np.linalg.norm(squares - 1 / topology.size, 2) == pytest.approx(rho, abs=0.1)


def test_probabilities_are_better_than_equal_ones():
    own = np.eye(32)
    laplacians = np.array([own - own[list(s)] for s in t.social_network().rounds])
    probabilities = _semidefinite.activation_probabilities(laplacians, 0.4)

    def lambda_2(p):
        return np.linalg.eigvalsh(np.tensordot(p, laplacians, axes=1))[1]

    best = lambda_2(probabilities)
    assert best > lambda_2(np.full(len(laplacians), 0.4)) + 0.05
    for change in np.random.default_rng(0).normal(size=(50, len(laplacians))):
        other = np.clip(probabilities + 0.05 * (change - change.mean()), 0, 1)
        other *= min(1, 0.4 * len(other) / other.sum())
        assert lambda_2(other) < best + 1e-8
