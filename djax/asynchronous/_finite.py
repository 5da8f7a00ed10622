"""What happens to a worker whose numbers are not finite.

A single NaN that is averaged into a neighbour's model reaches everybody within a few
averagings. Hence every gradient is checked within the program that applies it, and
every model within the program that packs it for a neighbour.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._interfaces import PyTree
from djax.training._nonfinite import all_finite


def applied(algorithm, skip: bool, grads, state, params, **options):
    """One worker's update, and whether its numbers are finite.

    Args:
      algorithm: what one worker does.
      skip: whether an update that is not finite is left out, so that only time passes.
      grads: the gradient.
      state: of the algorithm.
      params: the model.
      **options: `elapsed` and `global_step`.

    Returns:
      The new model, the new state, and `bool[2]`: whether the gradient is finite, and
      whether the model would be that it leads to.
    """
    updates, new_state = algorithm.update(grads, state, params, **options)
    moved = optax.apply_updates(params, updates)
    finite = jnp.stack([all_finite(grads), all_finite(moved)])
    if skip:
        passed = algorithm.mix(params, state, options["elapsed"])
        moved, new_state = choose(finite.all(), (moved, new_state), passed)
    return moved, new_state, finite


def choose(condition: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` or `no`; leaves that are the very same in both stay what they are.

    Args:
      condition: `bool[...]`; its axes are the first ones of all leaves.
      yes: where it holds.
      no: where it does not.
    """

    def one(a, b):
        if a is b:
            return a
        axes = range(condition.ndim, jnp.ndim(a))
        return jnp.where(jnp.expand_dims(condition, tuple(axes)), a, b)

    return jax.tree.map(one, yes, no)


def describe(worker: int, number: int, finite: Any) -> str:
    """The message of a :class:`djax.asynchronous.NonFiniteError`.

    Args:
      worker: whose gradient it is.
      number: which of its gradients, from 1 on.
      finite: `bool[2]`, of :func:`applied`.
    """
    if finite[0]:
        what = f"the model of worker {worker} after its gradient {number}"
        remedy = "a smaller step size may help"
    else:
        what = f"gradient {number} of worker {worker}"
        remedy = "look at its data and at the step size"
    return (
        f'{what} is not finite: {remedy}. nonfinite="skip" goes on without such '
        'gradients, and nonfinite="isolate" without such workers.'
    )
