"""Tests of every, on_updates, interleave and all_reduce beyond the common ones."""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies
from djax.corrections._interleave import _collect, _deal

SIZE = 4


def test_every_step_is_the_mechanism_itself():
    ring, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    gossip = djax.gossip(ring, communicator)
    np.testing.assert_array_equal(
        conformance.train(djax.every(1, gossip), communicator),
        conformance.train(gossip, communicator),
    )


@pytest.mark.parametrize("k", [0, -1, 1.5, "2"])
def test_every_needs_a_positive_integer(k):
    with pytest.raises(ValueError, match="every: k must be an integer of at least 1"):
        djax.every(k, optax.identity())


def test_rare_averaging_lets_the_mechanism_count_its_own_steps():
    ring, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    mechanism = djax.every(3, djax.gossip(ring, communicator))
    states = conformance.average(
        mechanism, communicator, jnp.ones(SIZE), 7, read=lambda params, state: state
    )
    np.testing.assert_array_equal(states.step[:, -1], 7)
    np.testing.assert_array_equal(states.mechanism_state.step[:, -1], 2)


def test_averaged_gradients_are_data_parallel_training():
    """Adam on averaged gradients keeps replicas equal, and equals one big batch."""
    communicator = communicators.simulated(SIZE)
    optimizer = optax.chain(
        djax.on_updates(djax.all_reduce(communicator)), optax.adam(0.1)
    )
    targets = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 3)), jnp.float32)

    def train(optimizer, gradient, x):
        state = optimizer.init(x)
        for _ in range(10):
            updates, state = optimizer.update(gradient(x), state, x)
            x = optax.apply_updates(x, updates)
        return x

    with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it.
        many = communicator.spmd(
            lambda target: train(optimizer, lambda x: x - target, jnp.zeros(3))
        )(targets)
        one = train(optax.adam(0.1), lambda x: x - targets.mean(0), jnp.zeros(3))
    np.testing.assert_allclose(many, np.tile(one, (SIZE, 1)), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_interleave_deals_and_collects(count):
    shapes = [(2, 3), (), (5,), (1, 1), (4, 2)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    flat = np.arange(sum(sizes), dtype=np.float32)
    ends = np.cumsum(sizes)[:-1]
    tree = [
        jnp.asarray(part.reshape(shape))
        for part, shape in zip(np.split(flat, ends), shapes, strict=True)
    ]
    shares = _deal(tree, count)
    for k, share in enumerate(shares):
        np.testing.assert_array_equal(np.concatenate(share), flat[k::count])
    for leaf, back in zip(tree, _collect(shares, tree), strict=True):
        np.testing.assert_array_equal(leaf, back)


def test_averaged_updates_start_from_zero_parameters():
    seen = []

    def init_fn(params):
        seen.append(params)
        return optax.EmptyState()

    spy = optax.GradientTransformation(init_fn, lambda u, s, p: (u, s))
    djax.on_updates(spy).init(jnp.ones(3))
    np.testing.assert_array_equal(seen[0], np.zeros(3))


def test_the_alias_passes_everything_on():
    ring, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    alias = djax.dpsgd(
        0.1, ring, communicator, momentum=0.9, nesterov=True, consensus_rate=0.3
    )
    chain = optax.chain(
        optax.sgd(0.1, 0.9, True), djax.gossip(ring, communicator, consensus_rate=0.3)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 3)), jnp.float32)
    results = [
        communicator.spmd(lambda x, o=o: o.update(x, o.init(x), x)[0])(x)
        for o in (alias, chain)
    ]
    np.testing.assert_array_equal(*results)


def test_interleave_needs_mechanisms():
    with pytest.raises(ValueError, match="at least one"):
        djax.interleave([])


def test_interleave_is_each_mechanism_on_its_coordinates():
    trees = topologies.double_binary_trees(8)
    communicator = communicators.simulated(8)
    mechanism = djax.interleave([djax.gossip(t, communicator) for t in trees])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 7)), jnp.float32)

    def worker(x):
        return x + mechanism.update(jnp.zeros_like(x), mechanism.init(x), x)[0]

    mixed = np.asarray(communicator.spmd(worker)(x))
    for k, tree in enumerate(trees):
        np.testing.assert_allclose(
            mixed[:, k::2], tree.mixing_matrix @ x[:, k::2], atol=1e-6
        )


def test_all_reduce_replicas_stay_equal_to_the_last_bit():
    communicator = communicators.simulated(SIZE)
    mechanism = djax.all_reduce(communicator)

    def worker(x, noise):
        def step(carry, u):
            x, state = carry
            updates, state = mechanism.update(u, state, x)
            return (x + updates, state), None

        (x, _), _ = jax.lax.scan(step, (x, mechanism.init(x)), noise)
        return x

    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.normal(size=(SIZE, 50, 3)), jnp.float32)
    x = np.asarray(communicator.spmd(worker)(jnp.ones((SIZE, 3)), noise))
    np.testing.assert_array_equal(x, np.tile(x[0], (SIZE, 1)))
