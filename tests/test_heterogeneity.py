"""D², gradient tracking and quasi-global momentum beyond the common tests."""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references

import djax
from djax import communicators, topologies

SIZE = 8
RING = topologies.ring(SIZE, weights=0.3)
COMMUNICATOR = communicators.simulated(SIZE)


def constant_step_error(mechanism, steps=1500):
    """Distance of the farthest worker from the optimum, with a constant step size."""
    with jax.enable_x64(True):
        final = conformance.train(
            mechanism, COMMUNICATOR, steps=steps, dtype=jnp.float64
        )
    *_, optimum = conformance.quadratics(SIZE)
    return np.abs(final - optimum).max()


def test_corrections_reach_the_optimum_where_gossip_stops_short():
    gossip = djax.gossip(RING, COMMUNICATOR)
    assert constant_step_error(gossip) > 0.05
    for mechanism in (
        djax.d2(gossip),
        djax.gradient_tracking(gossip),
        djax.relay(topologies.chain(SIZE), COMMUNICATOR),
        djax.d2(djax.gossip(topologies.torus(SIZE), COMMUNICATOR, consensus_rate=0.5)),
        djax.d2(djax.all_reduce(COMMUNICATOR)),
        djax.gradient_tracking(djax.all_reduce(COMMUNICATOR)),
        djax.gradient_tracking(djax.interleave([gossip, gossip])),
    ):
        assert constant_step_error(mechanism) < 1e-11


def test_d2_has_derivatives_of_both_modes():
    mechanism = djax.d2(djax.gossip(RING, COMMUNICATOR))

    def worker(x):
        updates, state = mechanism.update(-x * x, mechanism.init(x), x)
        return mechanism.update(-x * x, state, x + updates)[0]

    steps = COMMUNICATOR.spmd(worker)
    for compiled in (steps, jax.jit(steps)):

        def loss(x, steps=compiled):
            return (steps(x) ** 2).sum()

        x = jnp.linspace(0.1, 1.0, SIZE)
        gradient, tangent = jax.grad(loss)(x), jax.jvp(loss, (x,), (x,))[1]
        np.testing.assert_allclose(gradient @ x, tangent, rtol=1e-5)


@pytest.mark.parametrize("wrap", [djax.d2, djax.gradient_tracking])
def test_corrections_sum_to_zero(wrap):
    mechanism = wrap(djax.gossip(RING, COMMUNICATOR))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 3)), jnp.float32)

    def worker(x):
        state = mechanism.init(x)
        for _ in range(5):
            updates, state = mechanism.update(-0.1 * x * x, state, x)
            x += updates
        return state.correction

    correction = np.asarray(COMMUNICATOR.spmd(worker)(x))
    assert np.abs(correction).max() > 0.01
    np.testing.assert_allclose(correction.sum(0), 0, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        djax.d2,
        djax.gradient_tracking,
        lambda m: djax.led(2, m, 0.1),
        lambda m: djax.k_gt(2, m),
        lambda m: djax.prox_skip(0.5, m, 0.1),
        lambda m: djax.quasi_global_momentum(0.1, m),
        lambda m: djax.quasi_global_adam(0.1, m),
    ],
)
@pytest.mark.parametrize(
    "mechanism",
    [
        djax.gossip(RING, COMMUNICATOR, overlap=True),
        djax.all_reduce(COMMUNICATOR, overlap=True),
        djax.relay(topologies.chain(SIZE), COMMUNICATOR, overlap=True),
        djax.push_sum(
            topologies.one_peer_exponential(SIZE), COMMUNICATOR, overlap=True
        ),
    ],
)
def test_a_mechanism_that_overlaps_is_refused_however_it_is_wrapped(wrap, mechanism):
    for wrapped in (mechanism, djax.every(2, djax.interleave([mechanism]))):
        with pytest.raises(ValueError, match="without overlap=True"):
            wrap(wrapped).init(jnp.ones(3))
    mechanism.init(jnp.ones(3))  # By itself it is fine.


def test_d2_is_refused_where_it_diverges():
    hypercube = topologies.hypercube(8)
    assert hypercube.lambda_min == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="is -0.5000, and may not be below -1/3") as e:
        djax.d2_sgd(0.1, hypercube, COMMUNICATOR)
    djax.d2_sgd(0.1, hypercube, COMMUNICATOR, check=False)
    djax.exact_diffusion(0.1, hypercube, COMMUNICATOR)
    djax.d2_sgd(0.1, topologies.hypercube(8, weights="lazy"), COMMUNICATOR)
    largest = float(str(e.value).split()[-1].rstrip("."))
    assert 0.22 < largest <= 2 / 9
    djax.d2_sgd(0.1, topologies.hypercube(8, weights=largest), COMMUNICATOR)
    with pytest.raises(ValueError, match="may not be below"):
        heavier = topologies.hypercube(8, weights=largest + 0.001)
        djax.d2_sgd(0.1, heavier, COMMUNICATOR)


