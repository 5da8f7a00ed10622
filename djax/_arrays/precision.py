"""Sums in float32 or wider."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from djax._interfaces import PyTree


def add(x: PyTree, y: PyTree, like: PyTree, sign: int = 1) -> PyTree:
    """Returns `x + sign * y`, added in float32 or wider, in the dtypes of `like`."""

    def of_leaf(a, b, c):
        return (promote(a) + sign * promote(b)).astype(jnp.result_type(c))

    return jax.tree.map(of_leaf, x, y, like)


def difference(x: PyTree, y: PyTree) -> PyTree:
    """Returns `x - y`, in float32 or wider."""
    return jax.tree.map(lambda a, b: promote(a) - promote(b), x, y)


def scale(factor: ArrayLike, tree: PyTree) -> PyTree:
    """Multiplies a tree of arrays by one number, in the dtypes of the tree."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, tree)


def promote(x: jax.Array) -> jax.Array:
    """Converts floats narrower than float32 to float32, in which sums stay precise."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        raise TypeError(f"only floats can be averaged, got {jnp.result_type(x)}.")
    x = jnp.asarray(x)
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
