"""Messages in fewer bits: what stays exact, and what is lost."""

import functools

import conformance
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import djax
from djax import communicators, compressors, mixing, topologies
from djax.communicators._common import MESSAGE_DTYPES

N = 8
RING, CHAIN = topologies.ring(N), topologies.chain(N)
IN_TIME = topologies.base_graph(N)

MECHANISMS = {
    "gossip": lambda c: djax.gossip(RING, c),
    "gossip_overlap": lambda c: djax.gossip(RING, c, overlap=True),
    "gossip_in_time": lambda c: djax.gossip(IN_TIME, c),
    "every": lambda c: djax.every(3, djax.gossip(RING, c)),
    "interleave": lambda c: djax.interleave(
        [djax.gossip(RING, c), djax.gossip(CHAIN, c)]
    ),
    "d2": lambda c: djax.d2(djax.gossip(RING, c, consensus_rate=0.5)),
    "gradient_tracking": lambda c: djax.gradient_tracking(djax.gossip(RING, c)),
    "led": lambda c: djax.led(3, djax.gossip(RING, c), 0.2),
    "k_gt": lambda c: djax.k_gt(3, djax.gossip(RING, c)),
    "prox_skip": lambda c: djax.prox_skip(0.5, djax.gossip(RING, c), 0.2),
    "momentum_tracking": lambda c: djax.momentum_tracking(0.1, RING, c),
    "beer": lambda c: djax.beer(0.1, RING, c, compressors.top_k(0.5), 0.3),
    "gut": lambda c: djax.gut(0.1, RING, c),
    "push_sum": lambda c: djax.push_sum(topologies.one_peer_exponential(N), c),
    "power_gossip": lambda c: djax.power_gossip(RING, c),
    "power_gossip_in_time": lambda c: djax.power_gossip(IN_TIME, c, rank=2),
    "choco_gossip": lambda c: djax.choco_gossip(RING, c, compressors.top_k(0.5), 0.3),
    "choco_sign": lambda c: djax.choco_gossip(RING, c, compressors.sign(), 0.2),
    "deep_squeeze": lambda c: djax.deep_squeeze(RING, c, compressors.top_k(0.5), 0.05),
    "moniqua": lambda c: djax.moniqua(RING, c, 8.0, 0.1, bits=8),
}
"""Mechanisms that keep the mean of the workers."""

LOSING = {
    "relay": lambda c: djax.relay(CHAIN, c, missing="latest"),
    "dcd": lambda c: djax.dcd(RING, c, compressors.identity()),
    "ecd": lambda c: djax.ecd(RING, c, compressors.identity()),
}
"""Mechanisms whose average is what was sent: they lose what rounding leaves out."""


def workers(dtype="bfloat16", **options):
    return communicators.simulated(N, message_dtype=dtype, **options)


def models():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(N, 6, 5)) + rng.normal(size=(1, 6, 5))
    b = rng.normal(size=(N, 7))
    return {"b": jnp.asarray(b, jnp.float32), "w": jnp.asarray(w, jnp.float32)}


@functools.cache
def averaging(mechanism, communicator):
    """A program for any number of steps, so that it is compiled once."""

    def run(x, steps):
        def worker(x):
            def step(_, carry):
                x, state = carry
                nothing = jax.tree.map(jnp.zeros_like, x)
                updates, state = mechanism.update(nothing, state, x)
                return optax.apply_updates(x, updates), state

            return jax.lax.fori_loop(0, steps, step, (x, mechanism.init(x)))

        return communicator.spmd(worker)(x)

    return jax.jit(run)


def average(mechanism, communicator, x, steps):
    """The models after some steps without gradients, and the last state."""
    return averaging(mechanism, communicator)(x, steps)


def flat(tree):
    return np.concatenate(
        [np.asarray(x, np.float64).reshape(N, -1) for x in jax.tree.leaves(tree)], 1
    )


def drift(after, before):
    """How far the mean has moved, relative to its norm."""
    moved = flat(after).mean(0) - flat(before).mean(0)
    return np.linalg.norm(moved) / np.linalg.norm(flat(before).mean(0))


