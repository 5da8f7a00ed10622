"""Push-sum of some of the parameters only."""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies

WORKERS = communicators.simulated(2)
SCHEDULE = topologies.from_matrices([[[0.5, 1.0], [0.5, 0.0]]])
LABELS = {"base": "frozen", "steps": "frozen", "lora": ["trained", "trained"]}
MASK = jax.tree.map(lambda label: label == "trained", LABELS)
PUSH_SUM = djax.push_sum(SCHEDULE, WORKERS)


def after_many_steps(optimizer, params):
    """The models of all workers after 41 steps without gradients."""

    def read(params, state):
        return djax.push_sum_eval_params(state, params)

    models = conformance.average(optimizer, WORKERS, params, 41, read)
    return jax.tree.map(lambda x: x[:, -1], models)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.masked(PUSH_SUM, MASK),
        optax.masked(PUSH_SUM, lambda params: MASK),
        optax.masked(djax.every(1, PUSH_SUM), {**MASK, "base": False}),
        optax.chain(optax.identity(), optax.masked(PUSH_SUM, MASK)),
        optax.partition({"trained": PUSH_SUM, "frozen": optax.set_to_zero()}, LABELS),
        optax.masked(optax.masked(PUSH_SUM, MASK), {**MASK, "base": True}),
    ],
)
def test_only_averaged_leaves_are_divided_by_the_weight(optimizer):
    params = {
        "base": jnp.asarray([7.0, 7.0]),
        "steps": jnp.asarray([3, 3]),
        "lora": [jnp.asarray([1.0, 5.0]), jnp.asarray([[0.0] * 3, [2.0] * 3])],
    }
    models = after_many_steps(optimizer, params)
    np.testing.assert_array_equal(models["base"], params["base"])
    np.testing.assert_array_equal(models["steps"], params["steps"])
    np.testing.assert_allclose(models["lora"][0], 3.0, rtol=1e-5)
    np.testing.assert_allclose(models["lora"][1], 1.0, rtol=1e-5)


def test_a_masked_subtree_stays_as_it_is():
    """A mask may name a whole subtree by one value."""
    optimizer = optax.masked(PUSH_SUM, {"frozen": False, "trained": True})
    params = {"frozen": {"a": jnp.full(2, 7.0), "b": jnp.full((2, 3), 7.0)}}
    params["trained"] = {"w": jnp.asarray([1.0, 5.0])}
    models = after_many_steps(optimizer, params)
    jax.tree.map(np.testing.assert_array_equal, models["frozen"], params["frozen"])
    np.testing.assert_allclose(models["trained"]["w"], 3.0, rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        djax.interleave([PUSH_SUM]),
        optax.chain(optax.identity(), djax.interleave([djax.every(1, PUSH_SUM)])),
        djax.interleave([djax.interleave([PUSH_SUM])]),
    ],
)
def test_the_only_mechanism_of_an_interleaving_averages_all_leaves(optimizer):
    params = {"b": jnp.asarray([1.0, 5.0]), "w": jnp.zeros((2, 2, 3)).at[1].set(2)}
    models = after_many_steps(optimizer, params)
    np.testing.assert_allclose(models["b"], 3.0, rtol=1e-5)
    np.testing.assert_allclose(models["w"], 1.0, rtol=1e-5)


def test_the_only_mechanism_of_an_interleaving_may_be_masked():
    optimizer = djax.interleave([optax.masked(PUSH_SUM, [False, True])])
    params = {"a": jnp.full((2, 3), 7.0), "b": jnp.asarray([1.0, 5.0])}
    models = after_many_steps(optimizer, params)
    np.testing.assert_array_equal(models["a"], params["a"])
    np.testing.assert_allclose(models["b"], 3.0, rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: djax.interleave([m])])
def test_half_of_the_coordinates_cannot_be_divided(wrap):
    """Interleaved, push-sum's weight is that of some coordinates of each leaf."""
    both = [PUSH_SUM, djax.gossip(topologies.ring(2), WORKERS)]
    optimizer = wrap(djax.interleave(both))
    for params in ({"w": jnp.ones((2, 4))}, [jnp.ones((2, 4))]):
        with pytest.raises(ValueError, match=r"parameters that push_sum averaged.*int"):
            after_many_steps(optimizer, params)
