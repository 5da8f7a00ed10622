"""What travels between workers: lost, not finite, of another graph, not an array."""

import pickle

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest
from conformance import directed

import djax
from djax import communicators, topologies
from djax._mechanism.refusals import refuse
from djax._mechanism.value import parts_within

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
    "momentum_tracking": lambda t, c, q: djax.momentum_tracking(0.1, t, c),
    "beer": lambda t, c, q: djax.beer(0.1, t, c, q, 0.4),
    "gut": lambda t, c, q: djax.gut(0.1, t, c),
}
"""Mechanisms that cannot."""


def average(mechanism, communicator, x, *, steps=4, updates=None):
    """The workers' arrays after some steps with these updates, 0 by default."""
    updates = jax.tree.map(jnp.zeros_like, x) if updates is None else updates

    def worker(x, updates):
        def step(_, carry):
            x, state = carry
            u, state = mechanism.update(updates, state, x)
            return optax.apply_updates(x, u), state

        return jax.lax.fori_loop(0, steps, step, (x, mechanism.init(x)))[0]

    return jax.jit(communicator.spmd(worker))(x, updates)


def models(dtype=jnp.float32):
    x = np.random.default_rng(0).normal(size=(SIZE, 5, 3))
    return {
        "w": jnp.asarray(x, dtype),
        "b": jnp.asarray(x[:, 0, 0], dtype),
        "empty": jnp.zeros((SIZE, 0), dtype),
    }


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (communicators.simulated, np.nan),
        (communicators.simulated, -np.inf),
        (communicators.mesh, np.inf),
    ],
)
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
def test_a_workers_own_value_stands_for_what_is_not_finite(sick):
    """So that the mean of the others is kept; finite entries are averaged as ever."""
    star, communicator = topologies.star(SIZE), communicators.simulated(SIZE)
    x = np.random.default_rng(1).normal(size=(SIZE, 3)).astype(np.float32)
    broken = x.copy()
    broken[sick, 0] = np.nan
    after = average(
        djax.gossip(star, communicator), communicator, jnp.asarray(broken), steps=1
    )
    others = [i for i in range(SIZE) if i != sick]
    weights = star.mixing_matrix[np.ix_(others, others)]
    weights = weights + np.diag(1 - weights.sum(axis=1))
    after = np.asarray(after)
    np.testing.assert_allclose(after[others, 0], weights @ x[others, 0], rtol=1e-5)
    np.testing.assert_allclose(
        after[:, 1:], (star.mixing_matrix @ x)[:, 1:], rtol=1e-5, atol=1e-6
    )
    assert after[others, 0].mean() == pytest.approx(x[others, 0].mean(), rel=1e-5)


@pytest.mark.parametrize("missing", ["latest", "renormalize"])
def test_relay_goes_on_beside_a_broken_worker(missing):
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "complex64"])
@pytest.mark.parametrize("name", ["gossip", "push_sum"])
def test_messages_of_all_dtypes_are_looked_at(name, dtype, as_users):
    communicator, x = communicators.simulated(SIZE), models(dtype)
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
    expected = [[np.nan, 5 / 3, 7 / 3], [8 / 3, np.nan, 10 / 3], [3, 3, 3]]
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
    chain = optax.chain(optax.sgd(0.1), djax.interleave([mechanism]))
    parts = parts_within(chain, c, jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match=rf"the caller.*but {name} needs every mess"):
        refuse("the caller", parts, "needs_every_message")


@pytest.mark.parametrize("name", ROBUST)
def test_who_can_do_without_a_message_is_welcome(name):
    c = communicators.simulated(SIZE)
    mechanism = ROBUST[name](c)
    parts = parts_within(optax.chain(optax.sgd(0.1), mechanism), c, jnp.zeros(SIZE))
    assert parts and not mechanism.needs_every_message
    refuse("the caller", parts, "needs_every_message")


