"""Arrays cut into pieces of which those of equal shape share a compiled kernel."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap

LARGEST_START = np.iinfo(np.int32).max


def unravel(flat: jax.Array, like: Sequence[Any]) -> list[jax.Array]:
    """Cuts what raveled arrays were put together to; of `like` only shapes matter."""
    pieces = split(flat, [x.size for x in like])
    return [piece.reshape(x.shape) for piece, x in zip(pieces, like, strict=True)]


def split(x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Cuts an array along its first axis.

    XLA's CPU compiler takes about 10 ms for each kernel that is unlike all others, and
    a constant start makes a piece's kernel, with all that is fused into it, unlike the
    other pieces'. Starts that come out of a branch are arguments to it; XLA does not
    notice that both branches give the same. On other platforms, in derivatives, and
    under `vmap`, which would have a branch for every worker, starts are constants.

    Args:
      x: `[sum(sizes), ...]` of any dtype.
      sizes: of the pieces.

    Returns:
      The pieces, `[size, ...]` each.
    """
    *starts, _ = itertools.accumulate(sizes, initial=0)

    def constant(x):
        return [x[start : start + n] for start, n in zip(starts, sizes, strict=True)]

    def varying(x):
        same = [np.int32(start) for start in starts]
        either = x[(0,) * x.ndim].astype(bool)
        known = jax.lax.cond(either, lambda starts: same, lambda starts: starts, same)
        return [
            jax.lax.dynamic_slice_in_dim(x, start, n, allow_negative_indices=False)
            for start, n in zip(known, sizes, strict=True)
        ]

    @custom_vmap
    def for_one(x):
        return jax.lax.platform_dependent(x, cpu=varying, default=constant)

    @for_one.def_vmap
    def _(axis_size, in_batched, x):
        return jax.vmap(constant)(x), [True] * len(sizes)

    @jax.custom_jvp
    def cut(x):
        return for_one(x)

    @cut.defjvp
    def _(primals, tangents):
        return cut(*primals), constant(*tangents)

    shared = len(sizes) > 1 and x.size > 0 and len(x) <= LARGEST_START
    return cut(x) if shared else constant(x)
