"""What every mechanism must do, whatever its mathematics."""

import functools

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import ALGORITHMS, Layer, each_algorithm, make, train

from djax import communicators, testing, topologies
from djax.testing import _flatten, _unflatten

SIZE = 8


@functools.cache
def program(name, where=communicators.simulated, graph=topologies.star):
    """Trains for any number of steps, so that several tests need only one program."""
    communicator = where(SIZE)
    mechanism = make(name, graph(SIZE), communicator)

    def run(steps, learning_rate, half_life, *problem):
        def schedule(step):
            return learning_rate * 0.5 ** (step.astype(jnp.float32) / half_life)

        def worker(hessian, target, x):
            def step(_, carry):
                params, state = carry
                gradient = _unflatten(hessian * (_flatten(params) - target))
                updates, state = optimizer.update(gradient, state, params)
                return optax.apply_updates(params, updates), state

            optimizer = optax.chain(optax.sgd(schedule), mechanism)
            carry = _unflatten(x), optimizer.init(_unflatten(x))
            return _flatten(jax.lax.fori_loop(0, steps, step, carry)[0])

        return communicator.spmd(worker)(*problem)

    return jax.jit(run)


def run(
    *which, steps=20, learning_rate=0.1, half_life=np.inf, dtype="float32"
) -> np.ndarray:
    """Trains with one of the programs; `[workers, DIM]`."""
    problem = (jnp.asarray(array, dtype) for array in testing.quadratics(SIZE))
    rates = np.float32(learning_rate), np.float32(half_life)
    return np.asarray(program(*which)(steps, *rates, *problem))


def on_a_wheel(name):
    """Chooses a program of workers with different numbers of neighbours."""
    return name, communicators.simulated, conformance.wheel


@each_algorithm
@pytest.mark.parametrize(
    ("graph", "where"),
    [
        ("ring", communicators.simulated),
        ("exponential", communicators.simulated),
        ("binary_tree", communicators.simulated),
        ("star", communicators.mesh),
    ],
)
def test_matches_the_dense_reference(name, graph, where):
    topology, communicator = getattr(topologies, graph)(SIZE), where(SIZE)
    with jax.enable_x64(True):
        mechanism = make(name, topology, communicator)
        actual = train(mechanism, communicator, dtype=jnp.float64)
        expected = conformance.expected(name, topology)  # Some draw with jax.random.
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", conformance.EVERY_DTYPE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_in_simulation_and_on_a_mesh(name, dtype):
    simulated = run(name, dtype=dtype)
    sharded = run(name, communicators.mesh, dtype=dtype)
    assert simulated.dtype == sharded.dtype == dtype
    conformance.assert_same(name, dtype, simulated, sharded)


@pytest.mark.parametrize("name", [k for k, a in ALGORITHMS.items() if a.converges])
def test_every_worker_reaches_the_optimum(name):
    final = run(*on_a_wheel(name), steps=2000, learning_rate=0.2, half_life=200)
    *_, optimum = conformance.quadratics(SIZE)
    np.testing.assert_allclose(final, np.tile(optimum, (SIZE, 1)), atol=1e-2)


@pytest.mark.parametrize("name", [k for k, a in ALGORITHMS.items() if a.exact])
def test_on_a_complete_graph_all_workers_become_equal(name):
    topology, communicator = topologies.complete(SIZE), communicators.simulated(SIZE)
    final = train(make(name, topology, communicator), communicator, steps=3)
    if ALGORITHMS[name].averages_models:
        spread = final - final.mean(0, keepdims=True)
    else:  # Averages steps, so that the workers keep the differences of their starts.
        moved = final - conformance.start(SIZE)
        spread = moved - moved.mean(0, keepdims=True)
    np.testing.assert_allclose(spread, 0, atol=1e-6)


@functools.cache
def alone():
    """What the base optimizer does without a mechanism, `[1, DIM]`."""
    return train(optax.identity(), communicators.simulated(1))


@pytest.mark.parametrize("name", [k for k, a in ALGORITHMS.items() if a.alone_is_base])
def test_one_worker_is_the_base_optimizer(name):
    topology, communicator = topologies.ring(1), communicators.simulated(1)
    actual = train(make(name, topology, communicator), communicator)
    np.testing.assert_allclose(actual, alone(), rtol=1e-5)


