"""Training without waiting, on virtual clocks, and what real time shares with it."""

import dataclasses
import functools
import inspect
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import (
    asynchronous,
    simulation,
)

from .divergence import check_losses, in_own_words, watch_all
from .errors import UsageError
from .evaluation import make_assess
from .optimizers import BaseOptimizer, make_base
from .report import RunFolder
from .tasks import Task
from .trainer import Outcome, Stopped, chunk_steps, describe_signal

ALGORITHMS = ("a2cid2", "adpsgd")
"""Those that never wait, as the command line names them."""


@dataclasses.dataclass(frozen=True)
class Clocks:
    """Clocks of a2cid2 and adpsgd; virtual ones also, for comparison, of
    all_reduce_sgd."""

    rate: float = 1.0
    """Averagings of a worker of a2cid2 or adpsgd per unit of time, in which a worker of
    speed 1 computes one gradient; below 1 it is local SGD."""
    speeds: tuple[float, ...] = ()
    """Gradients per unit of time, one for all workers or one for each, as in `1 1 1
    0.25`; 1 by default."""
    variation: float = 1.0
    """Standard deviation of the time that a gradient takes, in units of its mean: 0 is
    constant, 1 exponentially distributed."""
    global_steps: bool = False
    """Let a2cid2 and adpsgd decay the step size by the gradients of all workers, not by
    each worker's own."""


def check_clocks(clocks: Clocks, algorithm: str, live: bool) -> None:
    """Raises UsageError if the algorithm would ignore one of the options.

    Args:
      clocks: from the command line.
      algorithm: likewise.
      live: whether workers that never wait do so in real time.
    """
    known = {"speeds", "variation"} if algorithm == "all_reduce_sgd" else set()
    for flag in changed(clocks) - {f"--{name}" for name in known}:
        if algorithm not in ALGORITHMS:
            raise UsageError(
                f"--algorithm {algorithm} has no option {flag}; "
                f"{' and '.join(ALGORITHMS)} have."
            )
        if live and flag in ("--speeds", "--variation"):
            raise UsageError(
                f"{flag} is of virtual clocks: leave mpirun away, where workers take "
                "the time that they take."
            )


def changed(options: Any) -> set[str]:
    """The flags of those options, of a dataclass, that are not the default."""
    return {
        f"--{field.name}".replace("_", "-")
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }


def _options(clocks: Clocks, seed: int) -> dict[str, Any]:
    speeds = clocks.speeds or 1.0
    return {"speeds": speeds, "variation": clocks.variation, "seed": seed}


def make_events(
    clocks: Clocks, topology: djax.Topology, steps: int, seed: int
) -> asynchronous.Events:
    """When the workers compute `steps` gradients each, on average, and average.

    Args:
      clocks: from the command line.
      topology: who talks to whom.
      steps: the whole training's, of a worker.
      seed: of the clocks.
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
    """When synchronous workers compute; None where the clocks are the default ones.

    Args:
      clocks: from the command line.
      size: number of workers.
      steps: the whole training's.
      seed: of the clocks.
    """
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
    """Makes the base optimizer asynchronous.

    Args:
      name: one of `ALGORITHMS`.
      clocks: from the command line.
      base: what every worker does with its gradients, likewise.
      steps: of a worker's whole training.
      topology: who talks to whom.
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
    """The same optimizer, with a schedule of the gradients of all workers."""
    if make is None:  # An unknown optimizer, which make_base names.
        return None
    static = [*inspect.signature(make).parameters][1:]

    @functools.wraps(make)
    def wrapped(learning_rate, **options):
        schedule = asynchronous.in_global_steps(learning_rate)
        return optax.inject_hyperparams(make, static_args=static)(schedule, **options)

    return wrapped


