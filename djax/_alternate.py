"""Steps that take turns, of which only the one whose turn it is costs anything."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._base import PyTree


def alternate(
    step: ArrayLike,
    schedule: Sequence[int],
    branches: Sequence[Callable[..., PyTree]],
    *operands: PyTree,
) -> PyTree:
    """Returns `branches[schedule[step % len(schedule)]](*operands)`.

    Mechanisms that alternate go through here, so that `djax.communication_cost` can
    weigh what each branch sends by how often it is taken.

    In simulation each worker has a counter of its own along a `vmap` axis. Given a
    branch index per worker, JAX would compute all branches and select afterwards.
    Workers that exchange messages within a branch must all take it, so that the index
    is made one value along the axes of those messages. Along other axes, such as that
    of a sweep over hyper-parameters, counters may differ.

    Args:
      step: `int32[]`, the same on every worker.
      schedule: which branch the steps of one period take.
      branches: functions with results of the same shapes and dtypes.
      *operands: their arguments.
    """
    from . import accounting  # It needs this module.

    if (counter := accounting.counter()) is not None:
        return counter.alternate(schedule, branches, operands)
    if len(set(schedule)) == 1:  # There is nothing to choose.
        return branches[schedule[0]](*operands)
    position = jnp.asarray(step) % len(schedule)
    index = jnp.asarray(np.asarray(schedule, np.int32))[position]
    # Traced once: what a branch says while it is traced is said once.
    trace = functools.partial(jax.make_jaxpr, return_shape=True)
    traced = [trace(branch)(*operands) for branch in branches]
    programs = [program for program, _ in traced]
    for axis_name in _simulated_axes(programs):
        index = jax.lax.pmax(index, axis_name)
    flat = jax.tree.leaves(operands)
    idle = [program.jaxpr.outvars == program.jaxpr.invars for program in programs]
    if sorted(idle) == [False, True]:
        active = idle.index(False)
        flat = _run_or_pass_on(index == active, programs[active], flat)
    else:
        functions = [jax.extend.core.jaxpr_as_fun(program) for program in programs]
        flat = jax.lax.switch(index, functions, *flat)
    return jax.tree.unflatten(jax.tree.structure(traced[0][1]), flat)


def _run_or_pass_on(
    active: jax.Array, program: Any, operands: list[jax.Array]
) -> list[jax.Array]:
    """Returns the program's results if `active`, its operands otherwise.

    A conditional would copy the operands that it passes on. A loop leaves what it
    carries where it is: this one ends after one iteration, or before the first.
    """

    def evaluate(constants, operands):
        closed = jax.extend.core.ClosedJaxpr(program.jaxpr, constants)
        return jax.extend.core.jaxpr_as_fun(closed)(*operands)

    @jax.custom_jvp
    def run(active, constants, operands):
        def iteration(carry):
            active, operands = carry
            return jnp.zeros_like(active), evaluate(constants, operands)

        carry = active, operands
        return jax.lax.while_loop(lambda carry: carry[0], iteration, carry)[1]

    @run.defjvp
    def _(primals, tangents):
        # Of a loop that may end at any time there are no derivatives in reverse mode.
        def conditional(active, constants, operands):
            return jax.lax.cond(
                active, evaluate, lambda _, operands: operands, constants, operands
            )

        return jax.jvp(conditional, primals, tangents)

    return run(active, program.consts, operands)


def _simulated_axes(programs: Sequence[Any]) -> list[Any]:
    """The `vmap` axes along which traced programs exchange something.

    The axes of a mesh are left out, since a worker with a device of its own takes one
    branch anyway.
    """
    effects = [effect for program in programs for effect in program.effects]
    # The class of the effect of talking along an axis is public by its name only.
    names = {e.name for e in effects if type(e).__name__ == "NamedAxisEffect"}
    return sorted(names - set(jax.sharding.get_abstract_mesh().manual_axes), key=str)