@pytest.mark.parametrize(
    ("correct", "name"),
    [
        (djax.d2, "d2"),
        (djax.gradient_tracking, "gradient_tracking"),
        (lambda m: djax.led(2, m, 0.1), "led"),
        (lambda m: djax.k_gt(2, m), "k_gt"),
        (lambda m: djax.prox_skip(0.5, m, 0.1), "prox_skip"),
    ],
)
def test_corrections_refuse_lost_messages(correct, name):
    """Their corrections would no longer sum to zero, and end at wrong points."""
    ring, lossy = topologies.ring(4), communicators.simulated(4, drop_probability=0.1)
    for mechanism in (
        djax.gossip(ring, lossy),
        djax.every(1, djax.gossip(ring, lossy)),
    ):
        with pytest.raises(ValueError, match=rf"{name} needs every message.*gossip"):
            correct(mechanism)
    reduced = correct(djax.all_reduce(lossy))  # It loses nothing.
    jax.eval_shape(lossy.spmd(reduced.init), jnp.zeros(4))


@pytest.mark.parametrize(
    "alias", [djax.d2_sgd, djax.exact_diffusion, djax.gradient_tracking_sgd]
)
def test_their_aliases_refuse_lost_messages_at_once(alias):
    lossy = communicators.simulated(4, drop_probability=0.1)
    with pytest.raises(ValueError, match="drop_probability"):
        alias(0.1, topologies.ring(4), lossy)


def test_d2_led_and_prox_skip_refuse_relay():
    c = communicators.simulated(4)
    relay = djax.every(2, djax.relay(topologies.chain(4), c))
    with pytest.raises(ValueError, match="d2.*relay.*gradient_tracking"):
        djax.d2(relay)
    with pytest.raises(ValueError, match="led.*relay.*gradient_tracking"):
        djax.led(2, relay, 0.1)
    with pytest.raises(ValueError, match="prox_skip.*relay.*gradient_tracking"):
        djax.prox_skip(0.5, relay, 0.1)


@pytest.mark.parametrize("missing", ["initial", "latest", "self", "renormalize"])
def test_gradient_tracking_over_relay_reaches_the_optimum_or_says_no(missing):
    c = communicators.simulated(4)
    relay = djax.relay(topologies.chain(4), c, missing=missing)
    if missing in ("self", "renormalize"):
        with pytest.raises(ValueError, match=rf"gradient_tracking.*'{missing}'"):
            djax.gradient_tracking(relay)
        return
    optimizer = optax.chain(optax.sgd(0.05), djax.gradient_tracking(relay))

    def worker(hessian, target):
        def step(carry, _):
            x, state = carry
            u, state = optimizer.update(hessian * (x - target), state, x)
            return (x + u, state), None

        x = jnp.zeros(())
        return jax.lax.scan(step, (x, optimizer.init(x)), length=2000)[0][0]

    hessian = jnp.asarray([1.0, 0.5, 1.5, 1.0])
    target = jnp.asarray([0.0, 1.0, 2.0, 5.0])
    x = jax.jit(c.spmd(worker))(hessian, target)
    np.testing.assert_allclose(x, np.full(4, 2.125), rtol=1e-3)


@pytest.mark.parametrize("key", ["default", "typed", "raw"])
def test_losses_do_not_depend_on_the_kind_of_keys(key):
    """Simulated workers and those of a mesh lose the same, also with rbg keys."""
    keys = {
        "default": lambda: None,
        "typed": lambda: jax.random.key(3, impl="rbg"),
        "raw": lambda: jax.random.key_data(jax.random.key(3, impl="rbg")),
    }
    found = []
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        for make in (communicators.simulated, communicators.mesh):
            c = make(4, drop_probability=0.5)
            gossip = djax.gossip(topologies.ring(4), c, key=keys[key]())
            found.append(average(gossip, c, jnp.arange(4.0), steps=3))
    finally:
        jax.config.update("jax_default_prng_impl", before)
    np.testing.assert_allclose(*found, rtol=1e-6)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jax.nn.relu, r"params\['net'\]\['act'\] is .*nnx.split.*eqx.filter"),
        (jnp.ones(2, jnp.int32), r"params\['net'\]\['act'\] is int32"),
        ("relu", r"params\['net'\]\['act'\] is 'relu'"),
    ],
)
def test_a_leaf_that_cannot_be_averaged_is_named(leaf, message):
    params = {"net": {"act": leaf, "w": jnp.ones(2)}}
    gossip = djax.gossip(topologies.ring(4), communicators.simulated(4))
    with pytest.raises(TypeError, match=message):
        gossip.init(params)


