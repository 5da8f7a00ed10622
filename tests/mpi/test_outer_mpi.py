"""Outer optimizers whose messages travel during the local steps, over real MPI."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, compressors, topologies
from djax.communicators import _background

MPI = communicators.mpi()
SIZE, (RANK,) = MPI.size, MPI.local_ranks
SIMULATED = communicators.simulated(SIZE)
RING = topologies.ring(SIZE)
NESTEROV = optax.sgd(0.7, 0.9, nesterov=True)
TARGETS = {
    "a": np.random.default_rng(0).normal(size=(SIZE, 6, 4)),
    "b": np.random.default_rng(1).normal(size=(SIZE, 5)),
}
RANDOM = compressors.random_k(0.3)
MECHANISMS = {
    "all_reduce": djax.all_reduce,
    "gossip": lambda c: djax.gossip(topologies.base_graph(SIZE), c),
    "gossip_lossy": lambda c: djax.gossip(RING, communicators.lossy(c, 0.3, seed=5)),
    "power_gossip": lambda c: djax.power_gossip(RING, c, rank=2, iterations=2),
    "choco_gossip": lambda c: djax.choco_gossip(RING, c, RANDOM, 0.2),
}


def optimizer(name, communicator, **options):
    """SGD with an outer optimizer, which sends after each third step by default."""
    options = {"fragments": 2, "delay": 2, "blend": 0.8} | options
    outer = djax.outer(6, NESTEROV, MECHANISMS[name](communicator), **options)
    return optax.chain(optax.sgd(0.1), outer)


def programs(optimizer, communicator):
    """Two programs: one that starts, and one that makes a number of steps."""

    def start(target):
        params = jax.tree.map(jnp.zeros_like, target)
        return params, optimizer.init(params)

    def steps(carry, target, *, count):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.subtract, params, target)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, length=count)[0]

    def make_steps(carry, target, count):
        return communicator.spmd(lambda c, t: steps(c, t, count=count))(carry, target)

    return jax.jit(communicator.spmd(start)), jax.jit(make_steps, static_argnums=2)


def target(communicator):
    """The targets of this process's workers."""
    return jax.tree.map(lambda x: jnp.asarray(x[communicator.local_ranks]), TARGETS)


def trained(optimizer, communicator, *counts):
    """The parameters and the state after some calls of the program."""
    start, steps = programs(optimizer, communicator)
    carry = start(target(communicator))
    for count in counts:
        carry = steps(carry, target(communicator), count)
    return jax.block_until_ready(carry)


@pytest.fixture
def exchanges(monkeypatch):
    """Times at which exchanges were made, and at which their results were taken."""
    made, taken = [], []
    make, finish = _background.Exchange._make, _background.Exchange._finish

    def making(self, values):
        results = make(self, values)
        made.append(time.perf_counter())
        return results

    def finishing(self, *args):
        taken.append(time.perf_counter())
        return finish(self, *args)

    monkeypatch.setattr(_background.Exchange, "_make", making)
    monkeypatch.setattr(_background.Exchange, "_finish", finishing)
    return made, taken


@pytest.mark.parametrize("name", MECHANISMS)
def test_same_to_rounding_as_in_simulation(name, exchanges):
    with jax.enable_x64(True):
        found, _ = trained(optimizer(name, MPI), MPI, 20)
        made, taken = exchanges
        assert len(made) == len(taken) == 6
        reference = None
        if RANK == 0:
            reference, _ = trained(optimizer(name, SIMULATED), SIMULATED, 20)
            reference = jax.tree.map(np.asarray, reference)
        reference = MPI.host_comm.bcast(reference)
    for mine, others in zip(*map(jax.tree.leaves, (found, reference)), strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine[0], others[RANK], rtol=1e-12, atol=1e-14)


def assert_same_bits(some, others):
    """Two trees, random keys included, do not differ at all."""

    def bits(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x).tobytes()

    assert jax.tree.structure(some) == jax.tree.structure(others)
    for a, b in zip(*map(jax.tree.leaves, (some, others)), strict=True):
        assert bits(a) == bits(b)


