"""An optimizer whose state is averaged along with the models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references

import djax
from djax import communicators, compressors, testing, topologies

N = 8
RING, WORKERS = topologies.ring(N), communicators.simulated(N)
GOSSIP, EXACT = djax.gossip(RING, WORKERS), djax.all_reduce(WORKERS)
MOMENTUM, ADAM = optax.sgd(0.1, momentum=0.9), optax.adam(0.1)
ONE = {"b": jnp.ones(2), "w": jnp.ones((2, 2))}
pytestmark = pytest.mark.usefixtures("as_users")  # optax's adam promotes.
MODELS = jax.tree.map(lambda x: jnp.stack([x * i for i in range(N)]), ONE)


def train(optimizer, communicator=WORKERS, steps=20, dtype="float32", problem=None):
    """The models and states of all workers at the end, on quadratic problems."""

    def worker(hessian, target, x):
        def step(carry, _):
            params, state = carry
            gradient = testing._unflatten(hessian * (testing._flatten(params) - target))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = testing._unflatten(x)
        carry, _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return testing._flatten(carry[0]), carry[1]

    arrays = testing._arrays(communicator, dtype, problem)
    models, state = jax.jit(communicator.spmd(worker))(*arrays)
    return np.asarray(models), state


@pytest.mark.parametrize("average_state", [None, False])
@pytest.mark.parametrize("base", [MOMENTUM, ADAM], ids=["momentum", "adam"])
def test_without_averaged_state_it_is_the_chain(base, average_state):
    mechanism = djax.every(2, djax.gossip(topologies.base_graph(N), WORKERS))
    ours = djax.decentralized(base, mechanism, average_state=average_state)
    models, state = train(ours)
    expected, states = train(optax.chain(base, mechanism))
    np.testing.assert_array_equal(models, expected)
    jax.tree.map(np.testing.assert_array_equal, state[:2], states)
    assert state.average_states == ()


W = RING.mixing_matrix
AVERAGES = {
    "gossip": (lambda c: djax.gossip(RING, c), lambda t, m: W @ m),
    "all_reduce every 3rd step": (
        lambda c: djax.every(3, djax.all_reduce(c)),
        lambda t, m: m if t % 3 else np.broadcast_to(m.mean(0), m.shape),
    ),
}


@pytest.mark.parametrize("state", AVERAGES)
@pytest.mark.parametrize(
    ("base", "model", "where"),
    [
        ("momentum", "gossip", communicators.simulated),
        ("adam", "gossip", communicators.mesh),
        ("adam", "all_reduce every 3rd step", communicators.simulated),
    ],
)
def test_follows_the_equations(base, model, state, where):
    average_model, average_state = AVERAGES[model][1], AVERAGES[state][1]
    problem = testing.quadratics(N)
    twin = {"momentum": references.momentum, "adam": references.adam}[base]
    expected, *moments = twin(
        problem.gradient, problem.start, 20, average_model, average_state
    )
    with jax.enable_x64(True):
        workers = where(N)
        optimizer = djax.decentralized(
            {"momentum": MOMENTUM, "adam": ADAM}[base],
            AVERAGES[model][0](workers),
            average_state=AVERAGES[state][0](workers),
        )
        models, found = train(optimizer, workers, dtype="float64")
    np.testing.assert_allclose(models, expected, rtol=1e-11, atol=1e-12)
    inner = found.optimizer_state[0]
    trees = [inner.trace] if base == "momentum" else [inner.mu, inner.nu]
    for tree, moment in zip(trees, moments, strict=True):
        flat = jax.vmap(testing._flatten)(tree)
        np.testing.assert_allclose(flat, moment, rtol=1e-11, atol=1e-12)


def test_exact_averages_of_both_are_local_steps_that_forget_their_worker():
    """As in the optimizer of NoLoCo's code that averages the moments of Adam, too."""
    rarely = djax.every(5, EXACT)
    optimizer = djax.decentralized(ADAM, rarely, average_state=True)
    for steps, equal in ((10, True), (12, False)):
        models, state = train(optimizer, steps=steps)
        moments = state.optimizer_state[0]
        assert np.allclose(models, models[:1], rtol=1e-5, atol=1e-6) == equal
        for x in jax.tree.leaves((moments.mu, moments.nu)):
            assert (x == x[:1]).all() == equal
        np.testing.assert_array_equal(moments.count, steps)