@pytest.mark.parametrize("name", [k for k, a in ALGORITHMS.items() if a.keeps_mean])
def test_keeps_the_mean_of_the_workers(name):
    """Without gradients, nothing is created or lost."""
    final = run(*on_a_wheel(name), learning_rate=0.0)
    np.testing.assert_allclose(
        final.mean(0), conformance.start(SIZE).mean(0), rtol=0, atol=1e-6
    )


@each_algorithm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_preserves_dtypes_and_carries_a_stable_state(name, dtype):
    # The scan inside fails if the state changes its structure, shapes or dtypes.
    topology, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    mechanism = make(name, topology, communicator)
    found = train(mechanism, communicator, steps=2, dtype=dtype, trace=True)
    assert found.dtype == dtype


PARAMS = {"b": jnp.ones((SIZE, 3)), "w": jnp.ones((SIZE, 2, 3))}


@functools.cache
def traced(name, layer=False, **extra):
    """The program of the first step, as a text."""
    topology, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    mechanism = make(name, topology, communicator)

    def worker(x):
        return mechanism.update(x, mechanism.init(x), x, **extra)

    params = Layer(**PARAMS) if layer else PARAMS
    return str(jax.make_jaxpr(communicator.spmd(worker))(params))


@each_algorithm
def test_ignores_unknown_extra_args(name):
    assert traced(name, surprise=1) == traced(name)


@each_algorithm
def test_parameters_that_can_be_called_are_like_a_dictionary(name):
    assert traced(name, layer=True) == traced(name)


@each_algorithm
def test_compiles_once(name):
    topology, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    mechanism = make(name, topology, communicator)
    traces = []

    def update(updates, state, params):
        traces.append(1)
        return mechanism.update(updates, state, params)

    params = {"w": jnp.ones((SIZE, 3))}
    state = jax.jit(communicator.spmd(mechanism.init))(params)
    update = jax.jit(communicator.spmd(update))
    for _ in range(3):
        updates, state = update(params, state, params)
    assert len(traces) == 1
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@each_algorithm
def test_needs_parameters(name):
    topology, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    mechanism = make(name, topology, communicator)
    params = jnp.ones((SIZE, 3))
    state = jax.eval_shape(communicator.spmd(mechanism.init), params)
    update = communicator.spmd(lambda u, s: mechanism.update(u, s))
    if not ALGORITHMS[name].averages_models:
        jax.eval_shape(update, params, state)
        return
    with pytest.raises(ValueError, match="params"):
        jax.eval_shape(update, params, state)


@each_algorithm
def test_says_where_it_must_run(name):
    topology, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    mechanism = make(name, topology, communicator)
    params = jnp.ones(3)
    with pytest.raises(RuntimeError, match="inside communicator.spmd"):
        state = mechanism.init(params)
        for _ in range(3):  # The corrections need not communicate in the first step.
            _, state = mechanism.update(params, state, params)


@each_algorithm
def test_refuses_integers(name):
    topology, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    mechanism = make(name, topology, communicator)
    params = {"w": jnp.ones(3), "count": jnp.ones((), jnp.int32)}
    with pytest.raises(TypeError, match=r"\['count'\].* int32"):
        mechanism.init(params)


@pytest.mark.parametrize("name", [k for k, a in ALGORITHMS.items() if a.keeps_dtypes])
def test_updates_keep_their_own_dtype(name):
    """As behind an optimizer that computes in half precision, or in more."""
    topology, communicator = topologies.ring(SIZE), communicators.simulated(SIZE)
    mechanism = make(name, topology, communicator)

    def worker(x, updates):
        def step(state, _):
            out, state = mechanism.update(updates, state, x)
            return state, out

        return jax.lax.scan(step, mechanism.init(x), length=4)[1]

    for mine, theirs in (("float32", "bfloat16"), ("bfloat16", "float32")):
        with jax.numpy_dtype_promotion("standard"):
            out = jax.eval_shape(
                communicator.spmd(worker),
                jnp.ones((SIZE, 3), mine),
                jnp.ones((SIZE, 3), theirs),
            )
        assert out.dtype == theirs
