"""Steps that take the averaged model as it is, without a detour over updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, compressors, topologies
from djax.training import apply_gradients

N = 8
RING, WORKERS = topologies.ring(N), communicators.simulated(N)
GOSSIP = djax.gossip(RING, WORKERS)
RNG = np.random.default_rng(0)
X, G = RNG.normal(size=(2, N, 3, 5)).astype(np.float32)
X = 1000 * X  # Adding the update first, or the displacement, rounds differently.


def by_updates(optimizer, grads, state, params):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def steps(optimizer, step=apply_gradients, communicator=WORKERS, x=X, count=3):
    def worker(x, g):
        carry = {"x": x}, optimizer.init({"x": x})
        for _ in range(count):
            carry = step(optimizer, {"x": g}, carry[1], carry[0])
        return carry

    params, state = jax.jit(communicator.spmd(worker))(x, jnp.asarray(G, x.dtype))
    return np.asarray(params["x"]), state


def test_the_mean_itself_becomes_the_model():
    """An update that is rounded, and added, would miss it."""
    models, _ = steps(optax.chain(optax.sgd(0.1), djax.all_reduce(WORKERS)))
    np.testing.assert_array_equal(models, np.broadcast_to(models[:1], models.shape))


def test_the_displacement_is_added_to_the_stepped_model():
    optimizer = optax.chain(optax.sgd(0.1), GOSSIP)
    models, _ = steps(optimizer, count=1)

    def gossip(x, g):
        y = x - 0.1 * g
        return y + djax.mixing.displacement(y, RING, WORKERS)

    expected = jax.jit(WORKERS.spmd(gossip))(X, G)
    np.testing.assert_array_equal(models, expected)
    assert (models != steps(optimizer, by_updates, count=1)[0]).any()


sign = compressors.sign()
LAST = {
    "all_reduce": djax.all_reduce(WORKERS),
    "all_reduce, overlap": djax.all_reduce(WORKERS, overlap=True),
    "gossip": GOSSIP,
    "gossip, overlap": djax.gossip(RING, WORKERS, overlap=True),
    "relay": djax.relay(topologies.chain(N), WORKERS),
    "relay, latest": djax.relay(topologies.chain(N), WORKERS, missing="latest"),
    "d2": djax.d2(djax.gossip(RING, WORKERS, consensus_rate=0.5)),
    "gradient_tracking": djax.gradient_tracking(GOSSIP),
    "power_gossip": djax.power_gossip(RING, WORKERS),
    "choco_gossip": djax.choco_gossip(RING, WORKERS, sign, 0.1),
    "dcd": djax.dcd(RING, WORKERS, compressors.quantize(8)),
    "every": djax.every(2, GOSSIP),
    "silent steps": djax.gossip(topologies.random_matchings(N, 4), WORKERS),
}


@pytest.mark.parametrize("name", LAST)
def test_the_result_is_that_of_the_updates_up_to_rounding(name):
    x = X.astype(np.float64)
    with jax.enable_x64(True):
        optimizer = optax.chain(optax.sgd(0.1, 0.9), LAST[name])
        models, state = steps(optimizer, x=x)
        expected, after = steps(optimizer, by_updates, x=x)
    np.testing.assert_allclose(models, expected, rtol=1e-12, atol=1e-10)
    assert jax.tree.structure(state) == jax.tree.structure(after)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(djax.on_updates(GOSSIP), optax.sgd(0.1)),
        optax.chain(optax.sgd(0.1), djax.on_updates(GOSSIP)),
        optax.chain(optax.sgd(0.1), GOSSIP, optax.scale(0.5)),
        optax.sgd(0.1),
    ],
    ids=["first", "on updates", "not last", "none"],
)
def test_other_optimizers_go_over_updates(optimizer):
    models, _ = steps(optimizer)
    np.testing.assert_array_equal(models, steps(optimizer, by_updates)[0])


def test_a_model_in_another_tree_is_not_taken():
    """A wrapper may give a mechanism the parameters in a tree of its own."""

    def update(updates, state, params):
        (moved,), state = GOSSIP.update((updates,), state, (params,))
        return moved, state

    wrapped = optax.GradientTransformation(lambda x: GOSSIP.init((x,)), update)
    models, _ = steps(wrapped)
    np.testing.assert_array_equal(models, steps(wrapped, by_updates)[0])


def test_narrow_models_are_not_rounded_before_they_are_averaged():
    """Next to a model of bfloat16, small updates would be lost."""
    x = jnp.asarray(X, jnp.bfloat16)
    for optimizer in (
        optax.chain(optax.sgd(0.1), GOSSIP),
        djax.decentralized(optax.sgd(0.1), GOSSIP),
    ):
        models, _ = steps(optimizer, x=x)
        np.testing.assert_array_equal(models, steps(optimizer, by_updates, x=x)[0])


def test_further_arguments_reach_the_optimizer():
    optimizer = optax.chain(optax.scale_by_backtracking_linesearch(3), GOSSIP)

    def worker(x):
        def loss(x):
            return (x**2).sum()

        state = optimizer.init(x)
        value, grad = jax.value_and_grad(loss)(x)
        return apply_gradients(
            optimizer, -grad, state, x, value=value, grad=grad, value_fn=loss
        )[0]

    assert jnp.isfinite(jax.vmap(worker, axis_name="workers")(jnp.ones((N, 2)))).all()


@pytest.mark.parametrize("base", [optax.sgd(0.1, 0.9), optax.adam(0.1)])
@pytest.mark.usefixtures("as_users")
def test_on_devices_of_their_own_workers_step_in_place(base):
    """The program has a loop, which carries the model and the optimizer's state."""
    mesh = communicators.mesh(N)
    optimizer = djax.decentralized(base, djax.gossip(RING, mesh), average_state=True)
    models, state = steps(optimizer, communicator=mesh)
    expected, after = steps(optimizer, by_updates, communicator=mesh)
    np.testing.assert_allclose(models, expected, rtol=1e-6, atol=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5), state, after)

    def worker(x, state, g):
        return apply_gradients(optimizer, {"x": g}, state, {"x": x})

    lowered = jax.jit(mesh.spmd(worker)).lower(X, state, G)
    assert "stablehlo.while" in lowered.as_text()
    again = jax.export.export(jax.jit(mesh.spmd(worker)), platforms=["cuda"])
    assert "stablehlo.while" not in again(X, state, G).mlir_module()


