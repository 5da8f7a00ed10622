"""Trains asynchronous workers on virtual clocks."""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import asynchronous, simulation

from .divergence import check_losses, in_own_words, watch_all
from .errors import UsageError
from .evaluation import make_assess
from .events import EventJob
from .optimizers import BaseOptimizer, make_base
from .ranges import flag
from .signals import Termination, stopped_unsaved
from .trainer import Records, Rows, chunk_steps

ALGORITHMS = ("a2cid2", "adpsgd")
"""Names of the asynchronous algorithms on the command line."""


@dataclasses.dataclass(frozen=True)
class Clocks:
    """Clocks of a2cid2 and adpsgd. On virtual clocks, --speeds and --variation also
    apply to all_reduce_sgd, for comparison."""

    rate: float = 1.0
    """Averagings of a worker of a2cid2 or adpsgd per unit of time, in which a worker of
    speed 1 computes one gradient; below 1 it is local SGD."""
    speeds: tuple[float, ...] = ()
    """Gradients per unit of time: one number for all workers, or one for each worker,
    as in `1 1 1 0.25`; 1 by default."""
    variation: float = 1.0
    """Standard deviation of the time that a gradient takes, in units of its mean. 0
    makes the time constant, 1 exponentially distributed."""
    global_steps: bool = False
    """Let the step size of a2cid2 and adpsgd decay by the number of gradients of all
    workers, instead of each worker's own number."""


def check_clocks(clocks: Clocks, algorithm: str, live: bool) -> None:
    """Raises UsageError if the algorithm would ignore one of the options.

    Args:
      live: whether the workers compute in real time.
    """
    known = {"speeds", "variation"} if algorithm == "all_reduce_sgd" else set()
    for option in changed(clocks) - {flag(name) for name in known}:
        if algorithm not in ALGORITHMS:
            raise UsageError(
                f"--algorithm {algorithm} has no option {option}; "
                f"{' and '.join(ALGORITHMS)} have."
            )
        if live and option in ("--speeds", "--variation"):
            raise UsageError(
                f"{option} is of virtual clocks: leave mpirun away, where workers take "
                "the time that they take."
            )


def changed(options: Any) -> set[str]:
    """Returns the flags of those fields of a dataclass that differ from defaults."""
    return {
        flag(field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }


def _options(clocks: Clocks, seed: int) -> dict[str, Any]:
    speeds = clocks.speeds or 1.0
    return {"speeds": speeds, "variation": clocks.variation, "seed": seed}


def make_events(
    clocks: Clocks, topology: djax.Topology, steps: int, seed: int
) -> asynchronous.Events:
    """Draws when the workers compute their gradients, and when they average.

    Args:
      steps: mean number of gradients of a worker in the whole training.
    """
    return asynchronous.draw_events(
        topology,
        clocks.rate,
        gradients=topology.size * steps,
        **_options(clocks, seed),
    )


def make_rounds(
    clocks: Clocks, size: int, steps: int, seed: int
) -> asynchronous.Rounds | None:
    """Draws when the steps of synchronous workers end; None for the default clocks."""
    if clocks == Clocks():
        return None
    return asynchronous.draw_rounds(size, steps, **_options(clocks, seed))


def make_algorithm(
    name: str,
    clocks: Clocks,
    base: BaseOptimizer,
    steps: int,
    topology: djax.Topology,
) -> asynchronous.EventTransformation:
    """Makes an asynchronous algorithm.

    Args:
      steps: mean number of gradients of a worker in the whole training.
    """
    if clocks.global_steps:
        make = _in_global_steps(getattr(optax, base.optimizer, None))
        optimizer = make_base(base, topology.size * steps, make)
    else:
        optimizer = make_base(base, steps)
    if name == "adpsgd":
        return djax.adpsgd(optimizer)
    return djax.acid(optimizer, djax.acid_constants(topology, clocks.rate))


def _in_global_steps(make):
    """Lets the learning rate of an optimizer follow the gradients of all workers."""
    if make is None:  # The optimizer is unknown, which `make_base` reports.
        return None
    static = [*inspect.signature(make).parameters][1:]

    @functools.wraps(make)
    def wrapped(learning_rate, **options):
        schedule = asynchronous.in_global_steps(learning_rate)
        return optax.inject_hyperparams(make, static_args=static)(schedule, **options)

    return wrapped


@dataclasses.dataclass
class Virtual(EventJob):
    """A training of asynchronous workers on virtual clocks.

    Attributes:
      drawn: the gradients and averagings of all workers.
      rate: requested averagings of a worker per unit of time.
    """

    drawn: asynchronous.Events
    rate: float

    @property
    def events(self) -> asynchronous.Events:
        """The gradients and averagings of all workers."""
        return self.drawn

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks of all workers."""
        return range(self.communicator.size)

    def train(self, evaluations: int, advance: Callable[[float], object]) -> Records:
        """See :class:`experiments.lib.trainer.Job`; nothing is saved."""
        task, events = self.task, self.events
        assess, chunk = make_assess(task, self.communicator), chunk_steps(task)
        moments = asynchronous.simulate(
            self.algorithm,
            events,
            self.params,
            task.gradient_fn,
            lambda i: task.batches(i * chunk, (i + 1) * chunk),
            times=[events.duration * k / evaluations for k in range(1, evaluations)],
            model_state=jax.tree.map(jnp.asarray, task.model_state),
            dispatch=task.dispatch,
        )
        workers = events.worker[events.is_gradient]
        losses, start = np.zeros(0), time.perf_counter()
        with in_own_words(), Termination(raises=_stop):
            for moment in moments:
                new = np.asarray(moment.metrics["loss"], np.float64)
                check_losses(new, workers[len(losses) :], f"by time {moment.time:.4g}")
                losses = np.concatenate([losses, new])
                assessed = assess(moment.params, moment.model_state)
                seconds = time.perf_counter() - start
                yield self.measure(moment.time, losses, assessed, seconds)
                advance(len(new) / events.size / task.steps_per_epoch)
        watch_all(losses, events.size)
        self.outcome.workers = simulation.Workers(
            moment.params, moment.state, moment.model_state
        )

    def describe(self) -> Rows:
        """Returns rows of the final table: duration, and numbers of events."""
        events = self.events
        realized = events.averaging_counts.mean() / events.duration
        return [
            ("virtual time", f"{events.duration:.5g}"),
            (
                "averagings of a worker per time (asked)",
                f"{realized:.4g} ({self.rate:.4g})",
            ),
            *super().describe(),
        ]


def _stop(number: int) -> NoReturn:
    """Ends the run at once: nothing is saved, so it need not finish a step."""
    why = "virtual clocks have no checkpoints, and the same seed repeats a run: "
    raise stopped_unsaved(number, f"{why}start it anew")