@dataclasses.dataclass(frozen=True)
class Virtual:
    """A training on virtual clocks.

    Attributes:
      task: what is learned.
      algorithm: what every worker does.
      events: when.
      rate: averagings per worker and unit of time that were asked for.
      communicator: simulates the workers, for the evaluations.
    """

    task: Task
    algorithm: asynchronous.EventTransformation
    events: asynchronous.Events
    rate: float
    communicator: djax.Communicator

    @property
    def ranks(self) -> range:
        """The workers that come to the end."""
        return range(self.communicator.size)

    def train(
        self,
        params: Any,
        evaluations: int,
        report: Callable[[dict[str, Any]], None],
        advance: Callable[[float], object],
    ) -> Outcome:
        """Trains all workers through the events.

        Args:
          params: the first models, with their leading axis.
          evaluations: how many, evenly spread over time; the last is at the end.
          report: called with each record of the history: those of
            :func:`experiments.lib.trainer.train`, with the virtual `time` and the
            `megabytes` that a worker has sent by then, on average; `epoch` and `step`
            are means over the workers.
          advance: called after each evaluation with the epochs since the one before.

        Returns:
          As of :func:`experiments.lib.trainer.train`; the loss of a record is the
          mean of the last gradients, one epoch of all workers.

        Raises:
          Diverged: if the loss of a gradient is not finite, or if the losses were far
            above their start and have not come back by the end.
          Stopped: after SIGTERM or Ctrl-C.
        """
        task, events = self.task, self.events
        assess, chunk = make_assess(task, self.communicator), chunk_steps(task)
        moments = asynchronous.simulate(
            self.algorithm,
            events,
            params,
            task.gradient_fn,
            lambda i: task.batches(i * chunk, (i + 1) * chunk),
            times=[events.duration * k / evaluations for k in range(1, evaluations)],
            model_state=jax.tree.map(jnp.asarray, task.model_state),
            dispatch=task.dispatch,
        )
        workers = events.worker[events.is_gradient]
        losses, history, start = np.zeros(0), [], time.perf_counter()
        with in_own_words():
            for moment in self._until_told(moments):
                new = np.asarray(moment.metrics["loss"], np.float64)
                check_losses(new, workers[len(losses) :], f"by time {moment.time:.4g}")
                losses = np.concatenate([losses, new])
                record = {
                    **progress(task, events.size, losses),
                    "time": moment.time,
                    "megabytes": megabytes(events, params, moment.time)[0],
                    **assess(moment.params, moment.model_state),
                    "seconds": time.perf_counter() - start,
                }
                history.append(record)
                report(record)
                advance(len(new) / events.size / task.steps_per_epoch)
        watch_all(losses, events.size)
        end = simulation.Workers(moment.params, moment.state, moment.model_state)
        return Outcome(end, history)

    def _until_told(self, moments: Iterator[Any]) -> Iterator[Any]:
        """The moments, until a signal ends the run; nothing is worth waiting for."""

        def stop(number, frame):
            del frame
            how, _ = describe_signal(number)
            raise Stopped(
                f"stopped by {how}; virtual clocks have no checkpoints, and the same "
                "seed repeats a run: start it anew",
                128 + number,
            )

        if threading.current_thread() is not threading.main_thread():
            yield from moments
            return
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, stop) for number in signals}
        try:
            yield from moments
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def megabytes(self, params: Any, history: Any) -> tuple[float, float]:
        """What a worker sent, on average and at most."""
        del history
        return megabytes(self.events, params)

    def traffic(self, params: Any, history: Any) -> dict[str, float]:
        """What a worker sent, on average, and the one that sent most."""
        del history
        return traffic(self.events, params)

    def describe(self, params: Any, history: Any) -> list[tuple[str, str]]:
        """Rows of the final table: what the workers did."""
        del history
        events = self.events
        averagings, duration = events.averaging_counts, events.duration
        return [
            ("virtual time", f"{duration:.5g}"),
            ("gradients of a worker, mean (fewest, most)", spread(events)),
            (
                "averagings of a worker per time (asked)",
                f"{averagings.mean() / duration:.4g} ({self.rate:.4g})",
            ),
            *describe_averagings(events, params),
        ]

    def save(self, folder: RunFolder, title: str) -> None:
        """Draws the events."""
        save_events(folder, self.events, title)


def progress(
    task: Task, size: int, losses: np.ndarray, before: int = 0
) -> dict[str, float]:
    """Part of a record: how far the training is, and the loss of the last epoch.

    Args:
      task: what is learned.
      size: number of workers.
      losses: of all gradients so far.
      before: gradients that are not among them.
    """
    step = (before + len(losses)) / size
    epoch = losses[-size * task.steps_per_epoch :]
    return {
        "epoch": step / task.steps_per_epoch,
        "step": step,
        "loss": float(epoch.mean()) if len(epoch) else math.nan,
    }


def spread(events: asynchronous.Events) -> str:
    """Mean, smallest and largest number of gradients of a worker."""
    counts = events.gradient_counts
    return f"{counts.mean():.5g} ({counts.min()}, {counts.max()})"


def megabytes(
    events: asynchronous.Events, params: Any, until: float = math.inf
) -> tuple[float, float]:
    """What a worker sent, on average and at most.

    Args:
      events: of the run.
      params: models with a leading axis.
      until: only averagings up to that time count.
    """
    model_bytes = sum(x.nbytes // len(x) for x in jax.tree.leaves(params))
    met = ~events.is_gradient & (events.time <= until)
    pairs = np.concatenate([events.worker[met], events.peer[met]])
    sent = np.bincount(pairs, minlength=events.size) * (model_bytes / 1e6)
    return float(sent.mean()), float(sent.max())


def traffic(events: asynchronous.Events, params: Any) -> dict[str, float]:
    """What a worker sent, on average, and the one that sent most: numbers by name.

    Args:
      events: of the run.
      params: models with a leading axis.
    """
    mean, largest = megabytes(events, params)
    return {
        "megabytes_mean": mean,
        "megabytes_largest": largest,
        "averagings_mean": float(events.averaging_counts.mean()),
        "averagings_largest": float(events.averaging_counts.max()),
    }


def describe_averagings(
    events: asynchronous.Events, params: Any
) -> list[tuple[str, str]]:
    """Rows of the final table: what was sent, and how often a gradient is late.

    Args:
      events: of the run.
      params: models with a leading axis.
    """
    sent, most = megabytes(events, params)
    staleness = events.staleness
    return [
        ("MB sent per worker, mean (largest)", f"{sent:.5g} ({most:.5g})"),
        (
            "averagings during a gradient, mean (most)",
            f"{staleness.mean():.3g} ({staleness.max(initial=0)})",
        ),
    ]


def save_events(folder: RunFolder, events: asynchronous.Events, title: str) -> None:
    """Draws who averaged with whom, about ten gradients of a worker, and the staleness.

    Args:
      folder: where to.
      events: of the run.
      title: of the figures.
    """
    from matplotlib.figure import Figure  # Slow to import.

    gradients = max(1.0, events.gradient_counts.mean())
    until = min(1.0, 10 / gradients) * events.duration
    for name, options in (
        ("pairs", {}),
        ("timeline", {"until": until}),
        ("staleness", {}),
    ):
        figure = Figure(figsize=(7, 5), layout="constrained")
        getattr(events, f"plot_{name}")(figure.subplots(), **options)
        figure.suptitle(title)
        folder.save(f"{name}.png", figure)
