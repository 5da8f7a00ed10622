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
    """Whether to copy a leaf costs less than to compile something for it alone."""
    return x.size * x.dtype.itemsize <= SMALL_BYTES


def join(
    leaves: Sequence[jax.Array],
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], list[jax.Array]]]:
    """Joins small leaves of one dtype that follow each other.

    Args:
      leaves: of any shapes.

    Returns:
      Fewer arrays with the same entries in the same order, and a function that makes of
      arrays of these shapes some of the leaves' shapes again.
    """

    def kind(i):
        return leaves[i].dtype.name if is_small(leaves[i]) else i

    runs = [list(run) for _, run in itertools.groupby(range(len(leaves)), kind)]
    arrays = []
    for run in runs:
        x = leaves[run[0]]
        if len(run) > 1:
            x = jnp.concatenate([leaves[i].ravel() for i in run])
        arrays.append(x)

    def cut(arrays):
        pieces = []
        for run, x in zip(runs, arrays, strict=True):
            alone = len(run) == 1
            like = [leaves[i] for i in run]
            pieces += [x] if alone else unravel(written(x), like)
        return pieces

    return arrays, cut


def unravel(flat: jax.Array, like: Sequence[Any]) -> list[jax.Array]:
    """Cuts joined raveled arrays apart again; of `like` only the shapes matter."""
    pieces = split(flat, [x.size for x in like])
    return [piece.reshape(x.shape) for piece, x in zip(pieces, like, strict=True)]


@custom_vmap
def written(x: jax.Array) -> jax.Array:
    """Returns `x`, which XLA's CPU compiler then computes as a whole in one place.

    It would otherwise compile what `x` is made by once more within each of its pieces.
    A branch ends that; XLA does not notice that both of its sides give the same.
    """

    def chosen(x):
        return jax.lax.cond(x[(0,) * x.ndim] != 0, lambda y: x, lambda y: y, x)

    alike = {"cpu": chosen, "default": lambda x: x}
    return jax.lax.platform_dependent(x, **alike) if x.size else x


@written.def_vmap
def _(axis_size, in_batched, x):
    return written(x), True


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
        # Otherwise there would be a branch for each of what is mapped.
        return split(x, sizes, axis + 1), [True] * len(sizes)

    cut = jax.custom_jvp(compiled)

    @cut.defjvp
    def _(primals, tangents):
        return cut(*primals), constant(*tangents)

    traced = isinstance(x, jax.core.Tracer) and x.shape[axis] <= LARGEST_START
    return cut(x) if traced and len(sizes) > 1 and x.size else constant(x)
