"""Calculates new values of arrays in the memory of the old ones."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from djax._interfaces import PyTree

from .batches import any_of_runs
from .keys import is_key
from .split import unknown_to_xla


def in_place(
    function: Callable[..., PyTree], active: jax.Array, old: PyTree, *others: Any
) -> PyTree:
    """Returns `function(old, *others)` if `active`, else `old`.

    This is a loop of one iteration, or of none. A loop writes the values that it
    carries where they were before. A conditional would copy the arrays that it only
    returns; and without a loop, XLA's CPU backend often gives new values memory that is
    not in the cache.

    Args:
      function: returns a tree of arrays like `old`. Everything traced that it needs is
        an argument.
      active: `bool[]`.
      old: a tree of arrays.
      *others: further trees of arrays.
    """

    @jax.custom_jvp
    def looped(active, old, others):
        def iteration(carry):
            some, old = carry
            new = function(old, *others)
            new = jax.tree.map(lambda x, y: _if_active(active, x, y), new, old)
            return jnp.zeros_like(some), new

        carry = any_of_runs(active), old
        return jax.lax.while_loop(lambda carry: carry[0], iteration, carry)[1]

    @functools.partial(looped.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        # An array without a tangent must not get one of zeros, which an infinite
        # derivative would turn into NaN.
        arrays, tree = jax.tree.flatten(primals)
        found = enumerate(jax.tree.leaves(tangents))
        moving = {i: t for i, t in found if not isinstance(t, SymbolicZero)}

        # JAX has no reverse-mode derivatives of a `while_loop`, but of a conditional.
        def conditional(moved):
            known = [moved.get(i, x) for i, x in enumerate(arrays)]
            active, old, others = jax.tree.unflatten(tree, known)
            return jax.lax.cond(
                active, lambda old: function(old, *others), lambda old: old, old
            )

        return jax.jvp(conditional, [{i: arrays[i] for i in moving}], [moving])

    return looped(active, old, others)


def in_place_on_cpu(function: Callable[..., PyTree], old: PyTree, *others: Any) -> Any:
    """Returns `function(old, *others)`, calculated in the memory of `old` on CPUs.

    There the new values are still in the cache when they are sent. On GPUs, which have
    to ask the host whether a loop goes on, the loop would cost more than it gains.

    Args:
      function: returns a tree of arrays like `old`; it may use other traced values.
      old: a tree of arrays.
      *others: further trees of arrays.
    """
    old, others = jax.tree.map(jnp.asarray, (old, others))
    program, like = jax.make_jaxpr(function, return_shape=True)(old, *others)
    leaves, more = jax.tree.leaves(old), jax.tree.leaves(others)
    numbers = [i for i, x in enumerate(leaves) if x.size and not is_key(x)]

    def run(leaves, more, constants):
        return as_function(program, constants)(*leaves, *more)

    def looped(leaves, more, constants):
        # XLA would replace the loop by its body if it knew that there is an iteration.
        active = unknown_to_xla(True, leaves[numbers[0]])
        return in_place(run, active, leaves, more, constants)

    cpu = looped if numbers and _fits(program, leaves) else run
    new = jax.lax.platform_dependent(leaves, more, program.consts, cpu=cpu, default=run)
    return jax.tree.unflatten(jax.tree.structure(like), new)


def as_function(program: Any, constants: list[jax.Array]) -> Callable[..., list]:
    """Makes a function of arrays of a traced program.

    Args:
      program: what `jax.make_jaxpr` returns.
      constants: the values of `program.consts`.
    """
    # Here, so that `import djax` need not wait for it.
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

    return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, constants))


def _fits(program: Any, leaves: list[jax.Array]) -> bool:
    """Whether a loop can carry the leaves: the program returns leaves like them."""
    kinds = [(x.shape, x.dtype) for x in leaves]
    made = [(x.shape, x.dtype) for x in program.out_avals]
    return kinds == made and not program.effects


@custom_vmap
def _if_active(active: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Returns `new`; under a `vmap` of several flags, only where `active` is set."""
    return new


@_if_active.def_vmap
def _(axis_size, in_batched, active, new, old):
    new, old = (
        x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, batched in zip((new, old), in_batched[1:], strict=True)
    )
    if not in_batched[0]:
        return _if_active(active, new, old), True
    # The axes of the flags are the leading axes of the arrays.
    flags = active.reshape(active.shape + (1,) * (new.ndim - active.ndim))
    return jnp.where(flags, new, old), True
