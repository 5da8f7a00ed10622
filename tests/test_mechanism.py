"""A mechanism is a value: how it composes, and what it can be asked."""

import copy
import functools
import pickle
from typing import NamedTuple

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, compressors, topologies
from djax._mechanism.value import parts_within

N = 4
RING, WORKERS = topologies.ring(N), communicators.simulated(N)
PARAMS = {"b": jnp.arange(1.0 * N)[:, None], "w": jnp.ones((N, 3, 2))}
BOTH = {"b": True, "w": True}

MAKERS = {
    "gossip": lambda: djax.gossip(RING, WORKERS),
    "gossip_in_time": lambda: djax.gossip(topologies.base_graph(N), WORKERS),
    "relay": lambda: djax.relay(topologies.chain(N), WORKERS),
    "push_sum": lambda: djax.push_sum(topologies.one_peer_exponential(N), WORKERS),
    "all_reduce": lambda: djax.all_reduce(WORKERS),
    "power_gossip": lambda: djax.power_gossip(RING, WORKERS),
    "moniqua": lambda: djax.moniqua(RING, WORKERS, 8.0, 0.1),
    "every": lambda: djax.every(2, djax.gossip(RING, WORKERS)),
    "on_updates": lambda: djax.on_updates(djax.gossip(RING, WORKERS)),
    "d2": lambda: djax.d2(djax.gossip(RING, WORKERS, consensus_rate=0.5)),
    "tracking": lambda: djax.gradient_tracking(djax.gossip(RING, WORKERS)),
    "led": lambda: djax.led(2, djax.gossip(RING, WORKERS), 0.1),
    "k_gt": lambda: djax.k_gt(2, djax.gossip(RING, WORKERS)),
    "prox_skip": lambda: djax.prox_skip(0.5, djax.gossip(RING, WORKERS), 0.1),
    "own": lambda: djax.mechanism(start, swap, WORKERS, RING),
}


def start(params):
    return jnp.zeros((), jnp.int32)


def swap(model, state, **extra):
    return djax.mixing.displacement(model, RING, WORKERS, step=state), state + 1


def program(transformation, steps=3):
    """Traces what makes updates of some steps, `[N, steps, ...]`, of parameters."""

    def worker(x):
        def step(state, t):
            updates = jax.tree.map(lambda v: jnp.full_like(v, 0.1 * t), x)
            updates, state = transformation.update(updates, state, x)
            return state, updates

        times = jnp.arange(steps, dtype=jnp.float32)
        return jax.lax.scan(step, transformation.init(x), times)[1]

    with jax.numpy_dtype_promotion("standard"):  # As MultiSteps needs it.
        return jax.jit(WORKERS.spmd(worker)).trace(PARAMS)


def same(one, other):
    """Tells whether two programs are equal, so that none of them needs to be run."""
    one, other = one.jaxpr, other.jaxpr
    return str(one) == str(other) and all(map(np.array_equal, one.consts, other.consts))


def updates_of(transformation, steps=3):
    """What a transformation makes of the updates of some steps, `[N, steps, ...]`."""
    return program(transformation, steps).lower().compile()(PARAMS)


@functools.cache
def program_alone(name):
    """The program of a mechanism that nothing is around."""
    return program(MAKERS[name]())


@functools.cache
def updates_alone(name):
    """What a mechanism makes of them that nothing is around."""
    return updates_of(MAKERS[name]())


WRAPPERS = {
    "alone": lambda m: m,
    "chain": lambda m: optax.chain(optax.identity(), m),
    "masked": lambda m: optax.masked(m, BOTH),
    "only": lambda m: djax.only(BOTH, m),
    "only by a function": lambda m: djax.only(lambda params: BOTH, m),
    "partition": lambda m: optax.partition({0: m}, {"b": 0, "w": 0}),
    "MultiSteps": lambda m: optax.MultiSteps(m, 1),
    "inject_hyperparams": lambda m: optax.inject_hyperparams(
        lambda scale: optax.chain(optax.scale(scale), m)
    )(1.0),
    "with_extra_args_support": optax.with_extra_args_support,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", MAKERS)
def test_composition_changes_nothing(name, wrapper):
    wrapped = program(WRAPPERS[wrapper](MAKERS[name]()))
    if not same(wrapped, program_alone(name)):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            wrapped.lower().compile()(PARAMS),
            updates_alone(name),
        )


@pytest.mark.parametrize("name", MAKERS)
def test_equal_calls_make_equal_values(name):
    """So that a static argument of `jit` is compiled once."""
    first, second = MAKERS[name](), MAKERS[name]()
    assert first is not second
    assert first == second and hash(first) == hash(second)
    assert first == pickle.loads(pickle.dumps(first)) == copy.deepcopy(first)
    assert first != djax.gossip(topologies.star(N), WORKERS)
    traces = []

    def init(x, mechanism):
        traces.append(mechanism)
        return mechanism.init(x)

    compiled = jax.jit(init, static_argnums=1)
    x = jax.tree.map(lambda v: v[0], PARAMS)
    if name != "relay" and name != "power_gossip":  # They talk, or ask for a rank.
        for mechanism in (first, second):
            compiled(x, mechanism)
        assert len(traces) == 1


