"""Runs one of several kinds of steps, at the cost of that kind alone."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from djax._arrays.in_place import as_function, in_place
from djax._counting import present_counter
from djax._interfaces import PyTree


def alternate(
    step: ArrayLike,
    schedule: Sequence[int],
    branches: Sequence[Callable[..., PyTree]],
    *operands: PyTree,
) -> PyTree:
    """Returns `branches[schedule[step % len(schedule)]](*operands)`.

    All mechanisms that alternate use this function. It lets `djax.communication_cost`
    weight the bytes of each branch by how often the branch is taken, and it makes the
    alternation cheap in simulation.

    In simulation each worker has its own counter along an axis of `vmap`. If JAX were
    given an index of the branch for each worker, it would compute all branches and
    select afterwards. But workers that exchange messages within a branch must all take
    that branch. The index is therefore reduced to one value along the axes of these
    messages. Along other axes, such as that of a sweep over hyper-parameters, the
    counters of different runs may differ. If a branch only returns its operands, a step
    in which all runs of the sweep take that branch costs nothing.

    Args:
      step: `int32[]`, the number of steps so far, the same on every worker.
      schedule: the number of the branch for each step of one period.
      branches: functions whose results have the same shapes and dtypes.
      *operands: the arguments of the branches.
    """
    if len(set(schedule)) == 1:
        return branches[schedule[0]](*operands)
    if (counter := present_counter()) is not None:
        return counter.alternate(schedule, branches, operands)
    position = jnp.asarray(step) % len(schedule)
    index = jnp.asarray(np.asarray(schedule, np.int32))[position]
    # Each branch is traced once, so that its warnings are given once.
    trace = functools.partial(jax.make_jaxpr, return_shape=True)
    traced = [trace(branch)(*operands) for branch in branches]
    programs = [program for program, _ in traced]
    for axis_name in _simulated_axes(programs):
        index = jax.lax.pmax(index, axis_name)
    flat = _choose(index, programs, jax.tree.leaves(operands))
    return jax.tree.unflatten(jax.tree.structure(traced[0][1]), flat)


def _choose(
    index: jax.Array, programs: Sequence[Any], operands: list[jax.Array]
) -> list[jax.Array]:
    """Returns the results of one of the traced programs."""
    idle = [program.jaxpr.outvars == program.jaxpr.invars for program in programs]
    constants = [program.consts for program in programs]

    def run(operands, index, constants):
        functions = [
            as_function(program, known)
            for program, known in zip(programs, constants, strict=True)
        ]
        if idle.count(False) == 1:
            return functions[idle.index(False)](*operands)
        return jax.lax.switch(index, functions, *operands)

    if not any(idle):
        return run(operands, index, constants)
    active = ~jnp.asarray(idle)[index]
    return in_place(run, active, operands, index, constants)


def _simulated_axes(programs: Sequence[Any]) -> list[Any]:
    """The axes of `vmap` along which traced programs exchange messages.

    The axes of a mesh are not among them: a worker that has its own device computes
    only one branch anyway.
    """
    effects = [effect for program in programs for effect in program.effects]
    # The class of this effect is not a public name of JAX.
    names = {e.name for e in effects if type(e).__name__ == "NamedAxisEffect"}
    return sorted(names - set(jax.sharding.get_abstract_mesh().manual_axes), key=str)