@each_communicator
def test_the_mean_names_the_leaf(make):
    c = make(2)
    x = {"w": jnp.ones(2), "n": jnp.arange(2)}
    for mean in (c.mean, lambda x: djax.metrics.mean_params(x, c)):
        with pytest.raises(TypeError, match=r"\['n'\] is int32"):
            c.spmd(mean)(x)
    with pytest.raises(TypeError, match=r"\['n'\] is int32"):
        c.spmd(lambda x: djax.metrics.worker_distance(x, c))(x)
    with pytest.raises(TypeError, match=r"\['act'\] is .*nnx.split"):
        c.spmd(lambda w: c.mean({"w": w, "act": jax.nn.relu}))(x["w"])


def test_replicate_names_what_is_no_array():
    c = communicators.simulated(2)
    with pytest.raises(TypeError, match=r"\['act'\] is .*nnx.split.*eqx.filter"):
        communicators.replicate(c, {"w": jnp.ones(2), "act": jax.nn.relu})


def test_one_bad_gradient_is_skipped_by_the_base_optimizer_alone():
    """`optax.apply_if_finite` belongs around the optimizer, not the mechanism."""
    c = communicators.simulated(3)
    optimizer = optax.chain(
        optax.apply_if_finite(optax.sgd(1.0), 5), djax.gossip(topologies.complete(3), c)
    )

    def worker(x, gradient):
        updates, _ = optimizer.update(gradient, optimizer.init(x), x)
        return x + updates

    x = c.spmd(worker)(jnp.zeros(3), jnp.asarray([-3.0, np.nan, -6.0]))
    np.testing.assert_allclose(x, np.full(3, 3.0), rtol=1e-6)


OF_A_GRAPH = {
    "relay": lambda t, c: djax.relay(t, c),
    "power_gossip": lambda t, c: djax.power_gossip(t, c),
    "choco_gossip": lambda t, c: NEEDY["choco_gossip"](t, c, IDENTITY),
    "dcd": lambda t, c: NEEDY["dcd"](t, c, IDENTITY),
    "ecd": lambda t, c: NEEDY["ecd"](t, c, IDENTITY),
    "beer": lambda t, c: NEEDY["beer"](t, c, IDENTITY),
    "gut": lambda t, c: NEEDY["gut"](t, c, IDENTITY),
}
"""Mechanisms whose state belongs to one graph."""

IDENTITY = djax.compressors.identity()


@pytest.mark.parametrize("name", OF_A_GRAPH)
def test_a_state_knows_its_graph(name):
    """Also between graphs with equally many rounds, and after pickling."""
    c, x = communicators.simulated(4), jnp.ones((4, 3, 3))
    chain = topologies.chain(4)
    other = topologies.from_networkx(
        nx.path_graph([0, 2, 1, 3]), name="another", weights="metropolis"
    )
    first, second = (OF_A_GRAPH[name](t, c) for t in (chain, other))
    assert len(chain.rounds) == len(other.rounds)
    state = jax.jit(c.spmd(optax.chain(optax.sgd(0.1), first).init))(x)
    state = jax.tree.map(jnp.copy, pickle.loads(pickle.dumps(state)))

    def run(mechanism):
        optimizer = optax.chain(optax.sgd(0.1), djax.every(1, mechanism))
        wrapped = state[0], djax.EveryState(jnp.zeros(4, jnp.int32), state[1])

        def worker(x, state):
            def step(carry, _):
                x, state = carry
                updates, state = optimizer.update(x, state, x)
                return (x + updates, state), None

            return jax.lax.scan(step, (x, state), length=2)[0]

        return jax.jit(c.spmd(worker), donate_argnums=())(x, wrapped)

    jax.block_until_ready(run(first))
    with pytest.raises(ValueError, match=rf"{name}.*chain of 4.*another of 4.*init"):
        run(second)
