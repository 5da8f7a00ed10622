"""Tests of the mechanisms that send compressed messages, beyond the common ones."""

import conformance
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, compressors, topologies

SIZE = 8
RING, COMMUNICATOR = topologies.ring(SIZE), communicators.simulated(SIZE)
MECHANISMS = {
    "choco_gossip": lambda t, c: djax.choco_gossip(t, c, compressors.sign(), 0.3),
    "deep_squeeze": lambda t, c: djax.deep_squeeze(t, c, compressors.top_k(0.5), 0.1),
    "moniqua": lambda t, c: djax.moniqua(t, c, 4.0, 0.2),
    "dcd": lambda t, c: djax.dcd(t, c, compressors.quantize(6)),
    "ecd": lambda t, c: djax.ecd(t, c, compressors.quantize(6)),
    "power_gossip": lambda t, c: djax.power_gossip(t, c, rank=2),
}


def consensus(mechanism, x, steps):
    """Averages `x` (leading axis of workers) without gradients; returns all steps."""

    def worker(x):
        def step(carry, _):
            x, state = carry
            updates, state = mechanism.update(optax.tree.zeros_like(x), state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        return jax.lax.scan(step, (x, mechanism.init(x)), length=steps)[1]

    return jax.jit(COMMUNICATOR.spmd(worker))(x)


def models(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (6, 5), "b": (4,)}
    return {
        k: jnp.asarray(scale * rng.normal(size=(SIZE, *s))) for k, s in shapes.items()
    }


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        (
            djax.choco_gossip(RING, COMMUNICATOR, compressors.identity(), 1.0),
            djax.gossip(RING, COMMUNICATOR),
        ),
        (
            djax.deep_squeeze(RING, COMMUNICATOR, compressors.identity(), 0.7),
            djax.gossip(RING, COMMUNICATOR, consensus_rate=0.7),
        ),
        (
            djax.dcd(RING, COMMUNICATOR, compressors.identity()),
            djax.gossip(RING, COMMUNICATOR, overlap=True),
        ),
        (
            djax.ecd(RING, COMMUNICATOR, compressors.identity()),
            djax.gossip(RING, COMMUNICATOR, overlap=True),
        ),
    ],
)
def test_without_compression_they_are_gossip(compressed, plain):
    with jax.enable_x64(True):
        actual, expected = (
            conformance.train(m, COMMUNICATOR, dtype=jnp.float64)
            for m in (compressed, plain)
        )
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["choco_gossip", "deep_squeeze", "moniqua"])
def test_the_mean_stays_whatever_is_lost_on_the_way(name):
    mechanism = MECHANISMS[name](RING, COMMUNICATOR)
    with jax.enable_x64(True):

        @hypothesis.given(seed=st.integers(0, 10**6))
        @hypothesis.settings(max_examples=5)
        def check(seed):
            x = models(seed)
            for leaf, y in consensus(mechanism, x, 20).items():
                before = np.asarray(x[leaf]).mean(0)
                np.testing.assert_allclose(y[:, -1].mean(0), before, atol=1e-13)

        check()


@pytest.mark.parametrize("name", ["choco_gossip", "deep_squeeze", "moniqua"])
def test_equal_models_stay_equal_to_the_last_bit(name):
    x = jax.tree.map(
        lambda x: jnp.tile(x[:1], (SIZE,) + (1,) * (x.ndim - 1)), models(0)
    )
    last = consensus(MECHANISMS[name](RING, COMMUNICATOR), x, 30)
    for leaf, y in last.items():
        np.testing.assert_array_equal(y[:, -1], x[leaf])


