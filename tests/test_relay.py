"""Tests of relay beyond the common ones: who hears what, when, and how much of it."""

import conformance
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest
import references

import djax
from djax import communicators, theory, topologies

TREES = {
    "chain": topologies.chain,
    "star": topologies.star,
    "binary_tree": topologies.binary_tree,
    "regular_tree": topologies.regular_tree,
}


def run(mechanism, communicator, updates, x=None):
    """Feeds `updates [workers, steps, ...]`; returns `x [workers, steps, ...]`."""
    x = jnp.zeros_like(updates[:, 0]) if x is None else x

    def worker(x, updates):
        def step(carry, u):
            x, state = carry
            u, state = mechanism.update(u, state, x)
            return (x + u, state), x + u

        return jax.lax.scan(step, (x, mechanism.init(x)), updates)[1]

    return np.asarray(jax.jit(communicator.spmd(worker))(x, updates))


def unit_impulses(size, steps):
    """In the first step every worker emits one in the coordinate of its rank."""
    impulses = np.zeros((size, steps, size))
    impulses[:, 0] = np.eye(size)
    return jnp.asarray(impulses)


def check_delivery(tree, overlap):
    """Each impulse is added once, with weight 1/n, after the promised delay."""
    communicator = communicators.simulated(tree.size)
    mechanism = djax.on_updates(djax.relay(tree, communicator, overlap=overlap))
    delays = theory.relay_delays(tree, overlap=overlap)
    steps = delays.max() + 3
    with jax.enable_x64(True):
        x = run(mechanism, communicator, unit_impulses(tree.size, steps))
    arrived = np.arange(steps)[:, None] >= delays[:, None]  # [worker, step, source]
    np.testing.assert_allclose(x, arrived / tree.size, rtol=1e-14, atol=0)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", TREES)
def test_every_impulse_arrives_when_promised_with_equal_weight(name, overlap):
    check_delivery(TREES[name](12), overlap)


@hypothesis.given(st.integers(2, 12), st.integers(0, 10**6), st.booleans())
@hypothesis.settings(max_examples=8)
def test_every_impulse_arrives_on_random_trees(size, seed, overlap):
    tree = topologies.from_networkx(nx.random_labeled_tree(size, seed=seed))
    check_delivery(tree, overlap)


def test_double_trees_deliver_each_their_coordinates():
    trees, communicator = (
        topologies.double_binary_trees(10),
        communicators.simulated(10),
    )
    mechanism = djax.on_updates(
        djax.interleave([djax.relay(tree, communicator) for tree in trees])
    )
    with jax.enable_x64(True):
        impulses = jnp.repeat(unit_impulses(10, 8), 2, axis=-1)
        x = run(mechanism, communicator, impulses)
    for k, tree in enumerate(trees):
        arrived = np.arange(8)[:, None] >= theory.relay_delays(tree)[:, None]
        np.testing.assert_allclose(x[..., k::2], arrived / 10, rtol=1e-14, atol=0)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", TREES)
def test_the_learning_rate_factor_is_what_becomes_of_an_impulse(name, overlap):
    tree = TREES[name](9)
    communicator = communicators.simulated(tree.size)
    relay = djax.relay(tree, communicator, overlap=overlap)
    impulses = np.zeros((tree.size, 1500, 1))
    impulses[:, 0] = 1
    with jax.enable_x64(True):
        x = run(relay, communicator, jnp.asarray(impulses))
    factor = djax.relay_learning_rate_factor(tree, overlap=overlap)
    np.testing.assert_allclose(x[:, -1], 1 / factor, rtol=1e-8)


def test_two_workers_are_all_reduce():
    communicator = communicators.simulated(2)
    relayed, reduced = (
        conformance.train(mechanism, communicator, steps=50)
        for mechanism in (
            djax.relay(topologies.chain(2), communicator),
            djax.all_reduce(communicator),
        )
    )
    np.testing.assert_allclose(relayed, reduced, rtol=1e-5)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("missing", ["initial", "latest", "self", "renormalize"])
