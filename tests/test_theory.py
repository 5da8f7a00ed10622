"""What is known of RelaySum beforehand, against the paper's numbers and the runs."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

import djax
from djax import communicators, theory, topologies


@pytest.mark.parametrize(
    ("tree", "factors"),
    [
        (topologies.chain, (1.5, 2.75, 5.375, 10.6875, 21.34375)),
        (topologies.binary_tree, (1.375, 2.15625, 3.3203125, 4.783203125, 6.453613281)),
        (topologies.star, (1.375, 1.65625, 1.8203125, 1.908203125, 1.953613281)),
    ],
)
def test_learning_rate_factors(tree, factors):
    actual = [djax.relay_learning_rate_factor(tree(n)) for n in (4, 8, 16, 32, 64)]
    np.testing.assert_allclose(actual, factors, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "values"),
    [
        (topologies.binary_tree, (9.35, 19.9, 23.2, 39.8, 58.5, 88.4, 114.7)),
        (topologies.chain, (9.35, 19.9, 32.9, 63.1, 91.2, 117.4, 150.9)),
        (topologies.star, (9.35, 19.9, 23.2, 29.8, 36.5, 49.0, 60.1)),
    ],
)
def test_the_constants_of_the_papers_figure(tree, values):
    sizes = (2, 3, 4, 6, 8, 12, 16)
    constants = [theory.relay_constant(tree(n)) for n in sizes]
    np.testing.assert_allclose([c.rho for c in constants], values, atol=0.06)
    for rho, m, p in constants:
        assert rho == pytest.approx(m / p)


@hypothesis.given(st.integers(1, 10), st.integers(0, 10**6), st.booleans())
@hypothesis.settings(max_examples=20)
def test_the_perron_vector_is_what_the_powers_converge_to(size, seed, overlap):
    graph = nx.random_labeled_tree(size, seed=seed) if size > 1 else nx.empty_graph(1)
    tree = topologies.from_networkx(graph)
    matrix = theory.relay_matrix(tree, overlap=overlap)
    vector = theory.relay_perron_vector(tree, overlap=overlap)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-14)
    np.testing.assert_allclose(vector @ matrix, vector, atol=1e-15)
    assert vector.sum() == pytest.approx(1)
    factor = djax.relay_learning_rate_factor(tree, overlap=overlap)
    np.testing.assert_allclose(vector[:size], 1 / (size * factor), rtol=1e-12)
    limit = np.linalg.matrix_power(matrix, 2**14)
    np.testing.assert_allclose(limit, np.tile(vector, (len(vector), 1)), atol=1e-6)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_matrix_is_what_relay_computes(overlap):
    """From equal starts that stand for the past, then kicked apart once."""
    tree, steps = topologies.regular_tree(7), 12
    communicator = communicators.simulated(7)
    relay = djax.relay(tree, communicator, overlap=overlap)
    kick = np.random.default_rng(0).normal(size=(7, 2))

    def worker(kick):
        def step(carry, u):
            x, state = carry
            u, state = relay.update(u, state, x)
            return (x + u, state), x + u

        updates = jnp.concatenate([kick[None], jnp.zeros((steps - 1, 2))])
        x = jnp.zeros(2)
        return jax.lax.scan(step, (x, relay.init(x)), updates)[1]

    with jax.enable_x64(True):
        actual = np.asarray(communicator.spmd(worker)(jnp.asarray(kick)))
    matrix = theory.relay_matrix(tree, overlap=overlap)
    # y holds the models that are averaged next: those after the update, and their past.
    y = np.zeros((len(matrix), 2))
    y[:7] = kick
    for t in range(steps):
        y = matrix @ y
        np.testing.assert_allclose(actual[:, t], y[:7], atol=1e-14)


def test_mistakes():
    for function in (theory.relay_matrix, theory.relay_delays, theory.relay_constant):
        with pytest.raises(ValueError, match=r"needs a tree.*spanning_tree"):
            function(topologies.ring(4))
    with pytest.raises(ValueError, match="one worker alone"):
        theory.relay_constant(topologies.chain(1))
