"""What stands where something else belongs is named at once, with a remedy."""

import warnings

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import each_way
from launch import mpirun, python

import djax
from djax import communicators, simulation, topologies
from djax.transport import _launch

SIZE = 4
RING = topologies.ring(SIZE)

each_communicator = pytest.mark.parametrize(
    "make", [communicators.simulated, communicators.mesh]
)
each_algorithm = pytest.mark.parametrize(
    "algorithm",
    [
        djax.adpsgd(optax.sgd(0.1)),
        djax.acid(optax.sgd(0.1), djax.acid_constants(RING)),
    ],
)


def gradient_fn(x, model_state, target):
    return jax.tree.map(lambda x: x - target, x), model_state, {}


@each_algorithm
@pytest.mark.parametrize(
    "wrap",
    [
        lambda a: djax.every(4, a),
        lambda a: djax.interleave([a, a]),
        lambda a: djax.d2(a),
        lambda a: djax.gradient_tracking(a),
        lambda a: djax.led(2, a),
        lambda a: djax.k_gt(2, a),
        lambda a: djax.prox_skip(0.5, a, 0.1),
        lambda a: djax.on_updates(a),
        lambda a: djax.quasi_global_momentum(0.1, a),
        lambda a: djax.quasi_global_adam(0.1, a),
        lambda a: simulation.make_steps(gradient_fn, a, communicators.simulated(SIZE)),
        lambda a: simulation.init_workers(
            a, communicators.simulated(SIZE), jnp.zeros(SIZE)
        ),
    ],
)
def test_asynchronous_algorithms_are_no_mechanisms(wrap, algorithm):
    with pytest.raises(TypeError, match="asynchronous.*simulate"):
        wrap(algorithm)


def refuses_at_the_first_step(optimizer, communicator, dispatch=False):
    workers = simulation.init_workers(optimizer, communicator, jnp.zeros(SIZE))
    steps = simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )
    with pytest.raises(TypeError, match="asynchronous.*simulate"):
        steps(workers, jnp.ones((SIZE, 3)))
    assert not workers.params.is_deleted()


@each_algorithm
@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, c: optax.chain(optax.clip(1.0), a, djax.gossip(RING, c)),
        lambda a, c: optax.named_chain(("a", a)),
        lambda a, c: optax.apply_if_finite(optax.chain(a), 3),
        lambda a, c: optax.masked(a, lambda params: True),
    ],
)
def test_asynchronous_algorithms_deep_in_a_chain_are_found(wrap, algorithm):
    """Optax takes whatever has an `init` and an `update`."""
    communicator = communicators.simulated(SIZE)
    refuses_at_the_first_step(wrap(algorithm, communicator), communicator)


@each_way
def test_asynchronous_algorithms_are_found_everywhere(make, dispatch):
    optimizer = optax.chain(djax.adpsgd(optax.sgd(0.1)))
    refuses_at_the_first_step(optimizer, make(SIZE), dispatch)


@each_algorithm
def test_asynchronous_algorithms_cost_nothing_that_can_be_counted(algorithm):
    with pytest.raises(TypeError, match="asynchronous"):
        djax.communication_cost(optax.chain(algorithm), jnp.ones(3), RING)


@each_algorithm
def test_events_may_be_programmed_by_hand(algorithm):
    """Who names the time that has passed knows what an event is."""
    communicator = communicators.simulated(SIZE)

    def event(x, elapsed):
        updates, _ = algorithm.update(x, algorithm.init(x), x, elapsed=elapsed)
        return x + updates

    x = communicator.spmd(event)(jnp.ones(SIZE), jnp.ones(SIZE))
    np.testing.assert_allclose(x, np.full(SIZE, 0.9), rtol=1e-6)
    x = jnp.ones(SIZE)
    updates, _ = algorithm.update(x, algorithm.init(x), x)
    np.testing.assert_allclose(updates, np.full(SIZE, -0.1), rtol=1e-6)