@pytest.mark.parametrize("name", ["choco_gossip", "power_gossip"])
def test_a_run_can_be_resumed_between_sending_and_the_outer_step(name, exchanges):
    """After 4 of 8 steps, the fragment that was sent in the third step is under way."""
    start, steps = programs(optimizer(name, MPI), MPI)
    goal = target(MPI)
    halfway = jax.device_get(steps(start(goal), goal, 4))
    expected = steps(halfway, goal, 4)
    made, _ = exchanges
    assert len(made) == 2  # After the third and the sixth step.
    _, again = programs(optimizer(name, MPI), MPI)
    assert_same_bits(again(halfway, goal, 4), expected)
    assert len(made) == 4


def test_a_started_exchange_is_not_used_for_another_state(exchanges):
    """As after a step back to an earlier checkpoint."""
    start, steps = programs(optimizer("gossip", MPI), MPI)
    goal = target(MPI)
    halfway = steps(start(goal), goal, 4)
    later = steps(steps(halfway, goal, 4), goal, 4)
    assert_same_bits(steps(steps(halfway, goal, 4), goal, 4), later)
    other = jax.tree.map(lambda x: 2 * x, halfway)
    doubled = steps(other, goal, 4)
    assert not np.array_equal(doubled[0]["b"], steps(halfway, goal, 4)[0]["b"])


def test_values_that_are_not_finite_are_compared_as_well(exchanges):
    made, taken = exchanges
    start, steps = programs(optimizer("all_reduce", MPI), MPI)
    goal = jax.tree.map(lambda x: x * np.nan, target(MPI))
    params, _ = steps(start(goal), goal, 8)
    assert np.isnan(params["b"]).all()
    assert len(made) == len(taken) == 2


def test_the_messages_travel_during_the_local_steps(exchanges):
    """The local steps take longer than the exchange, which has ended before its use."""
    made, taken = exchanges
    start, steps = programs(optimizer("power_gossip", MPI), MPI)
    goal = target(MPI)
    carry = start(goal)
    for _ in range(11):
        carry = jax.block_until_ready(steps(carry, goal, 1))
        time.sleep(0.3)
    assert len(made) == len(taken) == 3
    # The first exchange has to be compiled.
    assert all(end < need for end, need in zip(made[1:], taken[1:], strict=True))


@pytest.mark.parametrize("why", ["extra", "eager"])
def test_some_exchanges_are_made_by_the_program_itself(why, exchanges):
    """Those that depend on an extra argument, which may change meanwhile."""

    def mix(model, state, *, share):
        mean = MPI.mean(model)
        return jax.tree.map(lambda m, x: share * (m - x), mean, model), state

    mechanism = djax.mechanism(lambda params: (), mix, MPI, name="share")
    outer = djax.outer(2, optax.sgd(1.0), mechanism, delay=1)
    params, share = jnp.float32([RANK]), jnp.float32(0.5)

    def run(params, share):
        state = outer.init(params)
        for _ in range(3):
            updates, state = outer.update(0 * params, state, params, share=share)
            params = optax.apply_updates(params, updates)
        return params

    found = jax.jit(run)(params, share) if why == "extra" else run(params, share)
    np.testing.assert_allclose(found, [(RANK + (SIZE - 1) / 2) / 2], rtol=1e-6)
    assert exchanges == ([], [])


def test_a_function_that_both_threads_use_is_traced_for_each():
    """JAX would otherwise find the trace of the other thread in its cache."""
    used = []

    @jax.jit
    def mean(x):
        used.append(MPI._comm)
        return MPI.mean(x)

    @jax.jit
    def both(x):
        exchange = MPI.in_background(mean, x)
        exchange.start(x)
        return mean(2 * x), exchange.finish(x)

    twice, once = both(jnp.float32(RANK))
    assert twice == 2 * once == SIZE - 1
    assert used == [MPI.background_comm, MPI.comm]
