"""States that are given to another mechanism, graph, code or model than theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import djax
from djax import communicators, compressors, topologies

N = 4
RING, CHAIN = topologies.ring(N), topologies.chain(N)
WORKERS = communicators.simulated(N)
TOP, BITS = compressors.top_k(0.5), compressors.quantize(4, unbiased=False)
GOSSIP = djax.gossip(RING, WORKERS)
MODEL = jnp.zeros((N, 6, 5))

OTHERS = {
    "another code": (
        djax.choco_gossip(RING, WORKERS, BITS, 0.1),
        djax.choco_gossip(RING, WORKERS, TOP, 0.1),
        "choco_gossip: the state belongs to another code",
    ),
    "a stateless code": (
        djax.deep_squeeze(RING, WORKERS, TOP, 0.1),
        djax.deep_squeeze(RING, WORKERS, BITS, 0.1),
        "deep_squeeze: the state belongs to another code",
    ),
    "another algorithm": (
        djax.dcd(RING, WORKERS, compressors.quantize(4)),
        djax.choco_gossip(RING, WORKERS, TOP, 0.1),
        "choco_gossip needs its own state, ChocoState, got DCDState",
    ),
    "another optimizer of the kind": (
        djax.momentum_tracking(0.1, RING, WORKERS),
        djax.gut(0.1, RING, WORKERS),
        "gut needs its own state, GutState, got MomentumTrackingState",
    ),
    "gossip": (
        GOSSIP,
        djax.relay(CHAIN, WORKERS),
        "relay needs its own state, RelayState, got Gos",
    ),
    "no state": (
        djax.all_reduce(WORKERS),
        GOSSIP,
        "gossip needs its own state, GossipState, got E",
    ),
    "another way to fill up": (
        djax.relay(CHAIN, WORKERS, missing="latest"),
        djax.relay(CHAIN, WORKERS),
        "relay: the state's initial is not like the parameters",
    ),
    "another rank": (
        djax.power_gossip(RING, WORKERS),
        djax.power_gossip(RING, WORKERS, rank=2),
        "power_gossip: the state belongs to another rank",
    ),
    "another layout": (
        djax.power_gossip(RING, WORKERS),
        djax.power_gossip(RING, WORKERS, rows_axis=0),
        "power_gossip: the state belongs to another rank or rows_axis",
    ),
    "fewer mechanisms": (
        djax.interleave([GOSSIP] * 2),
        djax.interleave([GOSSIP] * 3),
        "interleave has 3 mechanisms, but the state belongs to 2",
    ),
    "what every wraps": (
        GOSSIP,
        djax.every(2, GOSSIP),
        "every needs its own state, EveryState",
    ),
    "a correction": (
        djax.led(2, GOSSIP, 0.1),
        djax.prox_skip(0.5, GOSSIP, 0.1),
        "prox_skip needs its own state, ProxSkipState, got LEDState",
    ),
    "a period without an anchor": (
        djax.k_gt(1, GOSSIP),
        djax.k_gt(2, GOSSIP),
        "k_gt: the state's anchor is not like the parameters",
    ),
    "another optimizer": (
        djax.quasi_global_momentum(0.1, GOSSIP),
        djax.quasi_global_adam(0.1, GOSSIP),
        "quasi_global_adam needs its own state, QuasiGlobalAdamState",
    ),
}
WITH_MODELS = {
    "choco_gossip": djax.choco_gossip(RING, WORKERS, TOP, 0.1),
    "dcd": djax.dcd(RING, WORKERS, compressors.quantize(4)),
    "ecd": djax.ecd(RING, WORKERS, compressors.quantize(4)),
    "deep_squeeze": djax.deep_squeeze(RING, WORKERS, TOP, 0.1),
    "relay": djax.relay(CHAIN, WORKERS),
    "d2": djax.d2(djax.all_reduce(WORKERS)),
    "gradient_tracking": djax.gradient_tracking(GOSSIP),
    "led": djax.led(2, GOSSIP, 0.1),
    "k_gt": djax.k_gt(2, GOSSIP),
    "prox_skip": djax.prox_skip(0.5, GOSSIP, 0.1),
    "power_gossip": djax.power_gossip(RING, WORKERS),
    "quasi_global_momentum": djax.quasi_global_momentum(0.1, GOSSIP),
    "quasi_global_adam": djax.quasi_global_adam(0.1, GOSSIP),
    "momentum_tracking": djax.momentum_tracking(0.1, RING, WORKERS),
    "beer": djax.beer(0.1, RING, WORKERS, TOP, 0.1),
    "gut": djax.gut(0.1, RING, WORKERS),
}


def update(mechanism, state, params):
    return WORKERS.spmd(mechanism.update)(jnp.zeros_like(params), state, params)


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_something_else_is_refused(name):
    of, mechanism, message = OTHERS[name]
    state = WORKERS.spmd(of.init)(MODEL)
    with pytest.raises((TypeError, ValueError), match=message):
        update(mechanism, state, MODEL)
    update(mechanism, WORKERS.spmd(mechanism.init)(MODEL), MODEL)


@pytest.mark.parametrize("name", WITH_MODELS)
def test_a_state_of_another_model_is_refused(name):
    mechanism = WITH_MODELS[name]
    state = WORKERS.spmd(mechanism.init)(jnp.zeros((N, 6, 7)))
    with pytest.raises(ValueError, match=f"^{name}: the state"):
        update(mechanism, state, MODEL)


@pytest.mark.slow
def test_weights_of_an_uneven_schedule_go_on_to_be_averaged():
    """Also where the next schedule alone would leave all weights at 1."""
    matrix = [
        [0.4, 0.3, 0, 0.2],
        [0.6, 0.2, 0.1, 0],
        [0, 0.5, 0.5, 0.3],
        [0, 0, 0.4, 0.5],
    ]
    schedules = topologies.from_matrices([matrix]), topologies.one_peer_exponential(N)
    uneven, even = (djax.push_sum(schedule, WORKERS) for schedule in schedules)
    x = jnp.arange(1.0, 1 + N)
    state = WORKERS.spmd(uneven.init)(x)
    for averaging in [uneven] * 3 + [even] * 40:
        updates, state = jax.jit(WORKERS.spmd(averaging.update))(0 * x, state, x)
        x = x + updates
    found = WORKERS.spmd(djax.push_sum_eval_params)(state, x)
    np.testing.assert_allclose(found, 2.5, rtol=1e-6)
