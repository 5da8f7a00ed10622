"""Momentum Tracking, BEER and GUT beyond the common and the golden tests."""

import conformance
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
PEERS = topologies.one_peer_exponential(N)
LOSSY = communicators.simulated(N, drop_probability=0.1)
CODE = compressors.top_k(0.5)


def run(optimizer, steps):
    """Parameters of all workers at the end, `[N, 6]`, and their states, in float64."""
    problem = testing.quadratics(N)
    arrays = map(jnp.asarray, (problem.hessian, problem.target, problem.start))

    def worker(hessian, target, x):
        def step(carry, _):
            x, state = carry
            gradient = testing._unflatten(hessian * (testing._flatten(x) - target))
            updates, state = optimizer.update(gradient, state, x)
            return (optax.apply_updates(x, updates), state), None

        x = testing._unflatten(x)
        carry = x, optimizer.init(x)
        x, state = jax.lax.scan(step, carry, length=steps)[0]
        return testing._flatten(x), state

    return jax.jit(WORKERS.spmd(worker))(*arrays)


def expected(reference, rates, **options):
    hessian, target, _ = conformance.quadratics(N)
    return reference(
        *(lambda x: hessian * (x - target), conformance.start(N), rates, len(rates)),
        RING.mixing_matrix,
        **options,
    )


WITH_RATES = {
    "momentum_tracking": (
        lambda rate: djax.momentum_tracking(
            rate, RING, WORKERS, momentum=0.8, weight_decay=0.01
        ),
        lambda rates: expected(
            references.momentum_tracking, rates, beta=0.8, decay=0.01
        ),
    ),
    "beer": (
        lambda rate: djax.beer(rate, RING, WORKERS, CODE, 0.4),
        lambda rates: expected(references.beer, rates),
    ),
    "gut": (
        lambda rate: djax.gut(rate, RING, WORKERS, momentum=0.6, nesterov=True),
        lambda rates: expected(references.gut, rates, mu=0.06, m=0.6, nesterov=True),
    ),
    "gut without momentum": (
        lambda rate: djax.gut(rate, RING, WORKERS, scaling=0.4, consensus_rate=0.8),
        lambda rates: expected(references.gut, rates, mu=0.4, rate=0.8),
    ),
}


@pytest.mark.parametrize("name", WITH_RATES)
def test_a_schedule_of_the_learning_rate(name):
    """GUT divides by the rate of the step before."""
    make, reference = WITH_RATES[name]
    rates = 0.05 * np.array([1.0, 0.9, 1.3, 1.0, 0.5, 0.5, 0.7, 0.2])
    with jax.enable_x64(True):
        found, _ = run(make(lambda step: jnp.asarray(rates)[step]), len(rates))
    np.testing.assert_allclose(found, reference(rates), rtol=1e-12, atol=1e-13)


def constant_step_error(optimizer):
    """Distance of the farthest worker from the optimum, with a constant step size."""
    with jax.enable_x64(True):
        found, _ = run(optimizer, 1500)
    *_, optimum = conformance.quadratics(N)
    return np.abs(np.asarray(found) - optimum).max()


def test_tracking_reaches_the_optimum_where_local_gradients_stop_short():
    local = djax.dpsgd(0.05, RING, WORKERS, momentum=0.5)
    compressed = djax.choco_sgd(0.05, RING, WORKERS, CODE, 0.4)
    assert min(map(constant_step_error, (local, compressed))) > 0.02
    for optimizer in (
        djax.momentum_tracking(0.05, RING, WORKERS, momentum=0.5),
        djax.momentum_tracking(0.05, RING, WORKERS, momentum=0.5, first_mean=False),
        djax.beer(0.05, RING, WORKERS, CODE, 0.4),
    ):
        assert constant_step_error(optimizer) < 1e-11


def test_gut_ends_nearer_to_the_optimum():
    scalings = 0.0, 0.5, 0.9
    errors = [
        constant_step_error(djax.gut(0.02, RING, WORKERS, scaling=scaling))
        for scaling in scalings
    ]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