def spread(tree):
    """The consensus distance, relative to the norm of the mean."""
    x = flat(tree)
    distance = np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())
    return distance / np.linalg.norm(x.mean(0))


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("name", MECHANISMS)
def test_the_mean_stays_and_equal_models_stay_equal(name, seed):
    communicator, x = workers(rounding_seed=seed), models()
    mechanism = MECHANISMS[name](communicator)
    after, _ = average(mechanism, communicator, x, steps=1000)
    assert drift(after, x) < 1e-4
    equal = jax.tree.map(lambda v: jnp.broadcast_to(v[:1], v.shape), x)
    after, _ = average(mechanism, communicator, equal, steps=20)
    for leaf in map(np.asarray, jax.tree.leaves(after)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    assert drift(after, equal) < 1e-6


@pytest.mark.parametrize("name", LOSING)
def test_what_the_others_lose(name):
    """Relay's messages are rounded at each hop, and nobody knows by how much."""
    communicator, x = workers(), models()
    after, _ = average(LOSING[name](communicator), communicator, x, steps=1000)
    exact = communicators.simulated(N)
    expected, _ = average(LOSING[name](exact), exact, x, steps=1000)
    lost = np.linalg.norm(flat(after) - flat(expected)) / np.linalg.norm(flat(expected))
    known = {"relay": 0.0065, "dcd": 0.0005, "ecd": 0.005}  # As their docstrings say.
    assert lost == pytest.approx(known[name], rel=0.3)
    equal = jax.tree.map(lambda v: jnp.broadcast_to(v[:1], v.shape), x)
    after, _ = average(LOSING[name](communicator), communicator, equal, steps=20)
    assert spread(after) == 0


def test_relay_refuses_rounding_at_random():
    with pytest.raises(ValueError, match="relay: stochastic rounding would part equal"):
        djax.relay(CHAIN, workers(rounding_seed=0))


def test_an_all_reduce_is_exact_whatever_travels():
    c, x = workers(), models()
    after, _ = average(djax.all_reduce(c), c, x, steps=1)
    np.testing.assert_allclose(
        flat(after), np.tile(flat(x).mean(0), (N, 1)), rtol=1e-5, atol=1e-6
    )


FLOATS = {"gossip": 37, "power_gossip": 12.5, "choco_sign": 2, "relay": 37}
"""Of a message with one matrix of 6 x 5 and one vector of 7: the other numbers, counts
of models and packed signs, are integers. PowerGossip sends 5 or 6 and the vector."""

GRAPHS = {"gossip": RING, "power_gossip": RING, "choco_sign": RING, "relay": CHAIN}


@pytest.mark.parametrize("dtype", [*MESSAGE_DTYPES, None])
@pytest.mark.parametrize("name", FLOATS)
def test_bytes_are_those_of_the_dtype(name, dtype):
    make = (MECHANISMS | LOSING)[name]
    x = {"b": jnp.zeros(7), "w": jnp.zeros((6, 5))}
    wide = djax.communication_cost(make(communicators.simulated(N)), x, RING)
    found = djax.communication_cost(make(workers(dtype)), x, RING)
    size = 4 if dtype is None else jnp.dtype(dtype).itemsize
    messages = np.array([len(GRAPHS[name].neighbors(i)) for i in range(N)])
    floats = messages * FLOATS[name]
    expected = np.array(wide.bytes_per_step) - floats * (4 - size)
    np.testing.assert_array_equal(found.bytes_per_step, expected)
    assert found.messages_per_step == wide.messages_per_step


def test_both_ends_of_an_edge_hold_the_same_factors():
    communicator, x = workers(), models()
    _, state = average(MECHANISMS["power_gossip"](communicator), communicator, x, 7)
    for side in (state.left, state.right):
        factors = np.asarray(side["w"])
        for r, source in enumerate(RING.rounds):
            np.testing.assert_array_equal(factors[:, r], factors[list(source), r])


@pytest.mark.parametrize("dtype", MESSAGE_DTYPES)
def test_rounding_is_to_the_nearest_number(dtype):
    """Of numbers of all sizes; what is finite stays so, and what is not as well."""
    largest = float(jnp.finfo(dtype).max)
    numbers = (
        np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-5, 5)[:, None]
    )
    x = np.float32([*numbers.ravel(), 0, -0.0, np.inf, -np.inf, np.nan, 3e38, -1e30])
    found = np.asarray(mixing.as_sent(jnp.asarray(x), workers(dtype)))
    clipped = np.where(np.isfinite(x), np.clip(x, -largest, largest), x)
    expected = clipped.astype(getattr(ml_dtypes, dtype, dtype)).astype(np.float32)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(found[finite], expected[finite])
    assert np.isfinite(found[finite]).all() and not np.isfinite(found[~finite]).any()


