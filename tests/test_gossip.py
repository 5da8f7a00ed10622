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
    """Gossips `x [n, ...]` without gradients; returns `[steps, n, ...]`."""
    communicator = communicators.simulated(
        topology.size, drop_probability=drop_probability
    )
    gossip = djax.gossip(topology, communicator, **options)

    models = conformance.average(gossip, communicator, x, steps)
    return np.asarray(models).swapaxes(0, 1)


def random_graph(size, seed):
    tree = nx.random_labeled_tree(size, seed=seed)
    return nx.compose(tree, nx.gnp_random_graph(size, 0.2, seed=seed))


@pytest.mark.slow
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
    plain = djax.gossip(ring, communicator, consensus_rate=0.7)
    constant = make(ring, communicator, consensus_rate=0.7)
    scheduled = make(ring, communicator, consensus_rate=lambda step: 0.7)
    with jax.enable_x64(True):
        expected, *found = (
            conformance.train(mechanism, communicator, dtype=jnp.float64)
            for mechanism in (plain, constant, scheduled)
        )
    for x in found:
        np.testing.assert_allclose(x, expected, rtol=1e-6)


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


@pytest.mark.parametrize(
    "rate", [0, -1, float("nan"), float("inf"), np.float32(-1), "1", None, lambda t: 1]
)
def test_bad_rates(rate):
    with pytest.raises(ValueError, match="consensus_rate must be"):
        djax.gossip(topologies.ring(4), communicators.simulated(4), consensus_rate=rate)


def test_a_worker_without_own_weight_that_hears_nobody_keeps_its_model():
    topology = topologies.ring(5, weights=0.5)
    x = jnp.arange(5.0)[:, None]
    steps = average(topology, x, steps=50, drop_probability=0.5)
    assert np.isfinite(steps).all()


def test_what_is_lost_does_no_harm():
    """A message that is not a number changes only those whom it reaches."""
    topology = topologies.ring(8)
    x = jnp.asarray([np.nan, *np.arange(7.0)])[:, None]
    first = average(topology, x, drop_probability=0.9)[0]
    assert np.isfinite(first[1:]).sum() >= 5


def test_losses_follow_the_probability_and_are_new_in_every_step():
    topology = topologies.ring(2)
    x = jnp.asarray([[0.0], [1.0]])
    communicator = communicators.simulated(2, drop_probability=0.25)
    gossip = djax.gossip(topology, communicator)

    def worker(x):
        def step(state, _):
            updates, state = gossip.update(jnp.zeros_like(x), state, x)
            return state, updates[0]

        return jax.lax.scan(step, gossip.init(x), length=4000)[1]

    heard = np.asarray(communicator.spmd(worker)(x)) != 0
    sigma = np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_allclose(heard.mean(1), 0.75, atol=4 * sigma)
    repeats = (heard[:, 1:] == heard[:, :-1]).mean(1)  # 0.75**2 + 0.25**2
    np.testing.assert_allclose(repeats, 0.625, atol=4 * np.sqrt(0.625 * 0.375 / 4000))


def test_keys_make_losses_differ():
    ring, communicator = (
        topologies.ring(4),
        communicators.simulated(4, drop_probability=0.5),
    )
    results = [
        conformance.train(djax.gossip(ring, communicator, key=key), communicator)
        for key in (None, jax.random.key(0), jax.random.key(1))
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_schedule_has_to_be_doubly_stochastic():
    """Else the workers' mean would move."""
    matrices = [[[0.5, 0.25], [0.5, 0.75]]]
    with pytest.raises(ValueError, match="row of worker 0 sums to 0.75: use push_sum"):
        djax.gossip(topologies.from_matrices(matrices), communicators.simulated(2))


def test_half_precision_is_averaged_in_single():
    """1/3 of a bfloat16 sum would miss by far more than one rounding."""
    topology, rng = topologies.complete(8), np.random.default_rng(0)
    x = jnp.asarray(100 + rng.normal(size=(8, 200)), jnp.bfloat16)
    communicator = communicators.simulated(8)
    for mechanism in (
        djax.gossip(topology, communicator),
        djax.all_reduce(communicator),
    ):

        def worker(x, mechanism=mechanism):
            return x + mechanism.update(jnp.zeros_like(x), mechanism.init(x), x)[0]

        mixed = np.asarray(communicator.spmd(worker)(x), np.float64)
        exact = np.asarray(x, np.float64).mean(0)
        # The update and the sum are rounded once each: 2^-9 of 2 and of 100.
        assert np.abs(mixed - exact).max() <= 100 * 2.0**-8
        assert np.abs(mixed.mean() - exact.mean()) < 0.02