def test_without_scaling_gut_is_gossip_before_the_step():
    with jax.enable_x64(True):
        optimizer = djax.gut(0.05, RING, WORKERS, scaling=0, consensus_rate=0)
        x, state = run(optimizer, 9)
        reference, _ = run(djax.dpsgd(0.05, RING, WORKERS, overlap=True), 9)
        models = WORKERS.spmd(testing._flatten)(state.model)
    np.testing.assert_allclose(x, reference, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(models, x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("first_mean", [True, False])
def test_the_first_step_of_momentum_tracking(first_mean):
    """Along the mean of all gradients, or along each worker's own."""
    optimizer = djax.momentum_tracking(1, RING, WORKERS, first_mean=first_mean)
    gradients = jnp.arange(8.0) ** 2

    def worker(gradient):
        x = jnp.zeros_like(gradient)
        return optimizer.update(gradient, optimizer.init(x), x)

    updates, state = WORKERS.spmd(worker)(gradients)
    along = gradients.mean() if first_mean else gradients
    np.testing.assert_allclose(updates, np.broadcast_to(-along, N), rtol=1e-5)
    np.testing.assert_allclose(state.correction.sum(), 0, atol=1e-4)


PARAMS = {"w": jnp.zeros((30, 20)), "b": jnp.zeros(20)}
SENT = {
    "momentum_tracking": (djax.momentum_tracking(0.1, RING, WORKERS), 2 * 620 * 4),
    "beer": (djax.beer(0.1, RING, WORKERS, CODE, 0.1), 2 * 310 * 8),
    "gut": (djax.gut(0.1, RING, WORKERS, momentum=0.9), 620 * 4),
}


@pytest.mark.parametrize("name", SENT)
def test_what_a_step_sends(name):
    """The all-reduce of the first step is not one of every step."""
    optimizer, size = SENT[name]
    cost = djax.communication_cost(optimizer, PARAMS, RING)
    assert cost.bytes_per_step == (2 * size,) * N
    assert cost.messages_per_step == (4 if name == "beer" else 2,) * N


def test_a_warm_up_of_gut_from_zero():
    """As equal workers have no displacement that would be divided by the rate."""

    def rate(step):
        return 0.01 * jnp.minimum(step, 5).astype(float)

    optimizer = djax.gut(rate, RING, WORKERS)

    def worker(target):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(x - target, state, x)
            return (x + updates, state), None

        x = jnp.zeros_like(target)
        return jax.lax.scan(step, (x, optimizer.init(x)), length=800)[0][0]

    x = jax.jit(WORKERS.spmd(worker))(jnp.arange(8.0))
    np.testing.assert_allclose(x.mean(), 3.5, atol=0.01)
    assert np.abs(x - 3.5).max() < 1


def test_gut_eval_params_finds_the_models_in_any_state():
    part = {"body": True, "head": False}
    optimizer = optax.chain(
        optax.scale(1.0), djax.only(part, djax.gut(1, RING, WORKERS))
    )
    x = {"body": jnp.arange(8.0), "head": jnp.arange(8.0)}

    def worker(x):
        updates, state = optimizer.update(x, optimizer.init(x), x)
        point = optax.apply_updates(x, updates)
        return point, djax.gut_eval_params(state, point), state

    point, models, state = WORKERS.spmd(worker)(x)
    np.testing.assert_array_equal(models["head"], point["head"])
    assert np.abs(models["body"] - point["body"]).max() > 0.1
    averaged = RING.mixing_matrix @ models["body"]
    np.testing.assert_allclose(point["body"], averaged, atol=1e-5)
    for wrong in ((), (state, state)):
        with pytest.raises(ValueError, match="exactly one GutState, got [02]"):
            djax.gut_eval_params(wrong, x)


LAZY = topologies.torus(16), communicators.simulated(16)
REFUSED = {
    "lost messages, momentum_tracking": (
        lambda: djax.momentum_tracking(0.1, RING, LOSSY),
        "momentum_tracking needs every message",
    ),
    "lost messages, beer": (
        lambda: djax.beer(0.1, RING, LOSSY, CODE, 0.1),
        "beer needs every message",
    ),
    "lost messages, gut": (lambda: djax.gut(0.1, RING, LOSSY), "gut needs every mess"),
    "beer over a schedule": (
        lambda: djax.beer(0.1, PEERS, WORKERS, CODE, 0.1),
        "beer needs a graph that does not change",
    ),
    "gut over a schedule": (
        lambda: djax.gut(0.1, PEERS, WORKERS),
        "gut needs a graph that does not change",
    ),
    "beer with an unbiased code": (
        lambda: djax.beer(0.1, RING, WORKERS, compressors.quantize(4), 0.1),
        "beer needs a contraction",
    ),
    "beer at too large a rate": (
        lambda: djax.beer(0.1, RING, WORKERS, CODE, 1.6),
        "beer: consensus_rate must be below 1.5",
    ),
    "a momentum of 1": (
        lambda: djax.momentum_tracking(0.1, RING, WORKERS, momentum=1.0),
        "momentum_tracking: momentum must be below 1",
    ),
    "a flag": (
        lambda: djax.momentum_tracking(0.1, RING, WORKERS, first_mean="no"),
        "momentum_tracking: first_mean must be True or False",
    ),
    "a learning rate of 0": (
        lambda: djax.gut(0.0, RING, WORKERS),
        "gut: learning_rate must be positive",
    ),
    "a scaling of 1": (
        lambda: djax.gut(0.1, RING, WORKERS, scaling=1.0),
        "gut: scaling must be below 1",
    ),
    "scaling and momentum": (
        lambda: djax.gut(0.1, RING, WORKERS, momentum=0.5, scaling=0.5),
        "every step would lengthen the next one: use a smaller scaling",
    ),
    "a scaling for which the matrix is not lazy enough": (
        lambda: djax.gut(0.1, *LAZY),
        "multiplied by 1.5 in each step.* is -0.6000: use weights='lazy'",
    ),
    "another number of workers": (
        lambda: djax.gut(0.1, topologies.ring(4), WORKERS),
        "4 workers but the communicator has 8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_the_check_of_gut_predicts_what_happens():
    """The workers of a torus move apart at the rate that the error tells."""
    graph, workers = LAZY
    x = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)
    for scaling, growth in ((0.9, 1.5), (0.1, None)):
        optimizer = djax.gut(0.1, graph, workers, scaling=scaling, check=False)
        models = conformance.average(
            optimizer, workers, x, 60, lambda p, state: djax.gut_eval_params(state, p)
        )
        spread = np.std(np.asarray(models), axis=0)
        if growth is None:
            assert spread[-1] < 1e-5
        else:
            assert spread[-1] / spread[-2] == pytest.approx(growth, rel=1e-2)
        np.testing.assert_allclose(models[:, 9].mean(), x.mean(), atol=1e-4)
    djax.gut(0.1, topologies.torus(16, weights="lazy"), workers)
