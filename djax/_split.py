"""Arrays cut into pieces of which those of equal shape share a compiled kernel."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap

LARGEST_START = np.iinfo(np.int32).max


def unravel(flat: jax.Array, like: Sequence[Any]) -> list[jax.Array]:
    """Cuts joined raveled arrays apart again; of `like` only the shapes matter."""
    pieces = split(flat, [x.size for x in like])
    return [piece.reshape(x.shape) for piece, x in zip(pieces, like, strict=True)]


def split(x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Cuts an array along its first axis.

    XLA's CPU compiler takes about 10 ms for each kernel that is unlike all others, and
    a constant start makes a piece's kernel, with all that is fused into it, unlike the
    other pieces'. Starts that come out of a branch are arguments to it; XLA does not
    notice that both branches give the same. Starts are constants on other platforms,
    outside of a program, in tangents, and under `vmap`, which would have a branch for
    every worker.

    Args:
      x: `[sum(sizes), ...]` of any dtype but PRNG keys.
      sizes: of the pieces.

    Returns:
      The pieces, `[size, ...]` each.
    """
    *starts, _ = itertools.accumulate(sizes, initial=0)

    def constant(x):
        return [x[start : start + n] for start, n in zip(starts, sizes, strict=True)]

    def varying(x):
        same = [np.int32(start) for start in starts]
        flag = x[(0,) * x.ndim].astype(bool)
        hidden = jax.lax.cond(flag, lambda starts: same, lambda starts: starts, same)
        return [
            jax.lax.dynamic_slice_in_dim(x, start, n, allow_negative_indices=False)
            for start, n in zip(hidden, sizes, strict=True)
        ]

    @custom_vmap
    def for_one(x):
        return jax.lax.platform_dependent(x, cpu=varying, default=constant)

    @for_one.def_vmap
    def _(axis_size, in_batched, x):
        return jax.vmap(constant)(x), [True] * len(sizes)

    cut = jax.custom_jvp(for_one)

    @cut.defjvp
    def _(primals, tangents):
        return cut(*primals), constant(*tangents)

    compiled = isinstance(x, jax.core.Tracer) and len(x) <= LARGEST_START
    return cut(x) if compiled and len(sizes) > 1 and x.size else constant(x)