def test_what_cannot_be_compared_equals_itself_alone():
    keys = [djax.gossip(RING, WORKERS, key=jax.random.key(0)) for _ in range(2)]
    assert keys[0] == keys[0] != keys[1]


def test_lists_and_dictionaries_are_compared_by_what_they_hold():
    for make in (
        lambda: djax.interleave([djax.gossip(RING, WORKERS)]),
        lambda: djax.only({"b": True, "w": False}, djax.gossip(RING, WORKERS)),
        lambda: djax.gossip(RING, WORKERS, consensus_rate=np.array(0.5)),
    ):
        assert make() == make() and hash(make()) == hash(make())
        assert make() == pickle.loads(pickle.dumps(make()))
    assert djax.interleave([djax.gossip(RING, WORKERS)]) != djax.interleave(
        [djax.gossip(RING, WORKERS, overlap=True)]
    )


def test_codes_are_pickled_with_their_mechanisms():
    code = compressors.top_k(0.5)
    mechanism = djax.choco_gossip(RING, WORKERS, code, 0.3)
    again = pickle.loads(pickle.dumps(mechanism))
    found, expected = updates_of(again), updates_of(mechanism)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert again == mechanism
    assert code == compressors.top_k(0.5) != compressors.top_k(0.25)
    mine = code._replace(unbiased=None)
    assert mine == mine and mine != code


def test_it_says_how_it_averages():
    gossip = djax.gossip(RING, WORKERS, overlap=True)
    assert gossip.communicator is WORKERS and gossip.graph is RING
    assert gossip.overlap and not gossip.needs_every_message
    around = djax.every(2, djax.only(BOTH, gossip))
    assert around.communicator is WORKERS and around.graph is RING
    assert around.overlap and not around.needs_every_message
    assert djax.power_gossip(RING, WORKERS).needs_every_message
    assert djax.d2(djax.gossip(RING, WORKERS, consensus_rate=0.5)).needs_every_message
    assert repr(djax.all_reduce(WORKERS)).startswith("all_reduce(communicator=simul")


@pytest.mark.parametrize("name", MAKERS)
def test_it_tells_how_far_it_moves_a_model(name):
    """`mix` is the algorithm: an update without updates."""
    mechanism = MAKERS[name]()

    def worker(x):
        nothing = jax.tree.map(jnp.zeros_like, x)
        displacement, _ = mechanism.mix(x, mechanism.init(x))
        updates, _ = mechanism.update(nothing, mechanism.init(x), x)
        return displacement, updates

    found, expected = jax.jit(WORKERS.spmd(worker))(PARAMS)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected
    )


