"""What travels between workers: lost, not finite, of another graph, not an array."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import directed

import djax
from djax import communicators, topologies
from djax._base import refusing

SIZE, SICK = 6, 2
OTHERS = [i for i in range(SIZE) if i != SICK]

each_communicator = pytest.mark.parametrize(
    "make", [communicators.simulated, communicators.mesh]
)

ROBUST = {
    "gossip": lambda c: djax.gossip(topologies.ring(SIZE), c),
    "gossip_overlap": lambda c: djax.gossip(topologies.star(SIZE), c, overlap=True),
    "every": lambda c: djax.every(2, djax.gossip(topologies.ring(SIZE), c)),
    "on_updates": lambda c: djax.on_updates(djax.relay(topologies.chain(SIZE), c)),
    "interleave": lambda c: djax.interleave(
        [djax.gossip(topologies.ring(SIZE), c), djax.relay(topologies.star(SIZE), c)]
    ),
    "push_sum": lambda c: djax.push_sum(directed(SIZE), c),
    "push_sum_balanced": lambda c: djax.push_sum(
        topologies.one_peer_exponential(SIZE), c, rounds=2
    ),
    **{
        f"relay_{missing}": lambda c, m=missing: djax.relay(
            topologies.chain(SIZE), c, missing=m
        )
        for missing in ("initial", "latest", "self", "renormalize")
    },
}
"""Mechanisms that can do without a message."""

NEEDY = {
    "all_reduce": lambda t, c, q: djax.all_reduce(c),
    "choco_gossip": lambda t, c, q: djax.choco_gossip(t, c, q, 0.4),
    "deep_squeeze": lambda t, c, q: djax.deep_squeeze(t, c, q, 0.4),
    "dcd": lambda t, c, q: djax.dcd(t, c, q),
    "ecd": lambda t, c, q: djax.ecd(t, c, q),
    "moniqua": lambda t, c, q: djax.moniqua(t, c, 1.0, 0.1),
    "power_gossip": lambda t, c, q: djax.power_gossip(t, c),
    "d2": lambda t, c, q: djax.d2(djax.gossip(t, c)),
    "gradient_tracking": lambda t, c, q: djax.gradient_tracking(djax.gossip(t, c)),
}
"""Mechanisms that cannot."""


def average(mechanism, communicator, x, *, steps=4, updates=None):
    """The workers' arrays after some steps with these updates, 0 by default."""
    updates = jax.tree.map(jnp.zeros_like, x) if updates is None else updates

    def worker(x, updates):
        state = mechanism.init(x)
        for _ in range(steps):
            u, state = mechanism.update(updates, state, x)
            x = optax.apply_updates(x, u)
        return x

    return jax.jit(communicator.spmd(worker))(x, updates)


def models(dtype=jnp.float32):
    x = np.random.default_rng(0).normal(size=(SIZE, 5, 3))
    return {
        "w": jnp.asarray(x, dtype),
        "b": jnp.asarray(x[:, 0, 0], dtype),
        "empty": jnp.zeros((SIZE, 0), dtype),
    }


@each_communicator
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ROBUST)
def test_what_is_not_finite_does_not_travel(name, bad, make):
    """One worker's NaN or infinity, in a leaf that is not the smallest."""
    communicator, x = make(SIZE), models()
    broken = x | {"w": x["w"].at[SICK, 4, 1].set(bad)}
    mechanism = ROBUST[name](communicator)
    after = average(mechanism, communicator, broken, updates=broken)
    for leaf in jax.tree.leaves(after):
        assert np.isfinite(np.asarray(leaf)[OTHERS]).all()


@pytest.mark.parametrize("sick", range(SIZE))
def test_it_counts_as_a_lost_message(sick):
    """The weights of those that came are divided by their sum."""
    star, communicator = topologies.star(SIZE), communicators.simulated(SIZE)
    x = np.random.default_rng(1).normal(size=(SIZE, 3)).astype(np.float32)
    broken = x.copy()
    broken[sick, 0] = np.nan
    after = average(
        djax.gossip(star, communicator), communicator, jnp.asarray(broken), steps=1
    )
    others = [i for i in range(SIZE) if i != sick]
    weights = star.mixing_matrix[np.ix_(others, others)]
    expected = weights / weights.sum(axis=1, keepdims=True) @ x[others]
    np.testing.assert_allclose(np.asarray(after)[others], expected, rtol=1e-5)


