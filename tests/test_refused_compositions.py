"""Compositions and numbers with which workers would silently end at wrong points."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import asynchronous, communicators, compressors, simulation, topologies

N = 4
RING, CHAIN = topologies.ring(N), topologies.chain(N)
WORKERS = communicators.simulated(N)
EIGHT, RARE = communicators.simulated(8), topologies.base_graph(8)
GOSSIP = djax.gossip(RING, WORKERS)
MOMENTUM = djax.quasi_global_momentum(0.1, GOSSIP)
UNEVEN = topologies.from_matrices([[[0.5, 0.25], [0.5, 0.75]]])
MODEL = jnp.zeros((N, 6, 5))

REFUSED = {
    "d2 around an optimizer": (lambda: djax.d2(MOMENTUM), "d2 the mechanism alone"),
    "tracking around an optimizer": (
        lambda: djax.gradient_tracking(MOMENTUM),
        "gradient_tracking the mechanism alone",
    ),
    "led around an optimizer": (
        lambda: djax.led(2, MOMENTUM),
        "led the mechanism alone",
    ),
    "k_gt around an optimizer": (
        lambda: djax.k_gt(2, MOMENTUM),
        "k_gt the mechanism alone",
    ),
    "prox_skip around an optimizer": (
        lambda: djax.prox_skip(0.5, MOMENTUM, 0.1),
        "prox_skip the mechanism alone",
    ),
    "every around an optimizer": (
        lambda: djax.every(2, MOMENTUM),
        "every the mechanism alone",
    ),
    "on_updates around an optimizer": (
        lambda: djax.on_updates(MOMENTUM),
        "mechanism alone",
    ),
    "on_updates around a correction": (
        lambda: djax.on_updates(djax.d2(GOSSIP, check=False)),
        "moves no model: use d2 without on_updates",
    ),
    "on_updates around a correction of local steps": (
        lambda: djax.on_updates(djax.k_gt(2, GOSSIP)),
        "moves no model: use k_gt without on_updates",
    ),
    "d2 around on_updates": (
        lambda: djax.d2(djax.on_updates(GOSSIP)),
        "mechanism without on_updates",
    ),
    "tracking around on_updates": (
        lambda: djax.gradient_tracking(djax.on_updates(GOSSIP)),
        "mechanism without on_updates",
    ),
    "an optimizer in an optimizer": (
        lambda: djax.quasi_global_adam(0.1, MOMENTUM),
        "quasi_global_adam the mechanism alone",
    ),
    "every around an optimizer that tracks": (
        lambda: djax.every(2, djax.momentum_tracking(0.1, RING, WORKERS)),
        "the mechanism alone, without momentum_tracking",
    ),
    "d2 around an optimizer that tracks": (
        lambda: djax.d2(djax.beer(0.1, RING, WORKERS, compressors.sign(), 0.1)),
        "the mechanism alone, without beer",
    ),
    "momentum around an optimizer that tracks": (
        lambda: djax.quasi_global_momentum(0.1, djax.gut(0.1, RING, WORKERS)),
        "the mechanism alone, without gut",
    ),
    "a correction of a correction": (
        lambda: djax.d2(djax.d2(GOSSIP)),
        "corrects already",
    ),
    "led of a correction": (
        lambda: djax.led(2, djax.d2(GOSSIP)),
        "led corrects what d2 corrects already",
    ),
    "k_gt of a correction": (
        lambda: djax.k_gt(2, djax.gradient_tracking(GOSSIP)),
        "k_gt corrects what gradient_tracking corrects already",
    ),
    "a correction of prox_skip": (
        lambda: djax.d2(djax.prox_skip(0.5, GOSSIP, 0.1)),
        "d2 corrects what prox_skip corrects already",
    ),
    "led of a share of the coordinates": (
        lambda: djax.led(2, djax.sparse(GOSSIP, 0.1), 0.1),
        "led corrects every parameter in every step, but sparse",
    ),
    "prox_skip of updates": (
        lambda: djax.prox_skip(0.5, djax.on_updates(GOSSIP), 0.1),
        "prox_skip the mechanism without on_updates",
    ),
    "k_gt of updates": (
        lambda: djax.k_gt(2, djax.on_updates(GOSSIP)),
        "k_gt the mechanism without on_updates",
    ),
    "every around led": (
        lambda: djax.every(4, djax.led(2, GOSSIP, 0.1)),
        "led makes local steps by itself, so put it alone behind the optimizer",
    ),
    "every around k_gt": (
        lambda: djax.every(4, djax.k_gt(2, GOSSIP)),
        "k_gt makes local steps by itself, so put it alone behind the optimizer",
    ),
    "every around d2": (
        lambda: djax.every(4, djax.d2(GOSSIP)),
        r"use d2\(every\(k, ...\)\)",
    ),
    "d2 over a schedule on which it grows": (
        lambda: djax.d2(djax.gossip(topologies.base_graph(8), EIGHT)),
        "are multiplied by 2. Use a smaller consensus_rate",
    ),
    "d2 over rare averages by which it grows": (
        lambda: djax.d2(djax.every(4, djax.gossip(RARE, EIGHT, consensus_rate=0.5))),
        "d2 diverges with this gossip: over a period",
    ),
    "d2 over low-rank averages on such a schedule": (
        lambda: djax.d2(djax.power_gossip(topologies.base_graph(8), EIGHT)),
        "d2 diverges with this power_gossip",
    ),
    "every around tracking": (
        lambda: djax.every(4, djax.gradient_tracking(GOSSIP)),
        r"use gradient_tracking\(every\(k, ...\)\)",
    ),
    "led with too large a rate": (
        lambda: djax.led(4, GOSSIP),
        "at dual_rate=1: the largest stable dual_rate is 0.25. Larger rates are stable "
        "at half the consensus_rate, or on a topology with weights='lazy'",
    ),
    "prox_skip with too large a rate": (
        lambda: djax.prox_skip(0.25, GOSSIP, 1.0),
        "prox_skip diverges with this gossip at dual_rate=1: the largest",
    ),
    "prox_skip without heads": (
        lambda: djax.prox_skip([False, False], GOSSIP, 0.1),
        "none of the 2 coins is heads",
    ),
    "prox_skip with coins that are numbers": (
        lambda: djax.prox_skip([1, 0], GOSSIP, 0.1),
        r"must be a number, or a sequence of booleans, .* got \[1, 0\]",
    ),
    "prox_skip with too large a probability": (
        lambda: djax.prox_skip(1.5, GOSSIP, 0.1),
        r"prox_skip: probability must be in \(0, 1\], got 1.5",
    ),
    "prox_skip with a small chi": (
        lambda: djax.prox_skip(0.5, GOSSIP, 0.1, chi=0.5),
        "prox_skip: chi must be at least 1, got 0.5",
    ),
    "prox_skip with a key of a program": (
        lambda: jax.jit(lambda key: djax.prox_skip(0.5, GOSSIP, 0.1, key=key))(
            jax.random.key(0)
        ),
        "prox_skip: key must be known before programs are compiled",
    ),
    "d2 with too large a rate": (
        lambda: djax.d2(djax.gossip(RING, WORKERS, consensus_rate=1.2)),
        "smallest eigenvalue of its averages is -0.6",
    ),
    "d2 with too large weights": (
        lambda: djax.d2(djax.gossip(topologies.ring(N, weights=0.45), WORKERS)),
        "smallest eigenvalue of its averages is -0.8.*weights='lazy'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_composition_that_goes_wrong_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_d2_takes_what_it_can_use():
    for graph, rate in (
        (topologies.base_graph(8), 0.5),
        (topologies.random_matchings(8, 64), 0.5),
    ):
        djax.d2(
            djax.gossip(graph, communicators.simulated(graph.size), consensus_rate=rate)
        )
    ring = topologies.ring(8)
    djax.d2(djax.every(4, djax.gossip(ring, EIGHT, consensus_rate=0.4)))


def test_d2_refuses_weights_that_are_rounded():
    """It would sum up the rounding errors, which all have one direction."""
    two = communicators.simulated(2)
    with pytest.raises(ValueError, match="use gradient_tracking in place of d2"):
        djax.d2(djax.push_sum(UNEVEN, two))
    two.spmd(djax.gradient_tracking(djax.push_sum(UNEVEN, two)).init)(MODEL[:2])


@pytest.mark.parametrize("code", [compressors.top_k, compressors.random_k])
def test_ranks_of_vectors_are_refused(code):
    """The rank of a vector is nearly the whole of it."""
    averaging = djax.choco_gossip(RING, WORKERS, code(rank=1), 0.1)
    both = djax.interleave([averaging, averaging])
    with pytest.raises(ValueError, match=rf"{code.__name__}\(rank=...\) without inter"):
        WORKERS.spmd(both.init)(MODEL)
    WORKERS.spmd(both.init)(MODEL[:, 0])  # Without matrices nothing is lost.


@pytest.mark.parametrize("make", [djax.adpsgd, None])
def test_events_average_by_themselves(make):
    make = make or (lambda base: djax.acid(base, djax.acid_constants(RING)))
    algorithm = make(djax.dpsgd(0.1, RING, WORKERS))
    events = asynchronous.draw_events(RING, gradients=9)
    with pytest.raises(ValueError, match="give it the optimizer alone, without gossip"):
        asynchronous.simulate(
            algorithm,
            events,
            jnp.zeros(N),
            lambda x, state, batch: (x - batch, state, {}),
            lambda event: jnp.zeros((N, 1)),
        )


RATES = {
    "gossip": lambda rate: djax.gossip(RING, WORKERS, consensus_rate=rate),
    "choco_gossip": lambda rate: djax.choco_gossip(
        RING, WORKERS, compressors.identity(), rate
    ),
    "deep_squeeze": lambda rate: djax.deep_squeeze(
        RING, WORKERS, compressors.identity(), rate
    ),
    "moniqua": lambda rate: djax.moniqua(RING, WORKERS, 1.0, rate),
    "power_gossip": lambda rate: djax.power_gossip(RING, WORKERS, consensus_rate=rate),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_without_a_consensus_are_refused(name):
    """Of 1.5 on a ring of 4, at which neighbours swap their differences for ever."""
    for rate in (1.5, 2, jnp.float32(1.6)):
        with pytest.raises(
            ValueError, match=f"^{name}: consensus_rate must be below 1.5"
        ):
            RATES[name](rate)
    RATES[name](1.49)


SCHEDULE = optax.linear_schedule(0.1, 0.0, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: djax.dpsgd(jnp.ones(2), RING, WORKERS),
            "dpsgd: learning_rate must be o",
        ),
        (lambda: djax.dpsgd(None, RING, WORKERS), "dpsgd: learning_rate must be a num"),
        (
            lambda: djax.dpsgd(float("nan"), RING, WORKERS),
            "dpsgd: learning_rate must be",
        ),
        (
            lambda: djax.relay_sgd(-1, CHAIN, WORKERS),
            "relay_sgd: learning_rate must be",
        ),
        (lambda: djax.dpsgd(0.1, RING, WORKERS, momentum=2), "dpsgd: momentum must be"),
        (
            lambda: djax.dpsgd(0.1, RING, WORKERS, nesterov="no"),
            "nesterov must be True",
        ),
        (
            lambda: djax.gossip(RING, WORKERS, overlap="no"),
            "gossip: overlap must be True",
        ),
        (
            lambda: djax.power_gossip(RING, WORKERS, warm_start=1),
            "warm_start must be T",
        ),
        (
            lambda: djax.quasi_global_momentum(0.1, GOSSIP, momentum=2.0),
            "below 1, got 2",
        ),
        (lambda: djax.quasi_global_adam(0.1, GOSSIP, b1=-1), "b1 must be at least 0"),
        (lambda: djax.quasi_global_adam(0.1, GOSSIP, eps=1j), "eps must be a number"),
    ],
)
def test_impossible_numbers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_possible_numbers_are_taken():
    djax.dpsgd(SCHEDULE, RING, WORKERS, momentum=np.float32(0.9))
    djax.dpsgd(0, RING, WORKERS)
    djax.quasi_global_momentum(SCHEDULE, GOSSIP, momentum=0)


def test_a_schedule_of_several_rates_is_refused():
    optimizer = djax.quasi_global_momentum(lambda step: jnp.ones(2), GOSSIP)
    x = jnp.zeros(N)
    state = WORKERS.spmd(optimizer.init)(x)
    with pytest.raises(ValueError, match="learning rate must be one number"):
        WORKERS.spmd(optimizer.update)(x, state, x)


@pytest.mark.parametrize("make", [djax.quasi_global_momentum, djax.quasi_global_adam])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_steps_at_rate_0_leave_the_moments_as_they_are(make, dtype):
    """In half precision, too, where the smallest rate that counts is rounded to 0."""
    optimizer = make(lambda step: jnp.where(step < 3, 0, 0.1).astype(dtype), GOSSIP)
    x = jnp.array([1.0, 2.0, 3.0, 10.0])
    state = start = WORKERS.spmd(optimizer.init)(x)
    step = jax.jit(WORKERS.spmd(optimizer.update))
    for t in range(4):
        updates, state = step(x, state, x)
        x = x + updates
        moved = [
            not np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(state[0]), jax.tree.leaves(start[0]), strict=True
            )
        ]
        assert moved == [t == 3] and np.isfinite(x).all()


def test_donated_workers_are_named_wherever_they_are_passed():
    optimizer = djax.dpsgd(0.1, RING, WORKERS)

    def gradient_fn(x, state, batch):
        return x - batch, state, {}

    steps = simulation.make_steps(gradient_fn, optimizer, WORKERS)
    workers = simulation.init_workers(optimizer, WORKERS, jnp.zeros(N))
    steps(workers, jnp.zeros((N, 2)))
    with pytest.raises(RuntimeError, match="init_workers: .* has been donated"):
        simulation.init_workers(optimizer, WORKERS, workers.params)
    with pytest.raises(TypeError, match="the workers that init_workers returns, got"):
        steps(workers.params, jnp.zeros((N, 2)))


def test_a_variation_may_be_an_integer_of_numpy():
    found, expected = (
        asynchronous.draw_rounds(4, 5, variation=kind(3)) for kind in (np.int64, float)
    )
    assert found.finish.tolist() == expected.finish.tolist()
