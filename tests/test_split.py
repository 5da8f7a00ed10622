"""Pieces of arrays are what slices are, and share their kernels."""

import itertools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from djax._arrays.split import split, unravel


def slices(x, sizes):
    ends = list(itertools.accumulate(sizes, initial=0))
    return [np.asarray(x)[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.slow
@hypothesis.given(st.lists(st.integers(0, 4), max_size=5), st.integers(0, 2))
@hypothesis.settings(max_examples=30)
def test_pieces_are_slices(sizes, width):
    shape = (sum(sizes), *(width,) * (width > 0))
    x = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    for transform in (lambda f: f, jax.jit):
        pieces = transform(lambda x: split(x, sizes))(jnp.asarray(x))
        for piece, expected in zip(pieces, slices(x, sizes), strict=True):
            np.testing.assert_array_equal(piece, expected)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "bfloat16", "complex64"])
def test_any_dtype_and_all_workers_at_once(dtype):
    x = jnp.arange(12).reshape(2, 6).astype(dtype)
    everyones = jax.jit(jax.vmap(lambda x: split(x, [1, 3, 2])))(x)
    first = jax.jit(lambda x: split(x, [1, 3, 2]))(x[0])
    for all_of, one, a, b in zip(everyones, first, (0, 1, 4), (1, 4, 6), strict=True):
        assert all_of.dtype == one.dtype == dtype
        np.testing.assert_array_equal(all_of, x[:, a:b])
        np.testing.assert_array_equal(one, x[0, a:b])


def test_derivatives():
    def loss(x):
        return sum(k * (piece**2).sum() for k, piece in enumerate(split(x, [1, 2])))

    x = jnp.array([3.0, 4.0, 5.0])
    for derivative in (jax.grad, jax.jacfwd, jax.jacrev):
        np.testing.assert_array_equal(jax.jit(derivative(loss))(x), [0, 8, 10])
    both = jax.vmap(jax.grad(loss))(jnp.stack([x, 2 * x]))
    np.testing.assert_array_equal(both, [[0, 8, 10], [0, 16, 20]])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="constant elsewhere")
def test_equal_pieces_have_equal_kernels():
    def doubled(x):
        return [2 * piece for piece in split(x, [5] * 40)]

    program = jax.jit(doubled).lower(jnp.ones(200)).compile().as_text()
    kernels = re.findall(r"^%\S*fused_computation.*?^}", program, re.M | re.S)
    bodies = [kernel.partition("\n")[2] for kernel in kernels]
    alike = {re.sub(r"%[\w.-]+|metadata=\{[^}]*\}", "", body) for body in bodies}
    assert len(kernels) >= 40
    assert len(alike) <= 3


def test_unravel_undoes_raveling():
    leaves = [jnp.ones((2, 3)), jnp.zeros(()), jnp.full(4, 2.0)]
    flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
    for piece, leaf in zip(unravel(flat, leaves), leaves, strict=True):
        np.testing.assert_array_equal(piece, leaf, strict=True)