def test_with_exact_averages_in_every_step_it_is_data_parallel():
    """Averaged momenta of averaged models are momenta of averaged gradients."""
    problem = testing.quadratics(N)
    same = np.broadcast_to(problem.start[:1], problem.start.shape)
    problem = problem._replace(start=same)
    ours = djax.decentralized(MOMENTUM, EXACT, average_state=True)
    theirs = djax.all_reduce_sgd(0.1, WORKERS, momentum=0.9)
    with jax.enable_x64(True):
        models, expected = (
            train(optimizer, dtype="float64", problem=problem)[0]
            for optimizer in (ours, theirs)
        )
    np.testing.assert_allclose(models, expected, rtol=1e-12)


def after_one_step(optimizer, models=MODELS):
    """The state of all workers after a step along gradients of their own."""
    start = WORKERS.spmd(optimizer.init)(models)
    return jax.jit(WORKERS.spmd(optimizer.update))(models, start, models)[1]


@pytest.mark.parametrize(
    ("base", "trees"),
    [
        (MOMENTUM, 1),
        (ADAM, 2),
        (optax.amsgrad(0.1), 3),
        (optax.adam(optax.linear_schedule(0.1, 0.0, 9), mu_dtype=jnp.bfloat16), 2),
        (optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(0.1)), 2),
        (optax.partition({0: ADAM, 1: MOMENTUM}, {"b": 0, "w": 1}), 3),
        (optax.novograd(0.1), 2),
        (optax.sm3(0.1), 2),
        (optax.contrib.muon(0.1), 3),
        (optax.MultiSteps(ADAM, 2).gradient_transformation(), 3),
        (optax.chain(djax.on_updates(EXACT), ADAM), 2),
    ],
)
def test_what_is_like_the_parameters_is_averaged_and_nothing_else(base, trees):
    optimizer = djax.decentralized(base, GOSSIP, average_state=EXACT)
    state = after_one_step(optimizer)
    alone = after_one_step(optax.chain(base, GOSSIP))[0]
    assert len(state.average_states) == trees
    by_path = jax.tree_util.tree_leaves_with_path
    averaged = 0
    for (path, x), (_, y) in zip(
        by_path(state.optimizer_state), by_path(alone), strict=True
    ):
        assert x.dtype == y.dtype
        name, x, y = str(path), np.asarray(x, np.float32), np.asarray(y, np.float32)
        if any(key in name for key in ("'w'", "'b'")):
            averaged += 1
            y = np.broadcast_to(y.mean(0), y.shape)
        np.testing.assert_allclose(x, y, rtol=1e-2 if "mu" in name else 1e-5)
    assert averaged >= trees


def test_integers_like_the_parameters_are_not_averaged():
    """An optimizer of one's own that counts, and sums up, for each parameter."""

    def update(updates, state, params=None):
        count, total = state
        count = jax.tree.map(lambda c, x: c + x.astype(jnp.int32), count, updates)
        return updates, (count, jax.tree.map(jnp.add, total, updates))

    def init(params):
        return optax.tree.zeros_like(params, dtype=jnp.int32), jax.tree.map(
            jnp.zeros_like, params
        )

    base = optax.GradientTransformation(init, update)
    optimizer = djax.decentralized(base, GOSSIP, average_state=EXACT)
    count, total = after_one_step(optimizer).optimizer_state
    np.testing.assert_array_equal(count["b"], MODELS["b"])
    np.testing.assert_allclose(total["b"], MODELS["b"].mean())


def test_states_of_mechanisms_in_the_optimizer_are_left_alone():
    relay = djax.relay(topologies.chain(N), WORKERS)
    optimizer = djax.decentralized(
        optax.chain(MOMENTUM, relay), optax.identity(), average_state=EXACT
    )
    (trace, _), kept = after_one_step(optimizer).optimizer_state
    expected = after_one_step(optax.chain(MOMENTUM, relay))[1]
    jax.tree.map(np.testing.assert_array_equal, kept, expected)
    np.testing.assert_allclose(trace.trace["b"], MODELS["b"].mean())


def test_masks_for_the_parameters_fit():
    shared = djax.only({"b": False, "w": True}, GOSSIP)
    optimizer = djax.decentralized(ADAM, shared, average_state=True)
    moments, alone = (
        after_one_step(o).optimizer_state[0]
        for o in (optimizer, djax.decentralized(ADAM, shared))
    )
    for found, own in ((moments.mu, alone.mu), (moments.nu, alone.nu)):
        np.testing.assert_array_equal(found["b"], own["b"])
        expected = np.tensordot(W, own["w"], 1)
        np.testing.assert_allclose(found["w"], expected, rtol=1e-5)


