"""LED, K-GT and ProxSkip: what they are the same as, what they cost, and refuse."""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_every import waiting_loops

import djax
from djax import communicators, topologies, training
from djax.corrections._prox_skip import _largest_rate
from djax.corrections._stability import growth

SIZE = 8
RING = topologies.ring(SIZE)
WORKERS = communicators.simulated(SIZE)
MODEL = jnp.zeros(3)


def gossip(rate=1.0, graph=RING):
    """Averages over a ring, whose smallest eigenvalue is -1/3 at a rate of 1."""
    return djax.gossip(graph, WORKERS, consensus_rate=rate)


BASE = topologies.base_graph(SIZE)
MATCHINGS = topologies.random_matchings(SIZE, 12)
SAME = {
    "led of period 1 is d2": (djax.led(1, gossip()), djax.d2(gossip())),
    "led over half the way is exact diffusion": (
        djax.led(1, gossip(0.5)),
        djax.d2(gossip(0.5)),
    ),
    "led is d2 around every": (
        djax.led(3, gossip(0.1)),
        djax.d2(djax.every(3, gossip(0.1))),
    ),
    "also over a schedule": (
        djax.led(1, gossip(0.5, BASE)),
        djax.d2(gossip(0.5, BASE)),
    ),
    "prox_skip of probability 1 is exact diffusion": (
        djax.prox_skip(1, gossip(), 1.0),
        djax.d2(gossip(0.5)),
    ),
    "prox_skip of even coins is led": (
        djax.prox_skip([False, False, True], gossip(), 0.3, chi=2),
        djax.led(3, gossip(0.25), 0.3),
    ),
    "k_gt of period 1 is gradient tracking": (
        djax.k_gt(1, gossip()),
        djax.gradient_tracking(gossip()),
    ),
    "also over relay": (
        djax.k_gt(1, djax.relay(topologies.chain(SIZE), WORKERS, missing="latest")),
        djax.gradient_tracking(
            djax.relay(topologies.chain(SIZE), WORKERS, missing="latest")
        ),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_limits(name):
    with jax.enable_x64(True):
        ours, theirs = (
            conformance.train(mechanism, WORKERS, dtype="float64")
            for mechanism in SAME[name]
        )
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def constant_step_error(mechanism, steps=6000):
    """Distance of the farthest worker from the optimum, with a constant step size."""
    with jax.enable_x64(True):
        final = conformance.train(
            mechanism, WORKERS, steps=steps, dtype="float64", learning_rate=0.05
        )
    *_, optimum = conformance.quadratics(SIZE)
    return np.abs(final - optimum).max()


def test_corrected_local_steps_reach_the_optimum_where_local_sgd_stops_short():
    assert constant_step_error(djax.every(8, gossip())) > 0.1
    for mechanism in (
        djax.led(8, gossip(0.5), 1 / 8),
        djax.led(8, djax.all_reduce(WORKERS), 1 / 8),
        djax.led(8, gossip(0.5, BASE), 0.04),
        djax.k_gt(8, gossip()),
        djax.k_gt(8, djax.relay(topologies.chain(SIZE), WORKERS)),
        djax.k_gt(8, gossip(graph=MATCHINGS)),
        djax.prox_skip(1 / 8, gossip(), 1 / 8),
    ):
        assert constant_step_error(mechanism) < 1e-9, mechanism


CORRECTIONS = {
    "led": djax.led(5, gossip(), 0.1),
    "k_gt": djax.k_gt(5, gossip()),
    "prox_skip": djax.prox_skip([False, False, False, False, True], gossip(), 0.1),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_sum_to_zero(name):
    mechanism = CORRECTIONS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 3)), jnp.float32)

    def worker(x):
        def step(carry, _):
            x, state = carry
            updates, state = mechanism.update(-0.1 * jnp.sin(3 * x), state, x)
            return (x + updates, state), None

        return jax.lax.scan(step, (x, mechanism.init(x)), length=15)[0][1].correction

    correction = np.asarray(WORKERS.spmd(worker)(x))
    assert np.abs(correction).max() > 0.01
    np.testing.assert_allclose(correction.sum(0), 0, atol=1e-6)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_local_step_adds_the_correction_and_nothing_else(name):
    """Whether workers average is one flag for all; a flag for each would cost all."""
    mechanism = CORRECTIONS[name]
    x = jnp.arange(1.0 * SIZE)
    state = WORKERS.spmd(mechanism.init)(x)
    state = state._replace(correction=jnp.linspace(-1.0, 1.0, SIZE))
    update = WORKERS.spmd(mechanism.update)
    loops = list(waiting_loops(jax.make_jaxpr(update)(x, state, x).jaxpr))
    assert loops and all(loops)
    for t in range(4):
        updates, after = jax.jit(update)(0.5 * x, state, x)
        np.testing.assert_array_equal(updates, 0.5 * x + state.correction)
        expected = state._replace(step=np.full(SIZE, t + 1, np.int32))
        jax.tree.map(np.testing.assert_array_equal, after, expected)
        state = after
    _, after = jax.jit(update)(0.5 * x, state, x)
    assert not np.array_equal(after.correction, state.correction)


