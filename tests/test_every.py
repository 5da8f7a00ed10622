"""What `every` computes in the steps that do not communicate: nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies
from djax._counting import jaxprs_in

N = 4
RING = topologies.ring(N)
WORKERS = communicators.simulated(N)

MECHANISMS = {
    "gossip": djax.gossip(RING, WORKERS),
    "all_reduce": djax.all_reduce(WORKERS),
    "relay": djax.relay(topologies.chain(N), WORKERS),
    "choco_gossip": djax.choco_gossip(RING, WORKERS, djax.compressors.top_k(0.5), 0.1),
    "power_gossip": djax.power_gossip(RING, WORKERS),
    "push_sum": djax.push_sum(topologies.one_peer_exponential(N), WORKERS),
    "every": djax.every(2, djax.gossip(RING, WORKERS)),
}
PARAMS = {"w": jnp.zeros((N, 3, 2)), "b": jnp.arange(1.0 * N)[:, None]}


def step_of(mechanism):
    """One step of all workers, without gradients."""

    def step(params, state):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = mechanism.update(zeros, state, params)
        return optax.apply_updates(params, updates), state

    return step


def waiting_loops(jaxpr):
    """For each loop that may have no iteration: whether all workers share its flag."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            # Of a flag for each worker, the condition is whether any is set.
            yield not equation.params["cond_jaxpr"].jaxpr.eqns
        for inner in jaxprs_in(equation):
            yield from waiting_loops(inner)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_step_without_communication_computes_nothing(name):
    """With a flag for each worker, XLA would communicate in every step, and select."""
    mechanism = djax.every(5, MECHANISMS[name])

    def worker(params, state):
        step = step_of(mechanism)
        return jax.lax.scan(
            lambda carry, _: (step(*carry), carry[0]), (params, state), length=5
        )

    state = WORKERS.spmd(mechanism.init)(PARAMS)
    program = jax.jit(WORKERS.spmd(worker)).trace(PARAMS, state)
    loops = list(waiting_loops(program.jaxpr.jaxpr))
    assert loops and all(loops)
    (params, _), history = program.lower().compile()(PARAMS, state)
    for t in range(5):
        jax.tree.map(
            lambda x, old, t=t: np.testing.assert_array_equal(x[:, t], old),
            history,
            PARAMS,
        )
    assert not np.array_equal(params["b"], PARAMS["b"]) or name == "every"


@pytest.mark.slow
@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("name", ["sweep", None])
def test_runs_of_a_sweep_may_be_at_different_steps(outside, name):
    """Counters are equal along the workers' axis, and along no other."""
    mechanism = djax.every(3, MECHANISMS["gossip"])
    axis = 0 if outside else 1
    starts = [
        WORKERS.spmd(mechanism.init)(PARAMS)._replace(step=jnp.full(N, t, jnp.int32))
        for t in range(3)
    ]
    alone = [WORKERS.spmd(step_of(mechanism))(PARAMS, start) for start in starts]
    states = jax.tree.map(lambda *xs: jnp.stack(xs, axis), *starts)
    if outside:
        sweep = jax.vmap(WORKERS.spmd(step_of(mechanism)), (None, 0), 0, axis_name=name)
    else:
        sweep = WORKERS.spmd(jax.vmap(step_of(mechanism), (None, 0), 0, axis_name=name))
    found = sweep(PARAMS, states)
    expected = jax.tree.map(lambda *xs: jnp.stack(xs, axis), *alone)
    jax.tree.map(np.testing.assert_allclose, found, expected)


def test_a_vmap_of_ones_own_serves_too():
    """Who maps over the communicator's axis by hand gets the same program."""
    mechanism = djax.every(5, MECHANISMS["gossip"])
    state = WORKERS.spmd(mechanism.init)(PARAMS)
    mapped = jax.vmap(step_of(mechanism), axis_name=WORKERS.axis_name)
    loops = list(waiting_loops(jax.make_jaxpr(mapped)(PARAMS, state).jaxpr))
    assert loops and all(loops)


@pytest.mark.parametrize("step", [0, 1])
def test_it_can_be_differentiated(step):
    """In both modes; the step that communicates is the second of two."""
    mechanism = djax.every(2, MECHANISMS["gossip"])
    state = WORKERS.spmd(mechanism.init)(PARAMS)
    state = state._replace(step=jnp.full(N, step, jnp.int32))

    def after(b):
        return WORKERS.spmd(step_of(mechanism))(PARAMS | {"b": b}, state)[0]["b"][:, 0]

    expected = RING.mixing_matrix if step else np.eye(N)
    for derivative in (jax.jacfwd, jax.jacrev):
        found = derivative(after)(PARAMS["b"])[:, :, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("outside", [True, False])
def test_steps_without_communication_cost_nothing_in_a_sweep_either(outside):
    """Runs at the same step, whose counters have an axis of runs like all else."""
    mechanism = djax.every(3, MECHANISMS["gossip"])
    start = WORKERS.spmd(mechanism.init)(PARAMS)
    axis = 0 if outside else 1
    both = jax.tree.map(lambda x: jnp.stack([x, x], axis), (PARAMS, start))
    if outside:
        sweep = jax.vmap(WORKERS.spmd(step_of(mechanism)))
    else:
        sweep = WORKERS.spmd(jax.vmap(step_of(mechanism)))
    loops = list(waiting_loops(jax.make_jaxpr(sweep)(*both).jaxpr))
    assert loops and all(loops)


@pytest.mark.slow
def test_silent_steps_of_a_schedule_cost_nothing():
    meet = RING.mixing_matrix
    schedule = topologies.from_matrices([np.eye(N), meet, np.eye(N)])
    for mechanism in (
        djax.gossip(schedule, WORKERS),
        djax.power_gossip(schedule, WORKERS),
        djax.moniqua(schedule, WORKERS, 8.0, 0.1, bits=8),
        djax.deep_squeeze(schedule, WORKERS, djax.compressors.sign(), 0.1),
    ):
        params, state = PARAMS, WORKERS.spmd(mechanism.init)(PARAMS)
        step = WORKERS.spmd(step_of(mechanism))
        loops = list(waiting_loops(jax.make_jaxpr(step)(params, state).jaxpr))
        assert loops and all(loops)
        for t in range(4):
            moved, state = step(params, state)
            same = jax.tree.map(np.array_equal, moved, params)
            assert all(jax.tree.leaves(same)) == (t != 1)
            params = moved
            np.testing.assert_array_equal(state.step, np.full(N, t + 1))
