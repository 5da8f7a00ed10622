"""Arrays that are put together and cut apart again, so that little is compiled.

What is compiled for every leaf of a model takes long to compile. Small leaves are
therefore put together, and the pieces of equal shape share a compiled kernel.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

LARGEST_START = np.iinfo(np.int32).max
SMALL_BYTES = 1 << 16  # Of a leaf that is worth a copy.


def is_small(x: jax.Array) -> bool:
    """Whether copying a leaf costs less than compiling something for it alone."""
    return x.size * x.dtype.itemsize <= SMALL_BYTES


def join(
    leaves: Sequence[jax.Array],
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], list[jax.Array]]]:
    """Joins neighbouring small leaves of one dtype.

    Args:
      leaves: of any shapes.

    Returns:
      Fewer arrays, with the same entries in the same order; and a function that cuts
      arrays of the same shapes as these into pieces of the leaves' shapes.
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
    """Cuts joined raveled arrays apart again; of `like` only the shapes matter."""
    pieces = split(flat, [x.size for x in like])
    return [piece.reshape(x.shape) for piece, x in zip(pieces, like, strict=True)]


@custom_vmap
def computed_once(x: jax.Array) -> jax.Array:
    """Returns `x`, which XLA's CPU compiler computes before anything that needs it.

    XLA would otherwise compile the computation of `x` again for each piece that is cut
    out of it. A branch prevents that: XLA does not notice that both sides are the same.
    """
    if not x.size:
        return x

    def branch(x):
        return jax.lax.cond(x[(0,) * x.ndim] != 0, lambda y: x, lambda y: y, x)

    return jax.lax.platform_dependent(x, cpu=branch, default=lambda x: x)


@computed_once.def_vmap
def _(axis_size, in_batched, x):
    return computed_once(x), True


def split(x: jax.Array, sizes: Sequence[int], axis: int = 0) -> list[jax.Array]:
    """Cuts an array along an axis.

    XLA's CPU compiler takes about 10 ms for each kernel that is unlike all others, and
    a constant start makes a piece's kernel, with all that is fused into it, unlike the
    other pieces'. Starts that come out of a branch are arguments to it; XLA does not
    notice that both branches give the same. Starts are constants on other platforms,
    outside of a program, and in tangents.

    Args:
      x: `[..., sum(sizes), ...]` of any dtype but PRNG keys.
      sizes: of the pieces.
      axis: along which it is cut, not negative.

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
        same = [np.int32(start) for start in starts]
        flag = x[(0,) * x.ndim].astype(bool)
        hidden = jax.lax.cond(flag, lambda starts: same, lambda starts: starts, same)
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
        # A branch that is mapped would become a selection, and compute both sides.
        return split(x, sizes, axis + 1), [True] * len(sizes)

    cut = jax.custom_jvp(compiled)

    @cut.defjvp
    def _(primals, tangents):
        return cut(*primals), constant(*tangents)

    traced = isinstance(x, jax.core.Tracer) and x.shape[axis] <= LARGEST_START
    return cut(x) if traced and len(sizes) > 1 and x.size else constant(x)
