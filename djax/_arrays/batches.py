"""One decision for all workers and runs that are computed together by `vmap`."""

import jax
from jax.custom_batching import custom_vmap


@custom_vmap
def any_of_runs(flag: jax.Array) -> jax.Array:
    """Returns the flag; under a `vmap` of several flags, whether any of them is set.

    A conditional on the result stays one under `vmap`, so that only one of its branches
    is computed.

    Args:
      flag: `bool[]`.
    """
    return flag


@any_of_runs.def_vmap
def _(axis_size, in_batched, flag):
    return any_of_runs(flag.any(axis=0)), False
