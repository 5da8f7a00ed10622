"""Schedules that count the gradients of all workers."""

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def in_global_steps(schedule: optax.Schedule) -> "GlobalSchedule":
    """Makes a schedule follow the gradients of all workers instead of one worker's own.

    In an asynchronous run, fast workers compute more gradients than slow ones. This
    schedule gives all of them the same learning rate at the same time. It is for
    optimizers within :func:`simulate`, and is passed through
    `optax.inject_hyperparams`, whose `static_args` may name the optimizer's other
    arguments.

    Args:
      schedule: a function of the number of gradients that all workers have computed.

    Returns:
      A stateful schedule, which reads the extra argument `global_step` of `update`.

    Examples:
      >>> import djax, optax
      >>> decay = djax.asynchronous.in_global_steps(optax.linear_schedule(0.1, 0, 6400))
      >>> adpsgd = djax.adpsgd(optax.inject_hyperparams(optax.sgd)(decay))
    """
    return GlobalSchedule(schedule)


class GlobalSchedule:
    """A stateful schedule of optax, made by :func:`in_global_steps`."""

    def __init__(self, schedule: optax.Schedule):
        """Takes a schedule of the number of all workers' gradients."""
        self._schedule = schedule

    def init(self) -> tuple[()]:
        """Returns no state."""
        return ()

    def update(self, state: tuple[()], **extra_args: Any) -> tuple[()]:
        """Returns no state; raises ValueError without `global_step`."""
        if "global_step" not in extra_args:
            raise ValueError(
                "in_global_steps: update needs the extra argument global_step, the "
                "number of gradients of all workers so far, as simulate gives it."
            )
        return state

    def __call__(self, state: tuple[()], **extra_args: Any) -> ArrayLike:
        """Returns the schedule's value at the global step, at first 0."""
        if not isinstance(state, tuple):  # Called with a counter, as a plain schedule.
            raise TypeError(
                "in_global_steps: use optax.inject_hyperparams(optax.sgd)(schedule), "
                "not optax.sgd(schedule), which passes the worker's own counter."
            )
        return self._schedule(jnp.asarray(extra_args.get("global_step", 0), jnp.int32))
