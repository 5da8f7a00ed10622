"""Rates that vanish, that are no numbers, or that only a compiled program knows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies

RING, WORKERS = topologies.ring(4), communicators.simulated(4)
GOSSIP = djax.gossip(RING, WORKERS)

TAKES_A_RATE = {
    "gossip": lambda rate: djax.gossip(RING, WORKERS, consensus_rate=rate),
    "choco_gossip": lambda rate: djax.choco_gossip(
        RING, WORKERS, djax.compressors.top_k(0.5), rate
    ),
    "deep_squeeze": lambda rate: djax.deep_squeeze(
        RING, WORKERS, djax.compressors.top_k(0.5), rate
    ),
    "moniqua": lambda rate: djax.moniqua(RING, WORKERS, 1.0, rate),
    "moniqua: theta": lambda rate: djax.moniqua(RING, WORKERS, rate, 0.1),
    "power_gossip": lambda rate: djax.power_gossip(RING, WORKERS, consensus_rate=rate),
    "power_gossip: vector_rate": lambda rate: djax.power_gossip(
        RING, WORKERS, vector_rate=rate
    ),
    "led": lambda rate: djax.led(1, GOSSIP, rate),
    "k_gt": lambda rate: djax.k_gt(2, GOSSIP, rate),
    "prox_skip": lambda rate: djax.prox_skip(0.5, GOSSIP, rate),
    "beer": lambda rate: djax.beer(
        0.1, RING, WORKERS, djax.compressors.top_k(0.5), rate
    ),
    "beer: learning_rate": lambda rate: djax.beer(
        rate, RING, WORKERS, djax.compressors.top_k(0.5), 0.1
    ),
    "gut": lambda rate: djax.gut(rate, RING, WORKERS),
    "gut: consensus_rate": lambda rate: djax.gut(
        0.1, RING, WORKERS, scaling=0.1, consensus_rate=rate
    ),
    "momentum_tracking": lambda rate: djax.momentum_tracking(rate, RING, WORKERS),
    "momentum_tracking: weight_decay": lambda rate: djax.momentum_tracking(
        0.1, RING, WORKERS, weight_decay=rate
    ),
    "quasi_global_momentum": lambda rate: djax.quasi_global_momentum(rate, GOSSIP),
    "quasi_global_adam": lambda rate: djax.quasi_global_adam(rate, GOSSIP),
}

NO_RATES = [
    -1.0,
    np.nan,
    np.inf,
    True,
    np.array(-1.0),
    np.array([0.5, 0.5]),
    jnp.asarray(-1.0),
    jnp.asarray(jnp.nan),
    jnp.asarray(jnp.inf),
    jnp.full(1, 0.5),
    jnp.asarray(0.5 + 0.5j),
    jnp.asarray(True),
    [0.5],
]


@pytest.mark.parametrize("name", TAKES_A_RATE)
def test_arrays_are_checked_like_numbers(name):
    for rate in (
        0.5,
        1,
        np.float32(0.5),
        np.array(0.5),
        jnp.asarray(0.5, jnp.bfloat16),
    ):
        TAKES_A_RATE[name](rate)
    for rate in NO_RATES:
        with pytest.raises(ValueError, match=f"{name.partition(':')[0]}: .* must be"):
            TAKES_A_RATE[name](rate)
    jax.jit(lambda rate: TAKES_A_RATE[name](rate) and rate)(0.5)
    with pytest.raises(ValueError, match="one number for all parameters"):
        jax.jit(lambda rate: TAKES_A_RATE[name](rate) and rate)(jnp.ones(2))


def run(optimizer, start, target, steps):
    """All workers' models after every step."""

    def worker(x, target):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(x - target, state, x)
            x = x + updates
            return (x, state), (x, state)

        return jax.lax.scan(step, (x, optimizer.init(x)), length=steps)[1]

    return jax.jit(WORKERS.spmd(worker))(start, target)


@pytest.mark.parametrize("rate", [0.0, 1e-12, -1e-12])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("form", ["nesterov", "heavy_ball", "normalized"])
def test_a_step_at_rate_zero_keeps_the_quasi_global_momentum(rate, overlap, form):
    """What averaging alone moves says nothing about the gradients."""

    def schedule(step):
        return jnp.where(step % 3 == 1, rate, 0.1)

    optimizer = djax.quasi_global_momentum(schedule, GOSSIP, form=form, overlap=overlap)
    start, target = jnp.asarray([0.0, 1.0, 2.0, 9.0]), jnp.arange(4.0)
    _, state = run(optimizer, start, target, 6)
    momentum = np.asarray(state.momentum)
    np.testing.assert_array_equal(momentum[:, 1], momentum[:, 0])
    np.testing.assert_array_equal(momentum[:, 4], momentum[:, 3])
    assert (momentum[:, 3] != momentum[:, 2]).all()


def test_quasi_global_momentum_bears_a_warm_up_from_zero():
    """A schedule may begin and end at exactly 0."""

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        return 0.05 * jnp.clip(jnp.minimum(step / 20, 5 - step / 20), 0, 1)

    start, target = jnp.asarray([-2.0, 1.0, 3.0, 0.5]), jnp.arange(4.0)
    for make in (
        lambda: djax.quasi_global_momentum(rate, GOSSIP),
        lambda: optax.inject_hyperparams(djax.quasi_global_momentum)(rate, GOSSIP),
    ):
        x, _ = run(make(), start, target, 110)
        assert np.abs(np.asarray(x) - 1.5).max() < 4


def test_quasi_global_adam_of_complex_parameters_is_refused():
    """Nobody has defined it, and with squared magnitudes it overshoots."""
    params = {"real": jnp.zeros(2), "z": jnp.zeros(2, "complex64")}
    with pytest.raises(TypeError, match=r"adam is for .* params\['z'\] is complex"):
        djax.quasi_global_adam(0.05, GOSSIP).init(params)