@pytest.mark.slow
def test_choco_reaches_consensus_where_what_is_lost_is_sent_later():
    distances = {}
    for name, code, rate in (
        ("choco", compressors.top_k(0.2), 0.2),
        ("random_k", compressors.random_k(0.2), 0.1),
        ("quantize", compressors.quantize(4, unbiased=False), 0.3),
    ):
        mechanism = djax.choco_gossip(RING, COMMUNICATOR, code, rate)
        w = consensus(mechanism, models(0), 2000)["w"]
        distances[name] = float(jnp.square(w[:, -1] - w[:, -1].mean(0)[None]).max())
    assert max(distances.values()) < 1e-10, distances


def test_moniqua_is_exact_to_its_levels_and_needs_its_bound():
    x = models(0, scale=0.3)
    gap = max(float(jnp.abs(v - jnp.roll(v, 1, 0)).max()) for v in x.values())
    gossip = djax.gossip(RING, COMMUNICATOR, consensus_rate=0.5)
    exact = consensus(gossip, x, 1)
    for bits in (2, 8):
        mechanism = djax.moniqua(RING, COMMUNICATOR, gap, 0.5, bits=bits)
        # Two roundings of an edge, and weights that sum to 2/3.
        level = 2 * gap / (2**bits - 1 - 2)
        for leaf, y in consensus(mechanism, x, 1).items():
            assert float(jnp.abs(y - exact[leaf]).max()) <= 0.5 * 2 / 3 * 2 * level
    folded = djax.moniqua(RING, COMMUNICATOR, gap / 8, 0.5, bits=8)
    wrong = consensus(folded, x, 1)["w"]
    assert float(jnp.abs(wrong - exact["w"]).max()) > 0.1 * gap


@pytest.mark.slow
@pytest.mark.parametrize("make", [djax.dcd, djax.ecd])
def test_unbiased_codes_lead_close_to_the_mean(make):
    errors = []
    for seed in range(5):
        code = compressors.quantize(8, key=jax.random.key(seed))
        mechanism = make(RING, COMMUNICATOR, code)
        with jax.enable_x64(True):
            x = models(0)["w"]
            last = np.asarray(consensus(mechanism, x, 300)[:, -1])
            x = np.asarray(x)
        before = np.square(x - x.mean(0, keepdims=True)).sum()
        assert np.square(last - last.mean(0, keepdims=True)).sum() < 1e-5 * before
        errors.append(np.abs(last.mean(0) - x.mean(0)).max())
    # A message's relative error is sqrt(omega), 0.04; how they add up is random.
    assert np.median(errors) < 0.1


@pytest.mark.parametrize("make", [djax.dcd, djax.ecd])
def test_local_steps_are_not_lost(make):
    """What moves a model between two averages counts like an update."""
    inner = make(RING, COMMUNICATOR, compressors.identity())
    mechanism = djax.every(2, inner)
    x, updates = jnp.zeros((SIZE, 1)), jnp.ones((SIZE, 1))

    def worker(x, u):
        state = mechanism.init(x)
        for _ in range(6):
            out, state = mechanism.update(u, state, x)
            x = x + out
        return x

    np.testing.assert_allclose(COMMUNICATOR.spmd(worker)(x, updates), 6.0, rtol=1e-6)


def test_in_half_precision_the_copies_do_not_drift():
    """The neighbours' sums stay those of the models, for long."""
    mechanism = djax.dcd(RING, COMMUNICATOR, compressors.quantize(8))
    x = jax.tree.map(lambda v: v.astype(jnp.bfloat16), models(0))

    def worker(x):
        def step(carry, key):
            x, state = carry
            u = jax.tree.map(
                lambda v: 0.1 * jax.random.normal(key, v.shape, v.dtype), x
            )
            u, state = mechanism.update(u, state, x)
            return (optax.apply_updates(x, u), state), None

        keys = jax.random.split(jax.random.key(0), 500)
        (x, state), _ = jax.lax.scan(step, (x, mechanism.init(x)), keys)
        displacement = djax.mixing.displacement(state.estimate, RING, COMMUNICATOR)
        return x, state, displacement

    x, state, displacement = jax.jit(COMMUNICATOR.spmd(worker))(x)
    for leaf in x:
        np.testing.assert_allclose(
            state.displacement[leaf], displacement[leaf], atol=1e-4
        )
        np.testing.assert_allclose(
            x[leaf].astype(jnp.float32), state.estimate[leaf], rtol=2**-7, atol=2**-7
        )