def wrong_gradient_fns():
    def good(x, model_state, batch):
        return x, model_state, {}

    return {
        "one result": (lambda x, s, b: x, "must return gradients, model_state and"),
        "two results": (lambda x, s, b: (x, {}), "must return gradients, "),
        "a list": (lambda x, s, b: list(good(x, s, b)), "must return gradients, "),
        "two arguments": (
            lambda x, b: (x, (), {}),
            "must take params, model_state and",
        ),
        "another tree": (lambda x, s, b: (x["w"], s, {}), "gradients of the shapes"),
        "another shape": (
            lambda x, s, b: (jax.tree.map(jnp.sum, x), s, {}),
            "gradients of the shapes",
        ),
        "integers": (
            lambda x, s, b: (jax.tree.map(lambda x: x.astype("int32"), x), s, {}),
            r"dtype int32 for params\['w'\], which is float32",
        ),
        "complex": (
            lambda x, s, b: (jax.tree.map(lambda x: x.astype("complex64"), x), s, {}),
            r"dtype complex64 for params\['w'\]",
        ),
        "no state": (lambda x, s, b: (x, (), {}), "model_state like"),
        "another state": (lambda x, s, b: (x, s[None], {}), "model_state like"),
        "another state's type": (
            lambda x, s, b: (x, s.astype("bfloat16"), {}),
            "model_state like",
        ),
    }


@each_way
@pytest.mark.parametrize("kind", wrong_gradient_fns())
def test_wrong_gradient_functions_are_named(make, dispatch, kind):
    wrong, message = wrong_gradient_fns()[kind]
    communicator = make(SIZE)
    optimizer = djax.all_reduce_sgd(0.1, communicator)
    params = {"w": jnp.zeros((SIZE, 2))}
    workers = simulation.init_workers(
        optimizer, communicator, params, jnp.zeros((SIZE, 3))
    )
    with pytest.raises(TypeError, match=f"make_steps: .*{message}"):
        steps = simulation.make_steps(wrong, optimizer, communicator, dispatch=dispatch)
        steps(workers, jnp.ones((SIZE, 3)))
    assert not workers.params["w"].is_deleted()


def test_states_that_change_their_dtype_are_named():
    def gradient_fn(x, model_state, batch):
        return x.astype("float32"), model_state, {}

    communicator = communicators.simulated(2)
    optimizer = optax.scale_by_rms()
    params = jnp.zeros((2, 3), "bfloat16")
    workers = simulation.init_workers(optimizer, communicator, params)
    steps = simulation.make_steps(gradient_fn, optimizer, communicator)
    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(TypeError, match=r"workers\.opt_state.*bfloat16\[3\] into"):
            steps(workers, jnp.ones((2, 3)))


@each_way
def test_donated_workers_are_not_used_again(make, dispatch):
    communicator = make(SIZE)
    optimizer = djax.all_reduce_sgd(0.1, communicator)
    x = communicators.replicate(communicator, 0.0)
    workers = simulation.init_workers(optimizer, communicator, x)
    steps = simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )
    kept = jax.tree.map(jnp.copy, workers)
    steps(workers, jnp.ones((SIZE, 3)))
    with pytest.raises(RuntimeError, match="donated.*workers that it returned"):
        steps(workers, jnp.ones((SIZE, 3)))
    steps(kept, jnp.ones((SIZE, 3)))


@each_communicator
def test_swapped_arguments_are_named(make):
    communicator = make(SIZE)
    optimizer = djax.all_reduce_sgd(0.1, communicator)
    x = jnp.zeros(SIZE)
    for call in (
        lambda: communicators.replicate({"w": 1.0}, communicator),
        lambda: communicators.check_agreement("the seed", communicator, [1] * SIZE),
        lambda: simulation.init_workers(optimizer, x, communicator),
        lambda: simulation.make_steps(gradient_fn, optimizer, SIZE),
    ):
        with pytest.raises(TypeError, match="needs a communicator.*order of the arg"):
            call()
    for call in (
        lambda: simulation.init_workers(communicator, optimizer, x),
        lambda: simulation.make_steps(optimizer, gradient_fn, communicator),
    ):
        with pytest.raises(TypeError, match="expected an optimizer or a mechanism"):
            call()