def test_what_they_send():
    def cost(mechanism):
        return djax.communication_cost(mechanism, MODEL, WORKERS)

    once = cost(gossip())
    for name, times in {"led": 1, "k_gt": 2, "prox_skip": 1}.items():
        found = cost(CORRECTIONS[name])
        assert found.period == 5
        assert found.bytes_per_period == once.times(times).bytes_per_period
    drawn = cost(djax.prox_skip(0.25, gossip(), 0.1, key=jax.random.key(3)))
    assert drawn.period == 1024
    heads = drawn.messages_per_period[0] / once.messages_per_period[0]
    assert heads == int(heads) and abs(heads / 1024 - 0.25) < 0.05  # 3.7 sigma
    assert cost(djax.prox_skip(0.001, gossip(), 1e-4)).period == 16000


def test_coins_are_the_same_in_every_program_and_precision():
    """The mechanism is made again within each program of optax.inject_hyperparams."""
    made = [djax.prox_skip(0.5, gossip(), 0.1, key=jax.random.key(5))]
    with jax.enable_x64(True):
        made.append(djax.prox_skip(0.5, gossip(), 0.1, key=jax.random.key(5)))
    made.append(
        optax.inject_hyperparams(djax.prox_skip, static_args=("probability", "key"))(
            0.5, gossip(), 0.1, key=jax.random.key(5)
        )
    )
    raw = np.asarray(jax.random.key_data(jax.random.key(5)))
    made.append(djax.prox_skip(0.5, gossip(), 0.1, key=raw))
    first, *others = (conformance.train(mechanism, WORKERS) for mechanism in made)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-6)
    other = conformance.train(djax.prox_skip(0.5, gossip(), 0.1), WORKERS)
    assert np.abs(other - first).max() > 1e-3