@pytest.mark.parametrize("dtype", MESSAGE_DTYPES)
def test_rounding_at_random_is_right_on_average(dtype):
    x = np.float32([1.0, 1.001, -0.3, 100.1, 2.0**-20, 0.0, np.inf, np.nan])
    communicator = workers(dtype, rounding_seed=3)

    def draw(step):
        return mixing.as_sent(jnp.asarray(x), communicator, step)

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(20000)))
    finite = np.isfinite(x)
    assert not np.isfinite(drawn[:, ~finite]).any()
    x, drawn = x[finite], drawn[:, finite].astype(np.float64)
    deviation = drawn.std(0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - x) <= 5 * deviation + 1e-6 * np.abs(x)).all()
    for k in range(len(x)):  # One of its two neighbours among the numbers.
        values = np.unique(drawn[:, k])
        assert len(values) <= 2
        exact = values.astype(getattr(ml_dtypes, dtype, dtype)).astype(np.float32)
        np.testing.assert_array_equal(values, exact)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "floor"), [(1.0, 0.0014), (0.3, 0.0004), (0.1, 1e-4)])
def test_rounding_at_random_lowers_the_floor_of_the_consensus_distance(rate, floor):
    """The numbers of the docs: to the nearest number it is the same at each rate."""
    rng = np.random.default_rng(0)
    x = 0.05 * rng.normal(size=(N, 500)) + rng.normal(size=500)
    floors = []
    for seed in (None, 1):
        c = workers(rounding_seed=seed)
        slow = djax.gossip(RING, c, consensus_rate=rate)
        steps = int(3000 / rate**0.5)
        after, _ = average(slow, c, {"x": jnp.asarray(x, jnp.float32)}, steps)
        floors.append(spread(after))
    assert floors[0] == pytest.approx(0.0017, rel=0.25)
    assert floors[1] == pytest.approx(floor, rel=0.5)


@pytest.mark.slow
def test_losses_and_rounding_go_together():
    c = workers(drop_probability=0.3)
    after, _ = average(djax.gossip(RING, c), c, models(), steps=200)
    assert spread(after) < 5e-3
    one_way = djax.push_sum(conformance.directed(N), c)
    _, state = average(one_way, c, models(), steps=50)
    assert np.isfinite(np.asarray(state.weight)).all()


def test_sums_over_directed_graphs_are_kept():
    c, x = workers(), models()
    after, state = average(djax.push_sum(conformance.directed(N), c), c, x, 300)
    assert drift(after, x) < 1e-5
    assert np.asarray(state.weight).sum() == pytest.approx(N, rel=1e-5)


def test_what_is_narrow_already_stays():
    x = {"h": jnp.ones((N, 3), jnp.float16), "n": jnp.ones((N, 2), jnp.int32)}
    sent = mixing.as_sent(x, workers("bfloat16"))
    assert sent["h"] is x["h"] and sent["n"] is x["n"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"message_dtype": "float64"}, "message_dtype must be one of bfloat16, float1"),
        ({"message_dtype": "complex64"}, "message_dtype must be one of"),
        ({"message_dtype": 16}, "message_dtype must be one of"),
        (
            {"rounding_seed": 1},
            "rounding_seed=1 rounds nothing without a message_dtype",
        ),
        ({"message_dtype": "float16", "rounding_seed": -1}, "rounding_seed must be an"),
    ],
)
def test_impossible_dtypes_are_named(options, message):
    for make in (communicators.simulated, communicators.mesh):
        with pytest.raises(ValueError, match=message):
            make(2, **options)


def test_a_dtype_may_be_given_as_one():
    c = communicators.simulated(2, message_dtype=jnp.bfloat16)
    assert c == communicators.simulated(2, message_dtype="bfloat16")


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("float32", "bfloat16"),
        ("float16", "float8_e4m3fn"),
        ("bfloat16", "float8_e5m2"),
    ],
)
def test_rounding_at_random_leaves_exact_and_tiny_numbers_finite(wide, narrow):
    """Half precision has no room for the noise, nor processors for tiny distances."""
    communicator = workers(narrow, rounding_seed=0)
    ones = jnp.ones(2**16, wide)
    np.testing.assert_array_equal(mixing.as_sent(ones, communicator, 0), ones)
    tiny = jnp.asarray([1e-36, -1e-37, 5e-38, 1e-45, 0.0], wide)
    sent = mixing.as_sent(tiny, communicator, 0)
    assert np.isfinite(np.asarray(sent, np.float32)).all()
