"""Joins small arrays and splits them again, so that programs compile faster.

The compile time of a program grows with the number of its different kernels. Code that
handles every leaf of a model by itself would have a kernel for each leaf. For this
reason small leaves are joined into one array, and pieces of equal shape, when they are
split again, share a kernel.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from .divided import are_divided

LARGEST_START = np.iinfo(np.int32).max
SMALL_BYTES = 1 << 16  # To copy this much takes less time than to compile a kernel.


def is_small(x: jax.Array) -> bool:
    """Whether it is cheaper to copy a leaf than to compile a kernel for it.

    No leaf is if leaves are divided among devices: a copy would gather it.
    """
    return not are_divided() and x.size * x.dtype.itemsize <= SMALL_BYTES


def join(
    leaves: Sequence[jax.Array],
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], list[jax.Array]]]:
    """Joins neighbouring small leaves of one dtype.

    Args:
      leaves: arrays of any shapes.

    Returns:
      Fewer arrays, with the same entries in the same order; and a function that undoes
      the joining: it splits arrays of these shapes into arrays like the leaves.
    """

    def kind(i):
        return leaves[i].dtype.name if is_small(leaves[i]) else i

    grouped = itertools.groupby(range(len(leaves)), kind)
    runs = [[leaves[i] for i in run] for _, run in grouped]

    def put(run):
        return jnp.concatenate([x.ravel() for x in run]) if len(run) > 1 else run[0]

    def cut(arrays):
        pieces = []
        for run, x in zip(runs, arrays, strict=True):
            pieces += unravel(computed_once(x), run) if len(run) > 1 else [x]
        return pieces

    return list(map(put, runs)), cut


def unravel(flat: jax.Array, like: Sequence[Any]) -> list[jax.Array]:
    """Splits a vector into arrays of the shapes of `like`."""
    pieces = split(flat, [x.size for x in like])
    return [piece.reshape(x.shape) for piece, x in zip(pieces, like, strict=True)]


@jax.custom_jvp
def computed_once(x: jax.Array) -> jax.Array:
    """Returns `x`, but makes XLA compute it once on CPUs, before it is used.

    Otherwise XLA fuses the computation of `x` into each of its uses, such as the pieces
    that are cut out of it, and compiles and computes it as many times. The result of a
    `lax.cond` is not fused; XLA does not see that both of its branches return `x`.
    """
    return _computed_once(x)


@computed_once.defjvp
def _(primals, tangents):
    return computed_once(*primals), tangents[0]


@custom_vmap
def _computed_once(x: jax.Array) -> jax.Array:
    if not x.size:
        return x

    def branch(x):
        return jax.lax.cond(x[(0,) * x.ndim] != 0, lambda y: x, lambda y: y, x)

    return jax.lax.platform_dependent(x, cpu=branch, default=lambda x: x)


@_computed_once.def_vmap
def _(axis_size, in_batched, x):
    return _computed_once(x), True


def unknown_to_xla(value: Any, x: jax.Array) -> Any:
    """Returns a tree of constants as run-time values, which XLA does not know.

    They are the result of a branch whose two sides return the same. XLA cannot see
    that, so that it cannot turn the result back into constants.

    Args:
      value: a tree of numbers.
      x: any array of numbers with an entry, which decides between the sides.
    """
    flag = x[(0,) * x.ndim].astype(bool)
    return jax.lax.cond(flag, lambda same: value, lambda same: same, value)


def split(x: jax.Array, sizes: Sequence[int], axis: int = 0) -> list[jax.Array]:
    """Splits an array along an axis, such that it compiles fast.

    Slicing at constant offsets compiles slowly on CPUs: XLA builds a separate kernel,
    about 10 ms each, for every distinct offset. To let slices of equal shape share one
    kernel, the offsets are made run-time values. On other platforms, outside of
    compiled programs, and for tangents, they are constants.

    Args:
      x: `[..., sum(sizes), ...]` of any dtype but PRNG keys.
      sizes: the sizes of the pieces along the axis.
      axis: the axis, not negative.

    Returns:
      The pieces, `[..., size, ...]` each.
    """
    *starts, _ = itertools.accumulate(sizes, initial=0)

    def constant(x):
        return [
            jax.lax.slice_in_dim(x, start, start + n, axis=axis)
            for start, n in zip(starts, sizes, strict=True)
        ]

    def varying(x):
        hidden = unknown_to_xla([np.int32(start) for start in starts], x)
        return [
            jax.lax.dynamic_slice_in_dim(
                x, start, n, axis, allow_negative_indices=False
            )
            for start, n in zip(hidden, sizes, strict=True)
        ]

    @custom_vmap
    def compiled(x):
        return jax.lax.platform_dependent(x, cpu=varying, default=constant)

    @compiled.def_vmap
    def _(axis_size, in_batched, x):
        # Under `vmap` the conditional would become a selection between both branches.
        return split(x, sizes, axis + 1), [True] * len(sizes)

    cut = jax.custom_jvp(compiled)

    @cut.defjvp
    def _(primals, tangents):
        return cut(*primals), constant(*tangents)

    traced = isinstance(x, jax.core.Tracer) and x.shape[axis] <= LARGEST_START
    return cut(x) if traced and len(sizes) > 1 and x.size else constant(x)