def test_corrections_and_local_steps_wrap_them():
    """D² needs nearly exact averages: here rank 2 is the full one."""
    for mechanism in (
        djax.d2(
            djax.power_gossip(
                RING, COMMUNICATOR, 2, 2, consensus_rate=0.5, vector_rate=0.5
            )
        ),
        djax.gradient_tracking(
            djax.choco_gossip(RING, COMMUNICATOR, compressors.top_k(0.5), 0.4)
        ),
    ):
        final = conformance.train(mechanism, COMMUNICATOR, steps=3000)
        *_, optimum = conformance.quadratics(SIZE)
        np.testing.assert_allclose(final, np.tile(optimum, (SIZE, 1)), atol=1e-3)


@pytest.mark.parametrize("name", MECHANISMS)
def test_losing_messages_is_refused(name):
    lossy = communicators.simulated(SIZE, drop_probability=0.1)
    with pytest.raises(ValueError, match=f"{name} needs every message.* loses 0.1"):
        MECHANISMS[name](RING, lossy)


ON_SCHEDULES = {
    "choco_gossip": "does not change with time",
    "dcd": "does not change with time",
    "ecd": "does not change with time",
    "power_gossip": "needs a symmetric schedule",
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_schedule_or_another_size_is_refused(name):
    """Those that remember nothing of their neighbours take schedules."""
    schedule = topologies.one_peer_exponential(SIZE)
    if name in ON_SCHEDULES:
        with pytest.raises(ValueError, match=f"{name} .*{ON_SCHEDULES[name]}"):
            MECHANISMS[name](schedule, COMMUNICATOR)
    else:
        assert MECHANISMS[name](schedule, COMMUNICATOR).graph == schedule
    with pytest.raises(TypeError, match=f"{name} needs a Topology"):
        MECHANISMS[name](topologies.ring(SIZE).graph, COMMUNICATOR)
    with pytest.raises(ValueError, match="has 4 workers but the communicator has 8"):
        MECHANISMS[name](topologies.ring(4), COMMUNICATOR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, c: djax.moniqua(t, c, 0.0, 0.1), "theta must be positive"),
        (lambda t, c: djax.moniqua(t, c, 1.0, 0.1, bits=1), "bits must be 2 to 8"),
        (
            lambda t, c: djax.choco_gossip(t, c, compressors.sign(), -1.0),
            "consensus_rate must be positive",
        ),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(RING, COMMUNICATOR)


@pytest.mark.parametrize("make", [djax.dcd, djax.ecd])
def test_averages_of_older_models_are_refused_inside_of_corrections(make):
    mechanism = make(RING, COMMUNICATOR, compressors.identity())
    for correction in (djax.d2, djax.gradient_tracking):
        with pytest.raises(ValueError, match="averages older ones; use gossip"):
            correction(mechanism).init(jnp.ones(3))


@pytest.mark.parametrize("name", ["choco_gossip", "deep_squeeze", "moniqua"])
def test_overlap_is_refused_inside_of_corrections(name):
    code = compressors.sign()
    mechanism = {
        "choco_gossip": lambda: djax.choco_gossip(
            RING, COMMUNICATOR, code, 0.1, overlap=True
        ),
        "deep_squeeze": lambda: djax.deep_squeeze(
            RING, COMMUNICATOR, code, 0.1, overlap=True
        ),
        "moniqua": lambda: djax.moniqua(RING, COMMUNICATOR, 1.0, 0.1, overlap=True),
    }[name]()
    with pytest.raises(ValueError, match=f"use {name} without overlap"):
        djax.d2(mechanism).init(jnp.ones(3))
