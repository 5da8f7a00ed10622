"""Compiles the step that all workers take together, and measures its time."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import simulation

from .tasks import Task
from .trainer import Rows

TIMED_SECONDS = 1.0
"""Approximate duration in seconds of the steps that are timed together."""


def make_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    communicator: djax.Communicator,
) -> simulation.StepsFn:
    """Makes the function that trains.

    The last function is kept, so that equal arguments need not compile it again.
    """
    return _make_steps(task.gradient_fn, optimizer, communicator, task.dispatch)


@functools.lru_cache(maxsize=1)
def _make_steps(gradient_fn, optimizer, communicator, dispatch) -> simulation.StepsFn:
    return simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )


def time_steps(
    task: Task,
    optimizers: Sequence[optax.GradientTransformation],
    communicator: djax.Communicator,
    params: Any,
    steps: int,
    repeats: int = 5,
) -> np.ndarray:
    """Measures the seconds of a step with each of several optimizers, in turns.

    Args:
      task: what is learned; its first steps are repeated.
      repeats: how often each optimizer is timed, after a first run that compiles.

    Returns:
      Seconds of a step without compiling and loading data,
      `float[repeats, optimizers]`.
    """
    model_state = jax.tree.map(jnp.asarray, task.model_state)
    batches = jax.tree.map(jnp.asarray, task.batches(0, steps))
    programs = [make_steps(task, optimizer, communicator) for optimizer in optimizers]
    everyone = [
        simulation.init_workers(optimizer, communicator, params, model_state)
        for optimizer in optimizers
    ]
    durations = np.empty((repeats + 1, len(programs)))
    for repeat, i in np.ndindex(durations.shape):
        began = time.perf_counter()
        everyone[i], measured = programs[i](everyone[i], batches)
        jax.block_until_ready((everyone[i], measured))
        durations[repeat, i] = time.perf_counter() - began
    return durations[1:] / steps


def describe_times(seconds: np.ndarray) -> Rows:
    """Returns rows of the final table: a step's time, and its share of communication.

    Steps with and without communication are timed in turns, and each turn gives a
    difference. If some differences are positive and others negative, their median means
    nothing: it is smaller than the variation between turns.
    """
    total, gradient = np.median(seconds, axis=0) * 1e3
    differences = (seconds[:, 0] - seconds[:, 1]) * 1e3
    low, high = differences.min(), differences.max()
    if low > 0:
        told = f"{np.median(differences):.3g} ms ({low:.3g} to {high:.3g})"
    else:
        told = f"below the noise of {max(high, -low):.3g} ms"
    return [
        ("time per step", f"{total:.3g} ms"),
        ("  of it gradient and base optimizer", f"{gradient:.3g} ms"),
        ("  of it communication", told),
    ]
