"""Tests of push_sum beyond the common ones: directed graphs and their weights."""

import conformance
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies


def average(schedule, x, steps, *, drop_probability=0.0, **options):
    """Averages without gradients; returns z, weights and models, `[steps, n, ...]`."""
    communicator = communicators.simulated(
        schedule.size, drop_probability=drop_probability
    )
    mechanism = djax.push_sum(schedule, communicator, **options)

    def read(z, state):
        return z, state.weight, djax.push_sum_eval_params(state, z)

    results = conformance.average(mechanism, communicator, x, steps, read)
    return [np.asarray(r).swapaxes(0, 1) for r in results]


def random_schedule(size, period, seed):
    """Random splits on random directed graphs that contain a ring."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, (period, size, size))
    weights *= rng.uniform(size=weights.shape) < 0.3
    weights += np.eye(size) + np.roll(np.eye(size), 1, axis=0)
    return topologies.from_matrices(weights / weights.sum(1, keepdims=True))


@hypothesis.given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 10**6))
@hypothesis.settings(max_examples=8)
def test_models_converge_to_the_mean_on_any_directed_graph(size, period, seed):
    schedule = random_schedule(size, period, seed)
    x = np.random.default_rng(seed).normal(size=(size, 3))
    with jax.enable_x64(True):
        z, weight, models = average(schedule, jnp.asarray(x), 300)
    for t in range(300):  # The sums of both stay.
        np.testing.assert_allclose(z[t].sum(0), x.sum(0), atol=1e-12)
        np.testing.assert_allclose(weight[t].sum(), size, rtol=1e-13)
    product = np.eye(size)
    for t in range(5):
        product = schedule.matrices[t % period] @ product
        np.testing.assert_allclose(z[t], product @ x, atol=1e-13)
        np.testing.assert_allclose(weight[t], product.sum(1), rtol=1e-13)
    np.testing.assert_allclose(models[-1], np.tile(x.mean(0), (size, 1)), atol=1e-8)


def test_sgp_reaches_the_optimum_on_a_directed_graph():
    """Gradients at z / w; at z the workers would follow another objective."""
    schedule = random_schedule(8, 2, seed=1)
    communicator = communicators.simulated(8)
    rate = optax.exponential_decay(0.2, 200, 0.5)
    hessian, target, optimum = conformance.quadratics(8)

    def train(eval_params):
        optimizer = djax.sgp(rate, schedule, communicator)

        def worker(hessian, target):
            def step(carry, _):
                z, state = carry
                gradient = hessian * (eval_params(state, z) - target)
                updates, state = optimizer.update(gradient, state, z)
                return (z + updates, state), None

            z = jnp.zeros_like(target)
            (z, state), _ = jax.lax.scan(step, (z, optimizer.init(z)), length=2000)
            return djax.push_sum_eval_params(state, z)

        arrays = (jnp.asarray(a, jnp.float32) for a in (hessian, target))
        return np.abs(np.asarray(communicator.spmd(worker)(*arrays)) - optimum).max()

    assert train(djax.push_sum_eval_params) < 1e-2
    assert train(lambda state, z: z) > 0.03


@pytest.mark.parametrize("size", [2, 8, 16])
def test_one_peer_exponential_averages_exactly_in_a_period(size):
    schedule = topologies.one_peer_exponential(size)
    x = np.random.default_rng(0).normal(size=(size, 2))
    with jax.enable_x64(True):
        z, weight, _ = average(schedule, jnp.asarray(x), 1, rounds=schedule.period)
    np.testing.assert_array_equal(weight, 1)
    np.testing.assert_allclose(z[0], np.tile(x.mean(0), (size, 1)), atol=1e-15)


def test_weights_travel_only_where_they_change():
    params = jax.ShapeDtypeStruct((10,), "float32")
    balanced = topologies.one_peer_exponential(8)
    communicator = communicators.simulated(8)
    cost = djax.communication_cost(
        djax.push_sum(balanced, communicator, rounds=2), params, balanced
    )
    assert (cost.mean_bytes, cost.mean_messages) == (80, 2)
    directed = conformance.directed(8)
    cost = djax.communication_cost(
        djax.push_sum(directed, communicator), params, directed
    )
    assert cost.bytes_per_period == tuple(44 * m for m in cost.messages_per_period)


def test_who_hears_nothing_keeps_its_own():
    """As the RelaySGD paper's SGP does: on one-peer graphs the weights stay 1."""
    schedule = topologies.one_peer_exponential(4)
    x = jnp.arange(4.0)[:, None]
    z, weight, _ = average(schedule, x, 200, drop_probability=0.5)
    np.testing.assert_array_equal(weight, 1)
    left = np.roll(np.arange(4.0), 1)
    kept = np.isclose(z[0][:, 0], np.arange(4.0))
    assert (kept | np.isclose(z[0][:, 0], (np.arange(4.0) + left) / 2)).all()
    assert np.ptp(z[-1]) < 1e-3


@pytest.mark.parametrize("wrapped", [0, 2])
def test_eval_params_needs_one_state(wrapped):
    state = djax.PushSumState(jnp.ones(()), 0)
    with pytest.raises(ValueError, match=f"exactly one PushSumState, got {wrapped}"):
        djax.push_sum_eval_params((state,) * wrapped, jnp.ones(2))
    chain = (optax.EmptyState(), {"inside": state._replace(weight=jnp.full((), 2.0))})
    halved = djax.push_sum_eval_params(chain, jnp.ones(2, jnp.bfloat16))
    np.testing.assert_array_equal(halved, jnp.full(2, 0.5, jnp.bfloat16))


def test_on_a_topology_it_is_gossip():
    """Whose weights are symmetric, so that nothing has to be divided by."""
    ring, communicator = topologies.ring(4), communicators.simulated(4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))

    def step(mechanism):
        def worker(x):
            return mechanism.update(0.1 * x, mechanism.init(x), x)[0]

        return communicator.spmd(worker)(x)

    found, expected = (
        step(make(ring, communicator)) for make in (djax.push_sum, djax.gossip)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mistakes():
    communicator, schedule = (
        communicators.simulated(4),
        topologies.one_peer_exponential(4),
    )
    with pytest.raises(TypeError, match=r"topologies.from_networkx\(graph\)"):
        djax.push_sum(topologies.ring(4).graph, communicator)
    with pytest.raises(ValueError, match="4 workers but the communicator has 5"):
        djax.push_sum(schedule, communicators.simulated(5))
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
        djax.push_sum(schedule, communicator, rounds=0)