def test_hyperparameters_may_be_injected_around_it():
    def make(rate):
        return djax.decentralized(optax.adam(rate), GOSSIP, average_state=True)

    rates = optax.linear_schedule(0.1, 0.0, 20)
    injected, state = train(optax.inject_hyperparams(make)(rates))
    np.testing.assert_allclose(injected, train(make(rates))[0], rtol=1e-5, atol=1e-6)
    assert 0 < state.hyperparams["rate"][0] < 0.1


def test_flatten_belongs_around_it():
    def make(base):
        return djax.decentralized(base, GOSSIP, average_state=True)

    flat, _ = train(optax.flatten(make(ADAM)))
    np.testing.assert_allclose(flat, train(make(ADAM))[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="Put optax.flatten around djax.decentral"):
        WORKERS.spmd(make(optax.flatten(ADAM)).init)(MODELS)


@pytest.mark.parametrize(("base", "times"), [(MOMENTUM, 2), (ADAM, 3)])
def test_the_cost_is_that_of_all_averages(base, times):
    def cost(optimizer):
        return djax.communication_cost(optimizer, ONE, RING)

    def make(average_state):
        return djax.decentralized(base, GOSSIP, average_state=average_state)

    once = cost(optax.chain(base, GOSSIP))
    assert cost(make(None)) == once
    assert cost(make(True)) == once.times(times)
    rarely = cost(make(djax.every(5, EXACT)))
    exact = cost(EXACT).mean_bytes
    assert rarely.period == 5
    assert rarely.mean_bytes == once.mean_bytes + (times - 1) * exact / 5


STAR = topologies.star(N, weights="best_constant")
UNEVEN = topologies.from_matrices([[[0.5, 0.25], [0.5, 0.75]]])
CODE = compressors.top_k(0.5)
UNFIT = {
    "d2": lambda: djax.d2(djax.gossip(RING, WORKERS, consensus_rate=0.5)),
    "gradient_tracking": lambda: djax.every(1, djax.gradient_tracking(GOSSIP)),
    "quasi_global_momentum": lambda: djax.quasi_global_momentum(0.1, GOSSIP),
    "decentralized": lambda: djax.decentralized(ADAM, GOSSIP),
    "outer": lambda: djax.outer(4, optax.sgd(0.7), EXACT),
    "on_updates": lambda: djax.on_updates(GOSSIP),
    "all_reduce": lambda: djax.all_reduce(WORKERS, overlap=True),
    "push_sum": lambda: djax.push_sum(UNEVEN, communicators.simulated(2)),
    "choco_gossip": lambda: djax.choco_gossip(RING, WORKERS, CODE, 0.1),
    "deep_squeeze": lambda: djax.deep_squeeze(RING, WORKERS, CODE, 0.1),
    "dcd": lambda: djax.dcd(RING, WORKERS, compressors.quantize(8)),
    "ecd": lambda: djax.ecd(RING, WORKERS, compressors.quantize(8)),
    "moniqua": lambda: djax.every(2, djax.moniqua(RING, WORKERS, 1.0, 0.1)),
    "power_gossip": lambda: djax.power_gossip(RING, WORKERS),
    "gossip": lambda: djax.gossip(STAR, WORKERS),
    "a mechanism within a wrapper": lambda: optax.masked(GOSSIP, True),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_average_a_state_is_refused(name):
    remedy = r"average_state=djax\.every\(period, djax\.all_reduce\(communicator\)\)"
    unfit = UNFIT[name]()
    for mechanism, average_state in ((GOSSIP, unfit), (unfit, True)):
        with pytest.raises(ValueError, match=f"state cannot be {name}.*{remedy}"):
            djax.decentralized(ADAM, mechanism, average_state=average_state)
    djax.decentralized(ADAM, unfit)
    djax.decentralized(ADAM, unfit, average_state=GOSSIP)


def test_a_worker_that_is_isolated_leaves_the_moments_of_others_finite():
    optimizer = djax.decentralized(ADAM, GOSSIP, average_state=True)

    def gradient_fn(params, model_state, batch):
        return jax.tree.map(lambda x: x - batch, params), model_state, {}

    workers = djax.training.init_workers(optimizer, WORKERS, MODELS)
    steps = djax.training.make_steps(
        gradient_fn, optimizer, WORKERS, nonfinite="isolate"
    )
    workers, _ = steps(workers, jnp.ones((N, 9)).at[3, 4].set(jnp.nan))
    for x in jax.tree.leaves((workers.params, workers.opt_state.optimizer_state)):
        finite = np.isfinite(np.asarray(x, np.float32)).reshape(N, -1).all(axis=1)
        assert finite[np.arange(N) != 3].all()


def test_what_has_no_state_or_is_no_mechanism_is_told():
    nothing = djax.decentralized(optax.sgd(0.1), GOSSIP, average_state=True)
    with pytest.raises(ValueError, match="no state like the parameters .* without mom"):
        WORKERS.spmd(nothing.init)(MODELS)
    with pytest.raises(TypeError, match="average_state: expected an optimizer or a m"):
        djax.decentralized(ADAM, GOSSIP, average_state="gossip")
    with pytest.raises(TypeError, match="mechanism: expected an optimizer or a mech"):
        djax.decentralized(GOSSIP, RING)
    with pytest.raises(TypeError, match="asynchronous"):
        djax.decentralized(djax.adpsgd(ADAM), GOSSIP)


def test_no_parameters_have_no_moments():
    optimizer = djax.decentralized(ADAM, GOSSIP, average_state=True)

    def worker(_):
        return optimizer.update({}, optimizer.init({}), {})[0]

    assert WORKERS.spmd(worker)(MODELS) == {}


def test_a_state_of_another_optimizer_is_told():
    optimizer = djax.decentralized(ADAM, GOSSIP, average_state=True)
    state = WORKERS.spmd(djax.decentralized(ADAM, GOSSIP).init)(MODELS)
    with pytest.raises(ValueError, match="averages 2 trees .* belongs to 0: make a"):
        WORKERS.spmd(optimizer.update)(MODELS, state, MODELS)
    with pytest.raises(TypeError, match="decentralized needs its own state"):
        WORKERS.spmd(optimizer.update)(MODELS, state.optimizer_state, MODELS)


def smallest(mechanism, steps=30):
    """The smallest of numbers that are averaged, most of which are zero at first.

    The others are of all sizes, as second moments are.
    """
    workers = mechanism.communicator
    rng = np.random.default_rng(0)
    x = 10 ** rng.uniform(-10, 1, size=(N, 10, 20)) * (
        rng.uniform(size=(N, 10, 20)) < 0.1
    )

    def worker(x):
        def step(carry, _):
            x, state = carry
            x, state = mechanism.update(x, state, jnp.zeros_like(x))
            return (x, state), x.min()

        return jax.lax.scan(step, (x, mechanism.init(x)), length=steps)[1].min()

    return jax.jit(workers.spmd(worker))(jnp.asarray(x, jnp.float32)).min()


def narrow(dtype, **options):
    return communicators.simulated(N, message_dtype=dtype, **options)


POSITIVE = {
    "gossip": lambda: GOSSIP,
    "at a rate above 1": lambda: djax.gossip(RING, WORKERS, consensus_rate=1.49),
    "base graph": lambda: djax.gossip(topologies.base_graph(N), WORKERS),
    "bfloat16": lambda: djax.gossip(topologies.exponential(N), narrow("bfloat16")),
    "lost messages": lambda: djax.gossip(
        RING, communicators.simulated(N, drop_probability=0.3)
    ),
    "relay": lambda: djax.relay(topologies.chain(N), narrow("bfloat16")),
    "push_sum": lambda: djax.push_sum(topologies.one_peer_exponential(N), WORKERS),
    "interleave": lambda: djax.interleave([GOSSIP, djax.all_reduce(WORKERS)]),
    "all_reduce": lambda: djax.every(2, EXACT),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_second_moments_stay_positive(name):
    mechanism = POSITIVE[name]()
    djax.decentralized(ADAM, GOSSIP, average_state=mechanism)
    assert smallest(mechanism) >= 0


NEGATIVE = {
    "negative weights": lambda: djax.gossip(STAR, WORKERS),
    "no weight of one's own": lambda: djax.gossip(
        topologies.from_matrices([np.roll(np.eye(N), 1, 0), W]), narrow("bfloat16")
    ),
    "float8": lambda: djax.gossip(RING, narrow("float8_e4m3fn")),
    "float16, small numbers": lambda: djax.gossip(RING, narrow("float16")),
    "choco_gossip": lambda: djax.choco_gossip(RING, WORKERS, CODE, 0.4),
    "deep_squeeze": lambda: djax.deep_squeeze(RING, WORKERS, compressors.sign(), 0.1),
    "power_gossip": lambda: djax.power_gossip(RING, WORKERS),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_what_would_make_second_moments_negative_is_refused(name):
    mechanism = NEGATIVE[name]()
    assert smallest(mechanism) < 0
    with pytest.raises(ValueError, match="average_state cannot be .* second moments"):
        djax.decentralized(ADAM, GOSSIP, average_state=mechanism)
