"""A²CiD²'s constants, and what a worker does at each event."""

import functools
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

import djax
from djax import topologies

GOLDEN = np.load(Path(__file__).parent / "golden" / "acid_constants.npz")
RING = djax.acid_constants(topologies.ring(16))


@pytest.fixture(autouse=True)
def promotion():
    """As users have it: optax's optimizers rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_constants_are_those_of_the_published_code():
    assert list(GOLDEN["columns"]) == [
        *("is_exponential", "n", "rate_com", "eta", "beta_tilde", "chi1", "chi2")
    ]
    for exponential, size, rate, *values in GOLDEN["table"]:
        build = topologies.exponential if exponential else topologies.ring
        ours = djax.acid_constants(build(int(size)), rate)
        actual = [ours.eta, ours.alpha_tilde, ours.chi1, ours.chi2]
        np.testing.assert_allclose(actual, values, rtol=1e-9)
        assert ours.alpha == 0.5


@pytest.mark.parametrize("size", [2, 5, 12])
def test_constants_in_closed_form(size):
    complete = djax.acid_constants(topologies.complete(size))
    share = (size - 1) / size
    np.testing.assert_allclose(complete, [share, share, 0.5 / share, 0.5, 0.5])
    star = djax.acid_constants(topologies.star(size))
    np.testing.assert_allclose(
        star[:2], [size - 1, (size - 1) / 2] if size > 2 else 0.5
    )


def test_rates_are_of_edges():
    star = topologies.star(5)
    rates = djax.asynchronous.edge_rates(star, 2.0)
    np.testing.assert_array_equal(rates[0], [0, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(rates, rates.T)
    # The antipode counts twice.
    ours = djax.asynchronous.edge_rates(topologies.exponential(8))
    np.testing.assert_allclose(ours[0, [1, 2, 4]], [1 / 6, 1 / 6, 1 / 3])
    given = djax.acid_constants(star, rates)
    assert given == djax.acid_constants(star, 2.0)
    slow = djax.acid_constants(star, 0.3)
    np.testing.assert_allclose(given.alpha_tilde, slow.alpha_tilde)
    np.testing.assert_allclose(given.eta, slow.eta * 2 / 0.3)


@hypothesis.given(seed=st.integers(0, 10**6), size=st.integers(2, 12))
@hypothesis.settings(max_examples=30)
def test_constants_of_any_weighted_graph(seed, size):
    rng = np.random.default_rng(seed)
    graph = nx.compose(
        nx.random_labeled_tree(size, seed=seed),
        nx.gnp_random_graph(size, 0.3, seed=seed),
    )
    rates = np.zeros((size, size))
    for i, j in graph.edges:
        rates[i, j] = rates[j, i] = rng.uniform(0.1, 3)
    ours = djax.acid_constants(topologies.from_networkx(graph), rates)
    laplacian = np.diag(rates.sum(0)) - rates
    chi1 = 1 / np.sort(np.linalg.eigvals(laplacian).real)[1]
    resistance = nx.resistance_distance(
        nx.from_numpy_array(rates), weight="weight", invert_weight=False
    )
    chi2 = max(resistance[i][j] for i, j in graph.edges) / 2
    np.testing.assert_allclose(ours[:2], [chi1, chi2], rtol=1e-8)
    assert ours.chi2 <= ours.chi1 * (1 + 1e-9) and ours.alpha_tilde >= 0.5 - 1e-9


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (-1.0, "at least 0; got -1"),
        (float("nan"), "got nan"),
        (np.ones((3, 3)), r"shape \(4, 4\), got shape \(3, 3\)"),
        (np.eye(4), r"rate\[0, 0\] = 1.0 has no edge"),
        (np.triu(np.ones((4, 4)), 3), r"rate\[0, 3\] = 1.0 differs from its transpose"),
        (-np.ones((4, 4)), r"rate\[0, 0\] = -1.0 is negative"),
        (0.0, "no averagings connect worker 1 with worker 0"),
        (np.diag([1.0, 0, 1], 1) + np.diag([1.0, 0, 1], -1), "connect worker 2"),
    ],
)
def test_wrong_rates_are_named(rate, message):
    with pytest.raises(ValueError, match=message):
        djax.acid_constants(topologies.ring(4), rate)


def test_one_worker_has_nobody_to_average_with():
    with pytest.raises(ValueError, match="at least two"):
        djax.acid_constants(topologies.complete(1))


PARAMS = {
    "w": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]),
    "b": jnp.asarray([0.1, 0.2]),
}
GRADS = {"w": jnp.asarray([[0.3, 0.1], [-1.0, 2.0]]), "b": jnp.asarray([1.0, -1.0])}
PEER = jax.tree.map(lambda x: 2 * x + 1, PARAMS)
BASES = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "clipped, decayed": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.add_decayed_weights(0.1), {"w": True, "b": False}),
        optax.sgd(optax.linear_schedule(0.1, 0.0, 10)),
    ),
    "lion": lambda: optax.lion(0.01),
}


def apply(params, updates):
    return optax.apply_updates(params, updates)


def assert_close(actual, expected, **options):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **{"rtol": 1e-6} | options),
        actual,
        expected,
    )


@pytest.mark.parametrize("name", BASES)
def test_any_optimizer_moves_both_copies_alike(name):
    base = BASES[name]()
    acid = djax.acid(base, RING)
    params, state = acid.mix(PARAMS, acid.init(PARAMS), elapsed=0.0)
    for _ in range(3):
        updates, state = acid.average(PEER, state, params)
        params = apply(params, updates)
        mixed, still = acid.mix(params, state, elapsed=0.7)
        step, _ = base.update(GRADS, still.base_state, mixed)
        updates, state = jax.jit(acid.update)(GRADS, state, params, elapsed=0.7)
        params = apply(params, updates)
        assert_close(params, apply(mixed, step), atol=1e-6)
        assert_close(state.momentum, apply(still.momentum, step), atol=1e-6)
        assert jnp.abs(params["w"] - state.momentum["w"]).max() > 0.1


@hypothesis.given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4),
    elapsed=st.floats(0, 50),
)
def test_what_mixing_and_averaging_keep(values, elapsed):
    with jax.enable_x64(True):
        x, tilde, y, peer_tilde = (jnp.float64(v) for v in values)
        acid = djax.acid(optax.sgd(0.1), RING)
        ours = djax.AcidState(tilde, acid.init(x).base_state)
        theirs = djax.AcidState(peer_tilde, acid.init(y).base_state)
        mixed, ours = acid.mix(x, ours, elapsed)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-10)
        close(mixed + ours.momentum, x + tilde)
        e = np.exp(-2 * RING.eta * elapsed)
        close(mixed, ((1 + e) * x + (1 - e) * tilde) / 2)
        # Twice half of the time is the same.
        again = acid.mix(x, djax.AcidState(tilde, ()), elapsed / 2)
        close(acid.mix(*again, elapsed / 2)[0], mixed)

        peer, theirs = acid.mix(y, theirs, elapsed)
        gain, ours = acid.average(peer, ours, mixed)
        loss, theirs = acid.average(mixed, theirs, peer)
        close(mixed + gain, peer + loss)  # Both have the mean,
        close(gain + loss, 0)
        close(ours.momentum + theirs.momentum + mixed + peer, sum(values))


@pytest.mark.parametrize("make", [djax.adpsgd, lambda base: djax.acid(base, RING)])
def test_a_gradient_that_lands_while_messages_travel_is_kept(make):
    algorithm = make(optax.sgd(0.1))
    results = []
    for late in (True, False):
        x, state = PARAMS, algorithm.init(PARAMS)
        if late:  # Sent, then stepped, then averaged.
            updates, state = algorithm.update(GRADS, state, x)
            moved = apply(x, updates)
            updates, state = algorithm.average(PEER, state, moved, sent=x)
            x = apply(moved, updates)
        else:
            updates, state = algorithm.average(PEER, state, x)
            x = apply(x, updates)
            updates, state = algorithm.update(GRADS, state, x)
            x = apply(x, updates)
        results.append((x, state))
    assert_close(*results)


def test_alpha_is_the_constants():
    acid = djax.acid(optax.sgd(0.1), RING._replace(alpha=0.3))
    updates, _ = acid.average(PEER, acid.init(PARAMS), PARAMS)
    assert_close(updates, jax.tree.map(lambda x, y: -0.3 * (x - y), PARAMS, PEER))


def test_sums_of_half_precision_are_rounded_once():
    x, peer = jnp.bfloat16([1.0, 3.0]), jnp.bfloat16([1.0078125, 300.0])
    acid = djax.acid(optax.sgd(0.1), RING)
    _, state = acid.average(peer, acid.init(x), x)
    wide = jnp.float32(x) - RING.alpha_tilde * (jnp.float32(x) - jnp.float32(peer))
    np.testing.assert_array_equal(state.momentum, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", BASES)
def test_without_flow_it_is_adpsgd(name):
    acid = djax.acid(BASES[name](), RING._replace(eta=0.0))
    adpsgd = djax.adpsgd(BASES[name]())
    results = []
    for algorithm in (acid, adpsgd):
        params, state = PARAMS, algorithm.init(PARAMS)
        for _ in range(3):
            params, state = algorithm.mix(params, state, elapsed=1.0)
            updates, state = algorithm.average(PEER, state, params)
            params = apply(params, updates)
            updates, state = algorithm.update(GRADS, state, params, elapsed=1.0)
            params = apply(params, updates)
        results.append(params)
    assert_close(*results)
    assert state._fields == ("base_state",)  # No second copy.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_kept(dtype):
    params, grads, peer = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, GRADS, PEER))
    for algorithm in (djax.acid(optax.sgd(0.1), RING), djax.adpsgd(optax.sgd(0.1))):
        state = algorithm.init(params)
        mixed, after = algorithm.mix(params, state, jnp.float32(0.3))
        up, after = algorithm.update(grads, after, mixed, elapsed=jnp.float32(0.1))
        av, after = algorithm.average(peer, after, mixed)
        kinds = jax.tree.map(lambda x: x.dtype, (params, params, params, state))
        assert jax.tree.map(lambda x: x.dtype, (mixed, up, av, after)) == kinds


def test_extra_arguments_reach_the_base():
    def update(updates, state, params=None, *, scale, **extra_args):
        return jax.tree.map(lambda g: scale * g, updates), state

    base = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    for algorithm in (djax.acid(base, RING), djax.adpsgd(base)):
        updates, _ = algorithm.update(
            GRADS, algorithm.init(PARAMS), PARAMS, elapsed=0.5, scale=-3.0
        )
        assert_close(updates, jax.tree.map(lambda g: -3 * g, GRADS), atol=1e-6)


def test_mistakes_are_named():
    acid = djax.acid(optax.sgd(0.1), RING)
    state = acid.init(PARAMS)
    with pytest.raises(ValueError, match="acid averages parameters"):
        acid.update(GRADS, state)
    with pytest.raises(ValueError, match="elapsed .* got -1"):
        acid.mix(PARAMS, state, elapsed=-1)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), and received .* \(2,\)"):
        acid.average({"w": PEER["w"], "b": PEER["w"]}, state, PARAMS)
    with pytest.raises(ValueError, match="eta must be at least 0"):
        djax.acid(optax.sgd(0.1), RING._replace(eta=-1.0))
    with pytest.raises(TypeError, match="acid needs the constants"):
        djax.acid(optax.sgd(0.1), 0.5)
    with pytest.raises(TypeError, match="acid needs an optimizer, .* got AcidConst"):
        djax.acid(RING, optax.sgd(0.1))
    with pytest.raises(TypeError, match="adpsgd needs an optimizer"):
        djax.adpsgd(optax.sgd)
    with pytest.raises(TypeError, match="Schedule has no fixed neighbours"):
        djax.acid_constants(topologies.one_peer_exponential(4))
    with pytest.raises(TypeError, match="rate must be a number"):
        djax.acid_constants(topologies.ring(4), optax.constant_schedule(1))
    with pytest.raises(TypeError, match="int32"):
        djax.adpsgd(optax.sgd(0.1)).init({"n": jnp.arange(3)})