@pytest.mark.parametrize("missing", ["latest", "renormalize"])
def test_relay_goes_on_as_with_lost_messages(missing):
    """On a chain whose middle is broken, its sides average as if alone."""
    communicator = communicators.simulated(5)
    relay = djax.relay(topologies.chain(5), communicator, missing=missing)
    x = jnp.asarray([1.0, 3.0, np.nan, 5.0, 9.0])
    after = np.asarray(average(relay, communicator, x, steps=60))
    np.testing.assert_allclose(after[[0, 1]], after[0], rtol=1e-4)
    np.testing.assert_allclose(after[[3, 4]], after[3], rtol=1e-4)
    assert 1 < after[0] < 3 and 5 < after[3] < 9


def test_a_broken_start_of_worker_0_stands_for_nobody():
    communicator = communicators.simulated(4)
    relay = djax.relay(topologies.chain(4), communicator, missing="initial")
    x = jnp.asarray([np.nan, 1.0, 2.0, 3.0])
    assert np.isfinite(np.asarray(average(relay, communicator, x))[1:]).all()


@each_communicator
@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float8_e4m3fn", "complex64", "float32"]
)
@pytest.mark.parametrize("name", ["gossip", "push_sum", "relay_latest"])
def test_messages_of_all_dtypes_are_looked_at(name, dtype, make, as_users):
    if dtype == "float8_e4m3fn" and name != "gossip":
        pytest.skip("the transport is the same")
    communicator, x = make(SIZE), models(dtype)
    bad = 1j * np.inf if dtype == "complex64" else np.nan
    broken = x | {"w": x["w"].at[SICK, 0, 0].set(bad)}
    after = average(ROBUST[name](communicator), communicator, broken)
    for leaf in jax.tree.leaves(after):
        assert np.isfinite(np.asarray(leaf.astype("complex64"))[OTHERS]).all()


def test_many_runs_at_once():
    """Under a further vmap each run has its own broken worker."""
    communicator = communicators.simulated(3)
    gossip = djax.gossip(topologies.complete(3), communicator)
    x = jnp.asarray([[np.nan, 1.0, 3.0], [2.0, np.nan, 4.0], [1.0, 2.0, 6.0]])
    after = jax.vmap(lambda x: average(gossip, communicator, x, steps=1))(x)
    expected = [[np.nan, 2, 2], [3, np.nan, 3], [3, 3, 3]]
    np.testing.assert_allclose(after, expected, rtol=1e-6)


def test_it_adds_no_bytes():
    ring, x = topologies.ring(SIZE), jnp.zeros((10, 10))
    gossip = djax.gossip(ring, communicators.simulated(SIZE))
    assert djax.communication_cost(gossip, x, ring).mean_bytes == 2 * 4 * 100


@pytest.mark.parametrize("name", NEEDY)
def test_who_needs_every_message_can_be_refused(name):
    """Whoever lets a broken worker be isolated learns who cannot bear that."""
    ring, c = topologies.ring(4), communicators.simulated(4)
    mechanism = NEEDY[name](ring, c, djax.compressors.identity())
    chain = optax.chain(optax.sgd(0.1), djax.every(2, mechanism))
    with (
        refusing("the caller", needs_every_message=True),
        pytest.raises(ValueError, match=rf"the caller.*but {name} needs every message"),
    ):
        jax.eval_shape(c.spmd(chain.init), jnp.zeros((4, 3)))
    jax.eval_shape(c.spmd(chain.init), jnp.zeros((4, 3)))  # Outside nobody objects.


@pytest.mark.parametrize("name", ROBUST)
def test_who_can_do_without_a_message_is_welcome(name):
    c = communicators.simulated(SIZE)
    with refusing("the caller", needs_every_message=True):
        jax.eval_shape(c.spmd(ROBUST[name](c).init), jnp.zeros((SIZE, 3)))
    with refusing("the caller", needs_every_message=True), refusing("another"):
        jax.eval_shape(c.spmd(ROBUST[name](c).init), jnp.zeros((SIZE, 3)))