@each_communicator
def test_workers_of_another_communicator_are_named(make):
    communicator = make(SIZE)
    optimizer = djax.all_reduce_sgd(0.1, communicator)
    others = communicators.simulated(2)
    workers = simulation.init_workers(optimizer_of(others), others, jnp.zeros(2))
    steps = simulation.make_steps(gradient_fn, optimizer, communicator)
    with pytest.raises(ValueError, match=r"argument 0\.params has shape \(2,\).* 4 "):
        steps(workers, jnp.ones((SIZE, 3)))


def optimizer_of(communicator):
    return djax.all_reduce_sgd(0.1, communicator)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.activation = jax.nn.relu


@each_communicator
def test_modules_are_no_parameters(make):
    communicator = make(SIZE)
    optimizer = djax.dpsgd(0.1, RING, communicator)
    module = Net(nnx.Rngs(0))
    everyones = communicators.replicate(communicator, module)
    for params in (everyones, {"net": everyones}):
        with pytest.raises(TypeError, match=r"nnx\.split\(module, nnx\.Param"):
            simulation.init_workers(optimizer, communicator, params)
    _, params = nnx.split(module, nnx.Param)
    params = communicators.replicate(communicator, params)
    simulation.init_workers(optimizer, communicator, params)


@each_communicator
@pytest.mark.parametrize("static", [jax.nn.relu, "relu", object(), np.array("a")])
def test_leaves_that_are_no_arrays_are_named(make, static):
    communicator = make(SIZE)
    tree = {"w": jnp.ones(SIZE), "act": static}
    with pytest.raises(TypeError, match=r"replicate: \['act'\] is .*eqx\.partition"):
        communicators.replicate(communicator, tree)
    optimizer = djax.dpsgd(0.1, RING, communicator)
    with pytest.raises(TypeError, match=r"init_workers: \['act'\] is .*eqx\.partition"):
        simulation.init_workers(optimizer, communicator, tree)


@each_communicator
def test_all_kinds_of_arrays_can_be_replicated(make):
    tree = [1, 2.0, True, np.float32(3), np.ones(2), jnp.ones(2), jax.random.key(0)]
    everyones = communicators.replicate(make(SIZE), tree)
    assert all(x.shape[0] == SIZE for x in everyones)


ALONE = """
import djax
for _ in range(2):
    communicator = djax.communicators.mpi()
communicator = djax.communicators.mpi()
print(communicator.size)
"""


@pytest.mark.xdist_group("mpi")
def test_a_process_without_mpirun_hears_so_once(monkeypatch):
    for name in _launch._SIZES:
        monkeypatch.delenv(name, raising=False)
    result = python("-c", ALONE)
    assert result.stdout.split() == ["1"]
    assert result.stderr.count("mpirun -n SIZE") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.xdist_group("mpi")
def test_a_single_rank_of_mpirun_is_meant():
    result = mpirun(1, "-c", ALONE)
    assert result.stdout.split() == ["1"]
    assert "mpirun -n SIZE" not in result.stderr


@pytest.mark.parametrize(
    "params",
    [
        jnp.ones((SIZE, 3)),
        {"w": jax.ShapeDtypeStruct((SIZE, 3, 5), "float32"), "b": jnp.ones((SIZE, 5))},
    ],
)
def test_costs_of_all_workers_parameters_are_doubted(params):
    gossip = djax.gossip(RING, communicators.simulated(SIZE))
    with pytest.warns(UserWarning, match=r"ONE worker's.* counted 4 times: .*x\[0\]"):
        doubted = djax.communication_cost(gossip, params, RING)
    with warnings.catch_warnings(action="error"):
        one = djax.communication_cost(
            gossip, jax.tree.map(lambda x: jnp.ones(x.shape[1:]), params), RING
        )
        djax.communication_cost(gossip, {"w": params, "b": jnp.ones(5)}, RING)
        djax.communication_cost(gossip, (), RING)
    assert doubted.mean_bytes == SIZE * one.mean_bytes
