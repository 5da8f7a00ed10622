"""Communicators that lose messages: independently, by link, and in bursts."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies
from djax.communicators import GilbertElliott, lossy

N, STEPS = 4, 4000
RING = topologies.ring(N)
ROUND = RING.rounds[0]  # 0 with 1, 2 with 3.


def arrivals(communicator, steps=STEPS, **options):
    """`bool[steps, n]`: which messages of one round came through."""

    def worker(keys):
        return jax.vmap(
            lambda step, key: communicator.arrived(ROUND, key, step=step, **options)
        )(jnp.arange(steps), keys)

    keys = jnp.stack([jax.random.split(jax.random.key(0), steps)] * N)
    return np.asarray(jax.jit(communicator.spmd(worker))(keys)).T


def test_the_short_form_is_the_same():
    short = communicators.simulated(N, drop_probability=0.3, drop_seed=5)
    long = lossy(communicators.simulated(N), 0.3, seed=5)
    assert short == long and hash(short) == hash(long)
    assert short != lossy(communicators.simulated(N), 0.3, seed=6)
    assert short.drop_probability == 0.3 and short.size == N
    assert list(short.local_ranks) == [0, 1, 2, 3]
    assert pickle.loads(pickle.dumps(short)) == short
    assert repr(short) == "lossy(simulated(4), 0.3)"
    links = GilbertElliott(0.1, 0.2, drop_in_bad=np.full((N, N), 0.5))
    shown = repr(lossy(communicators.simulated(N), links))
    assert "drop_in_bad=float64[4, 4], drop_in_good=0.0" in shown
    found, expected = arrivals(short), arrivals(long)
    np.testing.assert_array_equal(found, expected)
    assert found.mean() == pytest.approx(0.7, abs=0.02)


def test_each_link_has_a_probability_of_its_own():
    """`[i, j]` is of what worker i hears from worker j."""
    probability = np.zeros((N, N))
    probability[0, 1], probability[1, 0], probability[3, 2] = 0.2, 0.6, 1.0
    found = 1 - arrivals(lossy(communicators.simulated(N), probability)).mean(0)
    np.testing.assert_allclose(found, [0.2, 0.6, 0.0, 1.0], atol=0.03)


@pytest.mark.slow
def test_bursts_have_the_lengths_of_their_model():
    model = GilbertElliott(to_bad=0.02, to_good=0.1)
    communicator = lossy(communicators.simulated(N), model)
    lost = ~arrivals(communicator, steps=40000)
    assert lost.mean() == pytest.approx(1 / 6, abs=0.02)
    assert communicator.drop_probability == pytest.approx(1 / 6)
    for series in lost.T:
        starts = (series[1:] & ~series[:-1]).sum()
        assert series.sum() / starts == pytest.approx(10, rel=0.15)
    # The links, also the two directions of one edge, are independent.
    correlation = np.corrcoef(lost.T) - np.eye(N)
    assert np.abs(correlation).max() < 0.1


@pytest.mark.slow
def test_conditions_lose_by_their_own_probabilities():
    model = GilbertElliott(0.05, 0.05, drop_in_bad=0.8, drop_in_good=0.1)
    communicator = lossy(communicators.simulated(N), model, seed=2)
    lost = ~arrivals(communicator, steps=20000)
    assert lost.mean() == pytest.approx(0.45, abs=0.03)
    # Losses one step apart: both in one condition with probability 0.95.
    same = 0.95 * (0.8**2 + 0.1**2) / 2 + 0.05 * 0.8 * 0.1
    assert (lost[1:] & lost[:-1]).mean() == pytest.approx(same, abs=0.03)


@pytest.mark.slow
def test_conditions_are_those_of_a_chain_that_was_run():
    """The look back from a step gives what the steps give one after the other."""
    model = GilbertElliott(to_bad=0.1, to_good=0.2)
    communicator = lossy(communicators.simulated(2), model, seed=7)
    pair, steps = (1, 0), 300

    def worker(keys):
        return jax.vmap(lambda t, k: communicator.arrived(pair, k, step=t))(
            jnp.arange(steps), keys
        )

    keys = jnp.stack([jax.random.split(jax.random.key(0), steps)] * 2)
    found = ~np.asarray(communicator.spmd(worker)(keys))
    for receiver, sender in ((0, 1), (1, 0)):
        key = jax.random.key(7, impl="threefry2x32")
        for data in (7, receiver, sender):
            key = jax.random.fold_in(key, data)
        is_bad = float(jax.random.uniform(jax.random.fold_in(key, 2**32 - 1))) < 1 / 3
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(steps))
        for t, u in enumerate(jax.vmap(jax.random.uniform)(keys).tolist()):
            is_bad = True if u < 0.1 else False if u >= 1 - 0.2 else is_bad
            assert found[receiver, t] == is_bad


LINKS = np.full((5, 5), 0.2)
LINKS[0] = 0.6
MODELS = {
    "independent": 0.3,
    "links": LINKS,
    "bursts": GilbertElliott(0.1, 0.3, drop_in_bad=0.9, drop_in_good=0.05),
    "bursts of links": GilbertElliott(LINKS / 4, 0.3),
}
GRAPHS = {
    "fixed": topologies.star(5),
    "in time": topologies.base_graph(5),
}


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("model", MODELS)
def test_all_communicators_lose_the_same(model, graph):
    found = []
    for make in (communicators.simulated, communicators.mesh):
        # With this seed a message is lost in the first step.
        c = lossy(make(5), MODELS[model], seed=4)
        gossip = djax.gossip(GRAPHS[graph], c)

        def worker(x, gossip=gossip):
            def step(carry, _):
                x, state = carry
                updates, state = gossip.update(jnp.zeros_like(x), state, x)
                return (x + updates, state), x

            return jax.lax.scan(step, (x, gossip.init(x)), length=6)[1]

        found.append(np.asarray(jax.jit(c.spmd(worker))(jnp.arange(5.0))))
    np.testing.assert_allclose(*found, rtol=1e-6)
    exact = GRAPHS[graph].matrices[0] @ np.arange(5.0)
    assert np.abs(found[0][:, 1] - exact).max() > 1e-3


def test_a_worker_without_messages_keeps_its_model():
    cut = np.zeros((N, N))
    cut[0], cut[:, 0] = 1, 1
    np.fill_diagonal(cut, 0)
    c = lossy(communicators.simulated(N), cut)
    gossip = djax.gossip(RING, c)

    def worker(x):
        def step(_, carry):
            x, state = carry
            updates, state = gossip.update(jnp.zeros_like(x), state, x)
            return optax.apply_updates(x, updates), state

        return jax.lax.fori_loop(0, 100, step, (x, gossip.init(x)))[0]

    x = jax.jit(c.spmd(worker))(jnp.asarray([100.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(x, [100, 2, 2, 2], rtol=1e-5)


WRONG = {
    "twice": (
        lambda: lossy(communicators.simulated(2, drop_probability=0.1), 0.1),
        "loses messages already",
    ),
    "all": (lambda: lossy(communicators.simulated(2), 1.0), r"number in \[0, 1\), or"),
    "negative": (lambda: lossy(communicators.simulated(2), -0.1), r"got -0.1"),
    "another size": (
        lambda: lossy(communicators.simulated(2), np.zeros((3, 3))),
        r"an array \[2, 2\] of probabilities, .* got an array of shape \(3, 3\)",
    ),
    "no probabilities": (
        lambda: lossy(communicators.simulated(2), [[0, 2], [0, 0]]),
        r"an array \[2, 2\] of probabilities",
    ),
    "text": (lambda: lossy(communicators.simulated(2), "often"), "got 'often'"),
    "seed": (lambda: lossy(communicators.simulated(2), 0.1, seed=-1), "lossy: seed"),
    "bursts": (
        lambda: lossy(communicators.simulated(2), GilbertElliott(0.7, 0.7)),
        r"to_bad \+ to_good must be at most 1",
    ),
    "a field": (
        lambda: lossy(communicators.simulated(2), GilbertElliott(0.1, 3)),
        r"to_good must be a number in \[0, 1\], or",
    ),
    "no communicator": (lambda: lossy(RING, 0.1), "lossy needs a communicator"),
    "no step": (
        lambda: lossy(communicators.simulated(2), GilbertElliott(0.1, 0.1)).spmd(
            lambda x: communicators.lossy(
                communicators.simulated(2), GilbertElliott(0.1, 0.1)
            ).arrived((1, 0), jax.random.key(0))
        )(jnp.zeros(2)),
        "bursts of lost messages depend on the step",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_negative_weights_are_refused_where_messages_are_lost():
    """They are divided by their sum, which may then be anything."""
    star = topologies.star(N, weights="best_constant")
    djax.gossip(star, communicators.simulated(N))
    with pytest.raises(ValueError, match="gossip: some weights .* are negative"):
        djax.gossip(star, communicators.simulated(N, drop_probability=0.1))


@pytest.mark.parametrize("model", [0.0, np.zeros((N, N)), GilbertElliott(0, 0)])
def test_nothing_is_lost_with_probability_0(model):
    """As the first point of a sweep, also where steps of a schedule are silent."""
    schedule = topologies.from_matrices([np.eye(N), RING.mixing_matrix])
    c = lossy(communicators.simulated(N), model)
    assert c.arrived(ROUND, jax.random.key(0)) is True
    for make in (djax.gossip, djax.push_sum):
        mechanism = make(schedule, c)
        state = c.spmd(mechanism.init)(jnp.ones(N))
        c.spmd(mechanism.update)(jnp.ones(N), state, jnp.ones(N))


def test_negative_weights_are_refused_by_the_displacement_as_well():
    star = topologies.star(N, weights="best_constant")
    c = communicators.simulated(N, drop_probability=0.1)
    with pytest.raises(ValueError, match="displacement: some weights .* are negative"):
        c.spmd(lambda x: djax.mixing.displacement(x, star, c, step=0))(jnp.ones(N))
