"""The simulator's speeds give the same numbers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import each_way

import djax
from djax import communicators, simulation, topologies

SIZE, STEPS, BATCH = 4, 3, 2


class ConvNet(nn.Module):
    """A convolution, and a running mean that no one averages."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        seen = self.variable("statistics", "mean", lambda: jnp.zeros(3))
        seen.value = 0.9 * seen.value + 0.1 * x.mean((0, 1, 2))
        return nn.Dense(2)(x.mean((1, 2)))


MODEL = ConvNet()


def gradient_fn(params, model_state, batch):
    x, y = batch

    def loss_fn(params):
        variables = {"params": params, **model_state}
        out, state = MODEL.apply(variables, x, mutable=["statistics"])
        return jnp.mean((out - y) ** 2), state

    (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, state, {"loss": loss}


def run(communicator, dispatch):
    ring = topologies.ring(SIZE)
    optimizer = djax.dpsgd(0.1, ring, communicator, momentum=0.9)
    rng = np.random.default_rng(0)
    batches = (
        jnp.asarray(rng.normal(size=(SIZE, STEPS, BATCH, 6, 6, 1)), jnp.float32),
        jnp.asarray(rng.normal(size=(SIZE, STEPS, BATCH, 2)), jnp.float32),
    )
    variables = dict(MODEL.init(jax.random.key(0), batches[0][0, 0]))
    variables = communicators.replicate(communicator, variables)
    params = variables.pop("params")
    workers = simulation.init_workers(optimizer, communicator, params, variables)
    steps = simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )
    workers, metrics = steps(workers, batches)
    assert metrics["loss"].shape == (SIZE, STEPS)
    assert not jax.tree.leaves(params)[0].is_deleted()  # The caller's are kept.
    return workers, metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "dispatch"),
    [
        (communicators.simulated, True),
        (communicators.mesh, False),
        (communicators.mesh, True),
    ],
)
def test_all_ways_agree(make, dispatch):
    reference = run(communicators.simulated(SIZE), dispatch=False)
    other = run(make(SIZE), dispatch=dispatch)
    assert jax.tree.structure(reference) == jax.tree.structure(other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        reference,
        other,
    )


@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (8, 5), (SIZE,), (SIZE, 0)])
def test_batches_of_other_workers_are_refused(dispatch, shape):
    communicator = communicators.simulated(SIZE)
    optimizer = djax.all_reduce_sgd(0.1, communicator)

    def gradient_fn(x, model_state, batch):
        return x - batch, model_state, {"loss": x}

    workers = simulation.init_workers(optimizer, communicator, jnp.zeros(SIZE))
    steps = simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )
    with pytest.raises(ValueError, match="leading ax"):
        steps(workers, jnp.ones(shape))


def test_model_state_stays_local():
    workers, _ = run(communicators.simulated(SIZE), dispatch=False)
    (mean,) = jax.tree.leaves(workers.model_state)
    assert np.ptp(np.asarray(mean), axis=0).max() > 1e-4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Node:
    """A tree that does not define equality, as the states of Equinox."""

    value: jax.Array


@each_way
def test_trees_need_not_define_equality(make, dispatch):
    communicator = make(2)
    optimizer = djax.all_reduce_sgd(1.0, communicator)

    def gradient_fn(params, model_state, batch):
        return Node(params.value - batch), Node(model_state.value + 1), {}

    workers = simulation.init_workers(
        optimizer, communicator, Node(jnp.zeros(2)), Node(jnp.zeros(2))
    )
    steps = simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )
    workers, _ = steps(workers, jnp.asarray([[1.0] * 3, [3.0] * 3]))
    np.testing.assert_allclose(workers.params.value, [2.0, 2.0])
    np.testing.assert_array_equal(workers.model_state.value, [3.0, 3.0])


def test_steps_do_not_retrace():
    communicator = communicators.simulated(2)
    traces = []

    def gradient_fn(x, model_state, target):
        traces.append(1)
        return x - target, model_state, {"loss": jnp.sum((x - target) ** 2)}

    optimizer = optax.chain(optax.sgd(0.1), djax.all_reduce(communicator))
    workers = simulation.init_workers(optimizer, communicator, jnp.zeros((2, 3)))
    steps = simulation.make_steps(gradient_fn, optimizer, communicator)
    for _ in range(3):
        workers, _ = steps(workers, jnp.ones((2, 5, 3)))
    assert len(traces) <= 2  # scan traces its body for shapes, and once more
