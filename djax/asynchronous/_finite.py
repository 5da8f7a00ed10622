"""Keeps numbers that are not finite from spreading to other workers.

A single NaN that is averaged into a neighbour's model reaches all workers within a few
averagings. So every gradient is checked by the program that applies it, and every model
is checked before a neighbour averages with it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._arrays.finite import all_finite
from djax._interfaces import PyTree

from .algorithms import EventTransformation


def applied(
    algorithm: EventTransformation,
    skip: bool,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    **options: Any,
) -> tuple[PyTree, PyTree, jax.Array]:
    """Applies one gradient of one worker, and checks whether its numbers are finite.

    Args:
      algorithm: the asynchronous algorithm.
      skip: whether an update that is not finite is left out. The worker then only mixes
        for the elapsed time.
      grads: the gradient.
      state: the state of the algorithm.
      params: the model.
      **options: `elapsed` and `global_step`, for `algorithm.update`.

    Returns:
      The new model, the new state, and `bool[2]`: whether the gradient is finite, and
      whether the model with the gradient applied is finite.
    """
    updates, new_state = algorithm.update(grads, state, params, **options)
    moved = optax.apply_updates(params, updates)
    finite = jnp.stack([all_finite(grads), all_finite(moved)])
    if skip:
        passed = algorithm.mix(params, state, options["elapsed"])
        moved, new_state = choose(finite.all(), (moved, new_state), passed)
    return moved, new_state, finite


def choose(condition: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    """Selects between two trees; a leaf that both share is returned as it is.

    Args:
      condition: `bool[...]`. Its axes are the leading axes of all leaves.
      yes: the result where the condition holds.
      no: the result where it does not hold.
    """

    def one(a, b):
        if a is b:
            return a
        axes = range(condition.ndim, jnp.ndim(a))
        return jnp.where(jnp.expand_dims(condition, tuple(axes)), a, b)

    return jax.tree.map(one, yes, no)


def describe(worker: int, number: int, finite: Any) -> str:
    """Returns the message of a :class:`djax.asynchronous.NonFiniteError`.

    Args:
      worker: rank of the worker.
      number: number of its gradient, from 1 on.
      finite: `bool[2]`, from :func:`applied`.
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
