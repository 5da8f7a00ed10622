"""Tests of gossip beyond those of `test_common.py`."""

import conformance
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies


def average(topology, x, *, steps=1, drop_probability=0.0, **options):
    """Gossips `x [n, ...]` without gradients."""
    communicator = communicators.simulated(
        topology.size, drop_probability=drop_probability
    )
    gossip = djax.gossip(topology, communicator, **options)

    def worker(x):
        def step(carry, _):
            x, state = carry
            updates, state = gossip.update(jnp.zeros_like(x), state, x)
            return (x + updates, state), x + updates

        (x, _), xs = jax.lax.scan(step, (x, gossip.init(x)), length=steps)
        return xs

    return np.asarray(jax.jit(communicator.spmd(worker))(x)).swapaxes(0, 1)


def random_graph(size, seed):
    tree = nx.random_labeled_tree(size, seed=seed)
    return nx.compose(tree, nx.gnp_random_graph(size, 0.2, seed=seed))


@hypothesis.given(size=st.integers(2, 12), seed=st.integers(0, 10**6))
@hypothesis.settings(max_examples=15)
def test_one_step_is_the_mixing_matrix_on_any_graph(size, seed):
    topology = topologies.from_networkx(random_graph(size, seed))
    x = np.random.default_rng(seed).normal(size=(size, 3))
    with jax.enable_x64(True):
        mixed = average(topology, jnp.asarray(x))[-1]
    np.testing.assert_allclose(mixed, topology.mixing_matrix @ x, atol=1e-14)
    np.testing.assert_allclose(mixed.mean(0), x.mean(0), atol=1e-15)


@pytest.mark.parametrize("overlap", [False, True])
def test_equal_models_stay_equal_to_the_last_bit(overlap):
    x = jnp.tile(jnp.asarray([0.1, 1 / 3, 1e-8]), (16, 1))
    mixed = average(topologies.exponential(16), x, steps=100, overlap=overlap)[-1]
    np.testing.assert_array_equal(mixed, x)


@pytest.mark.parametrize("graph", ["ring", "torus", "exponential", "star"])
def test_the_consensus_rate_is_that_of_the_spectral_gap(graph):
    topology = getattr(topologies, graph)(16)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)))
        xs = average(topology, x, steps=150)
    distance = np.square(xs - xs.mean(1, keepdims=True)).sum((1, 2))
    last = np.flatnonzero(distance > 1e-20)[-1]  # Before rounding takes over.
    measured = np.sqrt(distance[last] / distance[last - 10]) ** (1 / 10)
    assert measured == pytest.approx(1 - topology.spectral_gap, rel=1e-2)


def test_an_optimal_rate_beats_one_on_the_ring():
    """1.308 on the ring of 8 is 2 / ((1 - lambda_2) + (1 - lambda_min))."""
    topology = topologies.ring(8)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
    gaps = 2 - topology.lambda_2 - topology.lambda_min
    assert 2 / gaps == pytest.approx(1.3084, abs=1e-4)
    plain = average(topology, x, steps=30)[-1]
    tuned = average(topology, x, steps=30, consensus_rate=2 / gaps)[-1]
    assert np.var(tuned, axis=0).sum() < 0.1 * np.var(plain, axis=0).sum()


def test_lost_messages_renormalize_the_weights():
    topology = topologies.ring(6)
    x = jnp.arange(6.0)[:, None]
    steps = average(topology, x, steps=200, drop_probability=0.5)
    # Each worker's first step is one of the four averages over those it has heard.
    for worker, value in enumerate(steps[0][:, 0]):
        left, right = float((worker - 1) % 6), float((worker + 1) % 6)
        choices = [
            np.mean([worker, *heard]) for heard in ([], [left], [right], [left, right])
        ]
        assert np.isclose(choices, value).any()
    assert np.ptp(steps[-1]) < 1e-3  # They still agree, if not on the mean.
    assert 0 < steps[-1].mean() < 5


def test_losses_are_new_in_every_step():
    topology = topologies.ring(2)
    x = jnp.asarray([[0.0], [1.0]])
    steps = average(topology, x, steps=64, drop_probability=0.5)
    moved = np.abs(np.diff(steps[:, :, 0], axis=0, prepend=np.asarray(x).T)) > 0
    assert 0 < moved[:, 0].sum()
    assert np.isfinite(steps).all()


def test_without_losses_nothing_random_is_computed():
    ring, communicator = topologies.ring(4), communicators.simulated(4)
    gossip = djax.gossip(ring, communicator)
    x = jnp.ones((4, 3))
    state = communicator.spmd(gossip.init)(x)
    program = jax.jit(communicator.spmd(gossip.update)).lower(x, state, x).compile()
    assert "xor" not in program.as_text()  # Threefry's.


def test_hyperparameters_can_be_injected_and_scheduled():
    ring, communicator = topologies.ring(8), communicators.simulated(8)
    make = optax.inject_hyperparams(
        djax.gossip, static_args=("topology", "communicator", "overlap")
    )
    constant = make(ring, communicator, consensus_rate=0.7)
    scheduled = make(ring, communicator, consensus_rate=lambda step: 0.7)
    plain = conformance.train(
        djax.gossip(ring, communicator, consensus_rate=0.7), communicator
    )
    for mechanism in (constant, scheduled):
        np.testing.assert_allclose(
            conformance.train(mechanism, communicator), plain, rtol=1e-6
        )


def test_many_rates_run_in_one_program():
    ring, communicator = topologies.ring(8), communicators.simulated(8)
    x = jnp.arange(8.0)

    def run(rate):
        gossip = djax.gossip(ring, communicator, consensus_rate=rate)

        def worker(x):
            return gossip.update(jnp.zeros_like(x), gossip.init(x), x)[0]

        return communicator.spmd(worker)(x)

    rates = jnp.asarray([0.5, 1.0])
    half, whole = jax.jit(jax.vmap(run))(rates)
    np.testing.assert_allclose(2 * half, whole, rtol=1e-6)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_bad_rates(rate):
    with pytest.raises(ValueError, match="consensus_rate must be positive"):
        djax.gossip(topologies.ring(4), communicators.simulated(4), consensus_rate=rate)