def test_a_traced_rate_is_that_rate():
    for make, arguments, static in (
        (djax.led, (3, gossip(), 0.2), "period"),
        (djax.k_gt, (3, gossip(), 0.7), "period"),
        (djax.prox_skip, ([True, False], gossip(), 0.2, 1.5), "probability"),
    ):
        injected = optax.inject_hyperparams(make, static_args=static)(*arguments)
        ours, theirs = (
            conformance.train(mechanism, WORKERS)
            for mechanism in (injected, make(*arguments))
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_no_anchor_if_each_step_averages():
    init = WORKERS.spmd(djax.k_gt(1, gossip()).init)
    assert init(jnp.ones((SIZE, 3))).anchor is None
    x = jnp.ones((SIZE, 3))
    anchor = WORKERS.spmd(djax.k_gt(2, gossip()).init)(x).anchor
    np.testing.assert_array_equal(anchor, x)


def test_the_anchor_has_memory_of_its_own():
    """Programs of djax.training take over the memory of all workers."""
    optimizer = optax.chain(optax.sgd(0.1), djax.k_gt(2, gossip()))

    def gradient_fn(params, state, batch):
        return params - batch, state, {}

    workers = training.init_workers(optimizer, WORKERS, jnp.ones(SIZE))
    steps = training.make_steps(gradient_fn, optimizer, WORKERS)
    for _ in range(2):
        workers, _ = steps(workers, jnp.zeros((SIZE, 3)))
    assert np.isfinite(workers.params).all()


def diverges(mechanism):
    """Whether differences between workers grow without gradients."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 1)), jnp.float32)
    final = conformance.average(mechanism, WORKERS, x - x.mean(), 2000)[:, -1]
    return not np.abs(final).max() < 100


def test_the_growth_over_local_steps_is_that_of_matrices_with_identities():
    matrices = topologies.base_graph(6).matrices
    local = np.eye(6)
    stretched = [m for each in matrices for m in (local, local, each)]
    found = growth(matrices, [3], 0.4)
    assert growth(np.array(stretched), [1], 0.4) == pytest.approx(found)
    assert growth(matrices, [1, 5]) > growth(matrices, [1, 1])


@pytest.mark.parametrize(
    ("period", "rate", "graph"),
    [(1, 1.0, RING), (3, 1.0, topologies.star(SIZE)), (3, 0.6, RING)],
)
def test_led_names_the_largest_stable_rate(period, rate, graph):
    smallest = 1 - rate * (1 - graph.lambda_min)
    expected = 2 * (1 + smallest) / (1 - smallest) / period
    with pytest.raises(ValueError, match="largest stable dual_rate is") as error:
        djax.led(period, gossip(rate, graph), expected * 1.01)
    named = float(str(error.value).partition("dual_rate is ")[2].partition(". ")[0])
    assert 0.999 * expected <= named <= expected * (1 + 1e-6)
    djax.led(period, gossip(rate, graph), named)
    djax.led(period, gossip(rate, graph), jnp.float32(expected))
    larger = djax.led(period, gossip(rate, graph), expected * 1.05, check=False)
    assert diverges(larger)
    assert not diverges(djax.led(period, gossip(rate, graph), expected * 0.99))


@pytest.mark.parametrize("probability", [1, 0.7, 0.2, 0.05])
@pytest.mark.parametrize("smallest", [-0.9, -1 / 3, 0.0, 0.6, 0.95])
def test_the_rate_of_prox_skip_is_where_the_mean_square_is_stable(
    probability, smallest
):
    """Of the two linear maps of heads and tails, on the eigenvector."""

    def radius(rate):
        fed = rate * (smallest - 1)
        heads, tails = [[smallest] * 2, [fed, 1 + fed]], [[1, 1], [0, 1]]
        moments = probability * np.kron(heads, heads)
        moments = moments + (1 - probability) * np.kron(tails, tails)
        return np.abs(np.linalg.eigvals(moments)).max()

    largest = _largest_rate(probability, smallest)
    assert max(radius(share * largest) for share in (0.01, 0.5, 0.999)) < 1
    assert min(radius(share * largest) for share in (1.001, 1.5, 3)) > 1


def test_prox_skip_names_the_largest_stable_rate():
    """On a ring, heads have the smallest eigenvalue 1/3 if chi is 1."""
    with pytest.raises(ValueError, match="dual_rate is 1. Larger"):
        djax.prox_skip(0.5, gossip(), 1.01)
    djax.prox_skip(0.5, gossip(), 1.0)
    djax.prox_skip(0.5, gossip(), 1.2, chi=2)
    djax.prox_skip(0.5, gossip(), 1.2, check=False)


SCHEDULED = {
    "led": lambda rate: djax.led(4, gossip(graph=BASE), rate),
    "prox_skip": lambda rate: djax.prox_skip(0.25, gossip(graph=BASE), rate),
    "coins": lambda rate: djax.prox_skip([True, False, True, False], gossip(), rate),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_rates_are_checked_over_schedules_and_coins_too(name):
    with pytest.raises(ValueError, match="are multiplied by .* shrink at") as error:
        SCHEDULED[name](8.0)
    stable = float(str(error.value).partition("at dual_rate=")[2].partition(":")[0])
    assert stable == 8.0
    stable = float(str(error.value).rpartition("dual_rate=")[2].partition(". ")[0])
    assert not diverges(SCHEDULED[name](stable))


def test_an_only_worker_takes_any_rate():
    alone = communicators.simulated(1)
    averaging = djax.gossip(topologies.ring(1), alone)
    djax.led(4, averaging, 100.0)
    djax.prox_skip(0.5, averaging, 100.0)
