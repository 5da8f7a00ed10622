"""How a model is packed into few arrays, and sketched by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from asynchronous_parts import values

from djax.asynchronous.runtime import _model
from djax.asynchronous.runtime._sketch import sketch
from djax.transport import Packing

pytestmark = pytest.mark.usefixtures("as_users")


MIXED = {
    "large": values((512, 512), "float32"),
    "just small": values((2**18 - 1,), "float32", seed=1),
    "large, bfloat16": values((2**19, 1), "bfloat16"),
    "matrix": values((2, 3), "float32", seed=2),
    "scalar": values((), "bfloat16"),
    "empty": values((0, 3), "float32"),
    "halves": (values((2,), "bfloat16"), values((5, 1), "bfloat16")),
    "numbers": values((4,), "int32"),
    "mask": jnp.asarray([True, False]),
}


def test_a_tree_travels_as_few_arrays():
    packing = Packing(MIXED)
    packed = packing.pack(MIXED)
    assert packed[0] is MIXED["large"] and packed[1] is MIXED["large, bfloat16"]
    sizes = {str(x.dtype): x.size for x in packed[2:]}
    assert sizes == {"float32": 2**18 + 5, "bfloat16": 8, "int32": 4, "bool": 2}
    arrived = [np.asarray(x) for x in packed]
    for back in (packing.unpack(arrived), jax.jit(packing.unpack)(arrived)):
        jax.tree.map(np.testing.assert_array_equal, back, MIXED)
        dtypes = [jax.tree.map(lambda x: x.dtype, tree) for tree in (back, MIXED)]
        assert dtypes[0] == dtypes[1]
    with pytest.raises(ValueError):
        packing.unpack(arrived[:-1])


def test_one_array_alone_is_not_copied():
    x = values((3, 2), "float32")
    packing = Packing([x])
    assert packing.pack([x])[0] is x
    np.testing.assert_array_equal(packing.unpack([np.asarray(x).ravel()])[0], x)


def test_jit_returns_what_it_was_given_as_it_was():
    def function(a, b):
        changed = None if b["y"] is None else b["y"] + a
        return {"a": a, "sum": a + b["x"]}, b["x"], (a, changed)

    program = _model._jit(function)
    for a in (np.float32(2), jnp.ones(3)):
        for y in (None, jnp.arange(3.0), None):
            x = jnp.asarray([1.0, 5.0, 7.0])
            first, second, (third, fourth) = program(a, {"x": x, "y": y})
            assert first["a"] is a and second is x and third is a
            np.testing.assert_array_equal(first["sum"], a + x)
            assert (fourth is None) == (y is None)
            if y is not None:
                np.testing.assert_array_equal(fourth, y + a)


def test_a_small_model_is_its_own_sketch():
    tree = {"a": values((1000,), "bfloat16"), "b": values((4, 6), "float32")}
    flat = np.concatenate([np.float32(tree["a"]), np.ravel(tree["b"])])
    assert flat.size == 1024
    np.testing.assert_array_equal(sketch(tree), flat)
    assert sketch({**tree, "c": jnp.ones(1)}).shape == (1024,)
    assert sketch({**tree, "c": jnp.ones(3000)}).shape == (1024,)


def large_model(kind, seed):
    shapes = {"a": (30, 101), "b": (1024,), "c": (7,), "d": (), "e": (2, 2500)}
    if kind == "constant":
        return {name: jnp.full(shape, 1.0 + seed) for name, shape in shapes.items()}
    if kind == "same leaves":  # Their signs have to differ, not to add up.
        return {name: values((1030,), "float32", seed) for name in shapes}
    return {
        name: values(shape, "float32", (seed, number))
        for number, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("kind", ["random", "constant", "same leaves"])
def test_sketches_keep_distances(kind):
    """Their standard deviation is 4.4 percent."""
    models = [large_model(kind, seed) for seed in range(6)]
    sketches = [np.asarray(sketch(model)) for model in models]
    for i in range(6):
        for j in range(i):
            gap = jax.tree.map(jnp.subtract, models[i], models[j])
            exact = sum(np.sum(np.square(x)) for x in jax.tree.leaves(gap))
            ours = np.sum((sketches[i] - sketches[j]) ** 2)
            np.testing.assert_allclose(ours, exact, rtol=0.25)


def test_all_workers_flip_the_same_signs():
    a, b = (large_model("random", seed) for seed in range(2))
    difference = sketch(jax.tree.map(jnp.subtract, a, b))
    np.testing.assert_allclose(sketch(a) - sketch(b), difference, atol=2e-3)
    assert np.abs(difference).mean() > 100
    jax.tree.map(np.testing.assert_array_equal, sketch(a), jax.jit(sketch)(a))