def test_missing_models_are_replaced_as_asked(missing, overlap):
    tree = topologies.binary_tree(8)
    communicator = communicators.simulated(8)
    with jax.enable_x64(True):
        relay = djax.relay(tree, communicator, missing=missing, overlap=overlap)
        actual = conformance.train(relay, communicator, dtype=jnp.float64)
    hessian, target, _ = conformance.quadratics(8)
    expected = references.relay(
        lambda x: hessian * (x - target),
        conformance.start(8),
        0.1,
        20,
        tree.mixing_matrix,
        missing=missing,
        overlap=overlap,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


def relay_by_edges(tree, x, updates, arrived, missing, overlap):
    """Algorithm 1 with messages in a dictionary; `arrived[t][i, j]`: j's came to i."""
    n, start = len(x), x[0]
    sums, counts = {}, {}
    for t, update in enumerate(updates):
        u = x + update
        before = sums, counts
        sums, counts = {}, {}
        for i in range(n):
            for j in tree.neighbors(i):
                if not arrived[t][j, i]:
                    continue
                rest = [k for k in tree.neighbors(i) if k != j]
                known = [k for k in rest if (k, i) in before[0]]
                sums[i, j] = u[i] + sum(before[0][k, i] for k in known)
                counts[i, j] = 1 + sum(before[1][k, i] for k in known)
        used = before if overlap else (sums, counts)
        new = np.empty_like(x)
        for i in range(n):
            heard = [k for k in tree.neighbors(i) if (k, i) in used[0]]
            total = u[i] + sum(used[0][k, i] for k in heard)
            count = 1 + sum(used[1][k, i] for k in heard)
            if missing == "renormalize":
                new[i] = total / count
            else:
                pad = {"initial": start, "latest": x[i], "self": u[i]}[missing]
                new[i] = (total + (n - count) * pad) / n
        x = new
    return x


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("missing", ["initial", "latest", "self", "renormalize"])
def test_a_lost_message_takes_all_that_it_carries_with_it(missing, overlap):
    tree, steps = topologies.regular_tree(9), 25
    communicator = communicators.simulated(9, drop_probability=0.3)
    rng = np.random.default_rng(0)
    start, updates = rng.normal(size=(9, 3)), rng.normal(size=(9, steps, 3))

    def draw():
        keys = [jax.random.fold_in(jax.random.key(0), t) for t in range(steps)]
        return jnp.asarray(
            [[communicator.arrived(s, key) for s in tree.rounds] for key in keys]
        )

    with jax.enable_x64(True):  # The draws are others in single precision.
        came = np.asarray(jax.vmap(draw, axis_name="workers", axis_size=9)())
    arrived = np.zeros((steps, 9, 9), bool)
    for r, source in enumerate(tree.rounds):
        arrived[:, np.arange(9), source] = came[:, :, r].T
    with jax.enable_x64(True):
        relay = djax.relay(tree, communicator, missing=missing, overlap=overlap)
        x = run(relay, communicator, jnp.asarray(updates), jnp.asarray(start))
    expected = relay_by_edges(
        tree, start, updates.swapaxes(0, 1), arrived, missing, overlap
    )
    assert 0.6 < came.mean() < 0.9
    np.testing.assert_allclose(x[:, -1], expected, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("drop_probability", [0.0, 0.4])
def test_equal_models_stay_equal_to_the_last_bit(dtype, drop_probability):
    """Sums of 8 models of 10000 would be beyond a float16's range."""
    tree = topologies.star(8)
    communicator = communicators.simulated(tree.size, drop_probability=drop_probability)
    values = jnp.asarray([0.1, 1 / 3, 10000.0, 1e-5], dtype)
    x = jnp.tile(values, (tree.size, 1))
    relay = djax.relay(tree, communicator)

    history = run(relay, communicator, jnp.zeros((8, 4, 4), dtype), x)
    np.testing.assert_array_equal(history[:, -1], x)


def test_the_start_of_worker_0_stands_for_missing_models():
    communicator = communicators.simulated(3)
    relay = djax.relay(topologies.chain(3), communicator)
    x = jnp.asarray([[5.0], [1.0], [3.0]])
    state = communicator.spmd(relay.init)(x)
    np.testing.assert_array_equal(state.initial, [[5.0]] * 3)
    alone = relay.init(x[1])  # Outside of the program, for its shapes.
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(lambda s: s.shape[1:], state)
    np.testing.assert_array_equal(alone.initial, [1.0])


def test_what_is_kept_is_a_model_for_each_neighbour():
    tree, communicator = topologies.binary_tree(16), communicators.simulated(16)
    for missing, extra in (("initial", 1), ("latest", 0)):
        relay = djax.relay(tree, communicator, missing=missing)
        shapes = jax.eval_shape(relay.init, jnp.zeros(1000))
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert size == 1000 * (tree.max_degree + extra) + tree.max_degree + 1


def test_relay_adam_serves_all_objectives_better_than_any_worker_alone():
    communicator, tree = communicators.simulated(8), topologies.chain(8)
    hessian, target, _ = conformance.quadratics(8)
    schedule = optax.exponential_decay(0.05, 300, 0.5)
    optimizer = optax.chain(optax.adam(schedule), djax.relay(tree, communicator))

    def worker(hessian, target):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(hessian * (x - target), state, x)
            return (x + updates, state), None

        x = jnp.zeros_like(target)
        return jax.lax.scan(step, (x, optimizer.init(x)), length=3000)[0][0]

    def loss(x):
        return (hessian * (x - target) ** 2).sum(1).mean()

    with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it.
        final = communicator.spmd(worker)(
            jnp.asarray(hessian, jnp.float32), jnp.asarray(target, jnp.float32)
        )
    final = np.asarray(final)
    assert np.ptp(final, axis=0).max() < 1e-3
    assert max(map(loss, final)) < 0.9 * min(map(loss, target))


@pytest.mark.parametrize(
    ("tree", "options", "error", "message"),
    [
        (
            topologies.ring(4),
            {},
            ValueError,
            "4 edges, a tree has 3. Use topol",
        ),
        (topologies.chain(5), {}, ValueError, "has 5 workers but the communicator"),
        (topologies.chain(4), {"missing": "none"}, ValueError, "one of 'initial'"),
        (
            topologies.one_peer_exponential(4),
            {},
            TypeError,
            "Schedule has no fixed neighbours",
        ),
    ],
)
def test_mistakes(tree, options, error, message):
    with pytest.raises(error, match=message):
        djax.relay(tree, communicators.simulated(4), **options)


def test_the_alias_is_the_chain():
    communicator, tree = communicators.simulated(4), topologies.chain(4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    updates = jnp.tile(x[:, None], (1, 10, 1))
    relay = djax.relay(tree, communicator, missing="self", overlap=True)
    pairs = [
        (
            djax.relay_sgd(
                0.1, tree, communicator, momentum=0.9, missing="self", overlap=True
            ),
            optax.chain(optax.sgd(0.1, 0.9), relay),
        ),
        (
            djax.relay_sgd(0.1, [tree, tree], communicator),
            optax.chain(
                optax.sgd(0.1), djax.interleave([djax.relay(tree, communicator)] * 2)
            ),
        ),
        (
            djax.relay_sgd_grad(0.1, tree, communicator, momentum=0.9, nesterov=True),
            optax.chain(
                optax.sgd(0.1, 0.9, True),
                djax.on_updates(djax.relay(tree, communicator)),
            ),
        ),
    ]
    for alias, chain in pairs:
        np.testing.assert_array_equal(
            run(alias, communicator, updates), run(chain, communicator, updates)
        )


def test_where_messages_are_lost_the_start_does_not_come_back():
    """By default a worker's latest average stands for models that were lost."""
    tree, lossy = topologies.chain(6), communicators.simulated(6, drop_probability=0.1)
    assert djax.relay(tree, lossy).arguments["missing"] is None
    found = conformance.train(
        djax.relay(tree, lossy), lossy, steps=2000, learning_rate=0.05
    )
    same = djax.relay(tree, lossy, missing="latest")
    expected = conformance.train(same, lossy, steps=2000, learning_rate=0.05)
    np.testing.assert_array_equal(found, expected)
    *_, optimum = conformance.quadratics(6)
    assert np.abs(found - optimum).max() < 0.05
    stuck = djax.relay(tree, lossy, missing="initial")
    away = conformance.train(stuck, lossy, steps=2000, learning_rate=0.05)
    assert np.abs(away - optimum).max() > 0.3