OPAQUE = {
    "masked": optax.masked(djax.gossip(RING, WORKERS), BOTH),
    "chain": optax.chain(optax.sgd(0.1), djax.gossip(RING, WORKERS)),
    "within": djax.interleave([optax.masked(djax.gossip(RING, WORKERS), BOTH)]),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_corrections_refuse_what_they_cannot_ask(name):
    for correct in (
        djax.d2,
        djax.gradient_tracking,
        lambda m: djax.led(2, m, 0.1),
        lambda m: djax.k_gt(2, m),
        lambda m: djax.prox_skip(0.5, m, 0.1),
        lambda m: djax.quasi_global_momentum(0.1, m),
        lambda m: djax.quasi_global_adam(0.1, m),
    ):
        with pytest.raises(ValueError, match=r"use djax.only\(mask, mechanism\)"):
            correct(OPAQUE[name])


def test_only_keeps_what_corrections_ask_for():
    shared = {"b": True, "w": False}
    averaging = djax.only(shared, djax.gossip(RING, WORKERS, consensus_rate=0.5))
    found = updates_of(djax.d2(averaging))
    expected = updates_of(djax.d2(djax.gossip(RING, WORKERS, consensus_rate=0.5)))
    np.testing.assert_allclose(found["b"], expected["b"], rtol=1e-6)
    times = np.arange(3, dtype=np.float32)[:, None, None]
    unchanged = np.broadcast_to(0.1 * times, (N, 3, 3, 2))
    np.testing.assert_allclose(found["w"], unchanged, rtol=1e-6)
    overlapping = djax.only(shared, djax.gossip(RING, WORKERS, overlap=True))
    with pytest.raises(ValueError, match="d2 needs the average of this step's"):
        djax.d2(overlapping)


def test_what_a_chain_contains_is_found():
    base = optax.chain(optax.sgd(0.1), optax.masked(MAKERS["d2"](), BOTH))
    parts = parts_within(base, WORKERS, PARAMS)
    assert {part.name for part in parts} == {"d2", "gossip"}
    assert not parts_within(optax.adam(0.1), WORKERS, PARAMS)


def test_a_mechanism_of_ones_own():
    """Random matchings, written as two functions of public names."""
    matchings = topologies.random_matchings(N, period=50)

    def init(params):
        return jnp.zeros((), jnp.int32)

    def mix(model, step):
        moved = djax.mixing.displacement(model, matchings, WORKERS, step=step)
        return moved, step + 1

    own = djax.mechanism(init, mix, WORKERS, matchings)
    found = updates_of(own, steps=6)
    expected = updates_of(djax.gossip(matchings, WORKERS), steps=6)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert own.name == "mix" and own.graph is matchings


def test_extra_arguments_reach_those_who_name_them():
    def mix(model, state, loss):
        return jax.tree.map(lambda x: 0 * x + loss, model), state

    own = djax.mechanism(lambda params: (), mix, WORKERS)
    updates, _ = own.update({"x": jnp.zeros(2)}, (), {"x": jnp.ones(2)}, loss=3.0, z=1)
    np.testing.assert_array_equal(updates["x"], np.full(2, 3.0))


LOSSY = communicators.simulated(N, drop_probability=0.1)
WRONG = {
    "init": (lambda: djax.mechanism(None, swap, WORKERS), "init must be a function"),
    "mix": (lambda: djax.mechanism(start, 3, WORKERS), "mix must be a function"),
    "communicator": (lambda: djax.mechanism(start, swap, RING), "needs a communicator"),
    "graph": (
        lambda: djax.mechanism(start, swap, WORKERS, RING.graph),
        r"make one of it by topologies.from_networkx\(graph\)",
    ),
    "size": (
        lambda: djax.mechanism(start, swap, WORKERS, topologies.ring(5)),
        "has 5 workers but the communicator has 4",
    ),
    "losses": (
        lambda: djax.mechanism(start, swap, LOSSY, needs_every_message=True),
        "swap needs every message",
    ),
    "result": (
        lambda: updates_of(djax.mechanism(start, lambda x, s: x, WORKERS)),
        r"mix must return two values, \(displacement, state\)",
    ),
    "displacement": (
        lambda: updates_of(djax.mechanism(start, lambda x, s: (x["b"], s), WORKERS)),
        "mix must return a displacement like the model",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


NEEDING_STEPS = {
    "graph": (topologies.base_graph(N), WORKERS, "the graph changes with time"),
    "losses": (RING, LOSSY, "messages get lost"),
    "rounding": (
        RING,
        communicators.simulated(N, message_dtype="bfloat16", rounding_seed=0),
        "messages are rounded at random",
    ),
}


@pytest.mark.parametrize("name", NEEDING_STEPS)
def test_a_step_that_is_needed_is_asked_for(name):
    """Else the same would happen in each step, in silence."""
    graph, workers, message = NEEDING_STEPS[name]
    for talk in (
        lambda x: djax.mixing.displacement(x, graph, workers),
        lambda x: djax.mixing.weighted_sum(x, lambda y, x: y - x, graph, workers),
        lambda x: list(djax.mixing.exchange(x, graph, workers)),
    ):
        with pytest.raises(ValueError, match=f"mixing.*: {message}.*pass step="):
            workers.spmd(talk)(jnp.ones(N))
    workers.spmd(lambda x: djax.mixing.displacement(x, graph, workers, step=0))(
        jnp.ones(N)
    )


def test_masks_of_another_tree_are_named():
    gossip = djax.gossip(RING, WORKERS)
    for mask in ({"b": True}, {"b": True, "z": False}, lambda params: {"b": True}):
        with pytest.raises(ValueError, match="only: the mask has to be a tree of bool"):
            WORKERS.spmd(djax.only(mask, gossip).init)(PARAMS)


def test_a_mask_that_can_be_called_is_like_a_dictionary():
    gossip = djax.gossip(RING, WORKERS)

    def traced(mask, params):
        averaging = djax.only(mask, gossip)

        def worker(x):
            return averaging.update(x, averaging.init(x), x)

        return str(jax.make_jaxpr(WORKERS.spmd(worker))(params))

    mask = {"b": True, "w": False}
    called = traced(conformance.Layer(**mask), conformance.Layer(**PARAMS))
    assert called == traced(mask, PARAMS)


def test_extra_arguments_may_have_any_name():
    gossip = optax.chain(optax.sgd(0.1), djax.gossip(RING, WORKERS))

    def worker(x):
        return gossip.update(x, gossip.init(x), x, model=1, step=2, name=3)[0]

    WORKERS.spmd(worker)(jnp.ones(N))


def test_a_state_may_have_a_field_step_of_any_meaning():
    """Nothing of a mechanism of one's own is left out where nobody sends anything."""

    class State(NamedTuple):
        step: jax.Array
        calls: jax.Array

    silent = topologies.from_matrices([np.eye(N), RING.mixing_matrix])

    def mix(model, state):
        moved = djax.mixing.displacement(model, silent, WORKERS, step=state.calls)
        return moved, State(state.step / 2, state.calls + 1)

    own = djax.mechanism(
        lambda params: State(jnp.ones(()), jnp.zeros((), jnp.int32)),
        mix,
        WORKERS,
        silent,
    )
    states = conformance.average(
        own, WORKERS, jnp.ones(N), 4, read=lambda params, state: state
    )
    np.testing.assert_array_equal(states.step[:, -1], np.full(N, 1 / 16))
    np.testing.assert_array_equal(states.calls[:, -1], np.full(N, 4))
