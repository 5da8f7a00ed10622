"""Learning-rate schedules that count the gradients of all workers."""

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def in_global_steps(schedule: optax.Schedule) -> "GlobalSchedule":
    """Lets a schedule of the learning rate count the gradients of all workers.

    In an asynchronous run, fast workers compute more gradients than slow ones. With a
    schedule of its own gradients, a fast worker would decay its learning rate earlier.
    The returned schedule gives all workers the same learning rate at the same time. It
    works within :func:`simulate` only, and has to be passed to the optimizer through
    `optax.inject_hyperparams`. The `static_args` of `inject_hyperparams` may name other
    arguments of the optimizer.

    Args:
      schedule: a function of the number of gradients that all workers have computed.

    Returns:
      A stateful schedule of optax. It reads the extra argument `global_step`, which
      :func:`simulate` passes to the `update` of the optimizer.

    Examples:
      >>> import djax, optax
      >>> decay = djax.asynchronous.in_global_steps(optax.linear_schedule(0.1, 0, 6400))
      >>> adpsgd = djax.adpsgd(optax.inject_hyperparams(optax.sgd)(decay))
    """
    return GlobalSchedule(schedule)


class GlobalSchedule:
    """A stateful schedule of optax, made by :func:`in_global_steps`."""

    def __init__(self, schedule: optax.Schedule):
        """Takes a function of the number of all workers' gradients."""
        self._schedule = schedule

    def init(self) -> tuple[()]:
        """Returns the empty state."""
        return ()

    def update(self, state: tuple[()], **extra_args: Any) -> tuple[()]:
        """Returns the empty state; raises ValueError if `global_step` is missing."""
        if "global_step" not in extra_args:
            raise ValueError(
                "in_global_steps: update needs the extra argument global_step, the "
                "number of gradients of all workers so far, as simulate gives it."
            )
        return state

    def __call__(self, state: tuple[()], **extra_args: Any) -> ArrayLike:
        """Returns the schedule's value at `global_step`, by default 0."""
        if not isinstance(state, tuple):  # Called with a counter, as a plain schedule.
            raise TypeError(
                "in_global_steps: use optax.inject_hyperparams(optax.sgd)(schedule), "
                "not optax.sgd(schedule), which passes the worker's own counter."
            )
        return self._schedule(jnp.asarray(extra_args.get("global_step", 0), jnp.int32))