@pytest.mark.usefixtures("as_users")
def test_derivatives_through_a_step_in_place():
    """Adam's root has an infinite derivative at 0, where a gradient is 0."""
    start, rates = np.arange(2.0 * N).reshape(N, 2), np.full(N, 0.1)

    def square(communicator, rate):
        def worker(x, rate):
            gossip = djax.gossip(RING, communicator)
            optimizer = djax.decentralized(optax.adam(rate), gossip)
            state = optimizer.init(x)
            for _ in range(2):
                x, state = apply_gradients(optimizer, x - 1.0, state, x)
            return (x**2).sum()

        return communicator.spmd(worker)(start, rate * rates).sum()

    with jax.enable_x64(True):
        found = []
        for communicator in (WORKERS, communicators.mesh(N)):
            function = jax.jit(lambda rate, where=communicator: square(where, rate))
            found.append(jax.jvp(function, (1.0,), (1.0,))[1])
            found.append(jax.grad(function)(1.0))
    np.testing.assert_allclose(found, found[0], rtol=1e-9)


@pytest.mark.usefixtures("as_users")
def test_states_of_python_numbers_and_keys_step_in_place():
    def init(params):
        return {"count": 0, "key": jax.random.key(0), "scale": 1.0}

    def update(updates, state, params=None):
        updates = jax.tree.map(lambda x: state["scale"] * x, updates)
        scale, count = state["scale"] / 2, state["count"] + 1
        return updates, {**state, "scale": scale, "count": count}

    mesh = communicators.mesh(N)
    base = optax.chain(optax.GradientTransformation(init, update), optax.sgd(0.1))
    optimizer = djax.decentralized(base, djax.gossip(RING, mesh))
    models, _ = steps(optimizer, communicator=mesh)
    expected, _ = steps(optimizer, by_updates, communicator=mesh)
    np.testing.assert_allclose(models, expected, rtol=1e-6, atol=1e-4)

    def without_parameters(_):
        return apply_gradients(optimizer, {}, optimizer.init({}), {})[1]

    state = jax.jit(mesh.spmd(without_parameters))(X)
    assert (np.asarray(state.optimizer_state[0]["count"]) == 1).all()


def test_gradients_that_are_not_like_the_parameters_are_refused():
    optimizer = optax.chain(optax.sgd(0.1), GOSSIP)
    params = {"x": jnp.ones(3)}
    state = jax.eval_shape(WORKERS.spmd(optimizer.init), {"x": X})
    with pytest.raises(TypeError, match=r"a tree like the parameters, .*'x'.* got .*y"):
        apply_gradients(optimizer, {"y": jnp.ones(3)}, state, params)
    with pytest.raises(TypeError, match=r"\(optimizer, grads, opt_state, params\)"):
        apply_gradients(optimizer, params, params, state)
    with pytest.raises(TypeError, match="apply_gradients: expected an optimizer"):
        apply_gradients(params, params, state, params)