def test_the_ring_of_even_size_is_just_allowed():
    djax.d2_sgd(0.1, topologies.ring(16), communicators.simulated(16))


@pytest.mark.parametrize(
    ("alias", "mechanism"),
    [
        (djax.d2_sgd, lambda g: djax.d2(g(1.0))),
        (djax.exact_diffusion, lambda g: djax.d2(g(0.5))),
        (djax.gradient_tracking_sgd, lambda g: djax.gradient_tracking(g(1.0))),
    ],
)
def test_the_aliases_are_chains(alias, mechanism):
    def gossip(rate):
        return djax.gossip(RING, COMMUNICATOR, consensus_rate=rate)

    chain = optax.chain(optax.sgd(0.1, 0.9, True), mechanism(gossip))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 3)), jnp.float32)

    def worker(optimizer):
        def run(x):
            state = optimizer.init(x)
            for _ in range(3):
                updates, state = optimizer.update(x * x, state, x)
                x += updates
            return x

        return COMMUNICATOR.spmd(run)(x)

    ours = alias(0.1, RING, COMMUNICATOR, momentum=0.9, nesterov=True)
    np.testing.assert_array_equal(worker(ours), worker(chain))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("form", ["nesterov", "heavy_ball", "normalized"])
def test_the_forms_of_quasi_global_momentum(form, overlap):
    hessian, target, _ = conformance.quadratics(SIZE)
    optimizer = djax.quasi_global_momentum(
        lambda step: 0.1 / (1.0 + jnp.asarray(step, jnp.float32)),
        djax.gossip(RING, COMMUNICATOR),
        momentum=0.7,
        form=form,
        overlap=overlap,
    )

    def worker(hessian, target, x):
        state = optimizer.init(x)
        for _ in range(6):
            updates, state = optimizer.update(hessian * (x - target), state, x)
            x += updates
        return x

    x, m = conformance.start(SIZE), np.zeros_like(target)
    with jax.enable_x64(True):
        actual = COMMUNICATOR.spmd(worker)(*map(jnp.asarray, (hessian, target, x)))
    W, mu = RING.mixing_matrix, 0.7

    def direction(g):
        return {
            "nesterov": g + mu * (mu * m + g),
            "heavy_ball": mu * m + g,
            "normalized": (mu * m + g) / (1 + mu),
        }[form]

    for t in range(6):
        g, rate = hessian * (x - target), 0.1 / (1 + t)
        new = W @ (x if overlap else x - rate * direction(g))
        m = mu * m + (1 - mu) * (x - new) / rate
        x = new - rate * direction(g) if overlap else new
    np.testing.assert_allclose(actual, x, rtol=1e-6, atol=1e-7)


def test_a_learning_rate_of_zero_leaves_momentum_finite():
    """As in the first step of a warm-up."""
    optimizer = djax.quasi_global_momentum(
        lambda step: 0.1 * jnp.asarray(step, jnp.float32),
        djax.gossip(RING, COMMUNICATOR),
    )
    x = jnp.tile(jnp.asarray([1.0, 2.0]), (SIZE, 1))

    def worker(x):
        state = optimizer.init(x)
        for _ in range(4):
            updates, state = optimizer.update(x, state, x)
            x += updates
        return x

    x = np.asarray(COMMUNICATOR.spmd(worker)(x))
    assert np.isfinite(x).all() and (np.abs(x) < 2).all()


def test_quasi_global_momentum_helps_on_different_data():
    """With a constant step size, it ends closer to the optimum than local momentum."""
    gossip = djax.gossip(RING, COMMUNICATOR)
    local = optax.chain(optax.trace(0.9, nesterov=True), optax.scale(0.1), gossip)
    quasi_global = optax.chain(
        optax.scale(-1.0), djax.quasi_global_momentum(0.1, gossip)
    )
    assert constant_step_error(quasi_global) < constant_step_error(local)


def test_unknown_forms():
    with pytest.raises(ValueError, match="form must be one of 'nesterov'"):
        djax.quasi_global_momentum(0.1, optax.identity(), form="polyak")


def test_d2_is_the_two_step_recursion():
    hessian, target, _ = conformance.quadratics(SIZE)
    with jax.enable_x64(True):
        actual = conformance.train(
            djax.d2(djax.gossip(RING, COMMUNICATOR)), COMMUNICATOR, dtype=jnp.float64
        )
    # The oracle of exact diffusion halves the way to W: give it the doubled one.
    twice = 2 * RING.mixing_matrix - np.eye(SIZE)
    expected = references.exact_diffusion(
        lambda x: hessian * (x - target), conformance.start(SIZE), 0.1, 20, twice
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-11)
