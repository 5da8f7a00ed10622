"""Trains asynchronous workers on virtual clocks, and shares code with real time."""

import dataclasses
import functools
import inspect
import math
import time
from collections.abc import Callable
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
from .optimizers import BaseOptimizer, make_base
from .options import changed
from .ranges import flag
from .report import RunFolder
from .signals import Termination, stopped_unsaved
from .trainer import Job, Record, Records, Rows, chunk_steps

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

    def durations(self, seed: int) -> dict[str, Any]:
        """Returns how long gradients take, in arguments of djax's functions."""
        speeds = self.speeds or 1.0
        return {"speeds": speeds, "variation": self.variation, "seed": seed}


def check_clocks(clocks: Clocks, algorithm: str, live: bool) -> None:
    """Raises UsageError if an algorithm would ignore one of the options.

    Workers that are `live` compute in real time, and not on virtual clocks.
    """
    virtual = {"speeds", "variation"}
    known = virtual if algorithm == "all_reduce_sgd" else set()
    for name in changed(clocks).keys() - known:
        if algorithm not in ALGORITHMS:
            raise UsageError(
                f"--algorithm {algorithm} has no option {flag(name)}; "
                f"{' and '.join(ALGORITHMS)} have."
            )
        if live and name in virtual:
            raise UsageError(
                f"{flag(name)} is of virtual clocks: leave mpirun away, where workers "
                "take the time that they take."
            )


def make_algorithm(
    name: str,
    clocks: Clocks,
    base: BaseOptimizer,
    steps: int,
    topology: djax.Topology,
) -> asynchronous.EventTransformation:
    """Makes one of the `ALGORITHMS`; a worker computes `steps` gradients on average."""
    if clocks.global_steps:
        make = _in_global_steps(getattr(optax, base.optimizer, optax.sgd))
        optimizer = make_base(base, topology.size * steps, make)
    else:
        optimizer = make_base(base, steps)
    if name == "adpsgd":
        return djax.adpsgd(optimizer)
    return djax.acid(optimizer, djax.acid_constants(topology, clocks.rate))


def _in_global_steps(make):
    """Lets the learning rate of an optimizer follow the gradients of all workers."""
    static = [*inspect.signature(make).parameters][1:]

    @functools.wraps(make)
    def wrapped(learning_rate, **options):
        schedule = asynchronous.in_global_steps(learning_rate)
        return optax.inject_hyperparams(make, static_args=static)(schedule, **options)

    return wrapped


@dataclasses.dataclass
class EventJob(Job):
    """The base class of asynchronous trainings, whose workers make events."""

    algorithm: asynchronous.EventTransformation
    events: asynchronous.Events = dataclasses.field(init=False)

    @property
    def told(self) -> asynchronous.Events | asynchronous.Report:
        """What knows when gradients were computed, and how stale they were."""
        return self.events

    @property
    def counted(self) -> list[int]:
        """The ranks of the workers whose gradients and averagings are known."""
        return list(range(self.communicator.size))

    def measure(
        self,
        time: float,
        losses: np.ndarray,
        assessed: Record,
        seconds: float,
        before: int = 0,
    ) -> Record:
        """Adds a record to the history, and returns it.

        The losses, `float[gradients]`, are those of all gradients up to that time, but
        for the first `before` ones, which an earlier part of the run has computed.
        """
        size = self.communicator.size
        step = (before + len(losses)) / size
        epoch = losses[-size * self.task.steps_per_epoch :]
        record = {
            "epoch": step / self.task.steps_per_epoch,
            "step": step,
            "loss": float(epoch.mean()) if len(epoch) else math.nan,
            "time": time,
            "megabytes": float(self._megabytes(time).mean()),
            **assessed,
            "seconds": seconds,
        }
        self.history.append(record)
        return record

    def _megabytes(self, until: float = math.inf) -> np.ndarray:
        """Returns the megabytes that each counted worker sent until then."""
        events = self.events
        model_bytes = sum(x.nbytes // len(x) for x in jax.tree.leaves(self.params))
        met = ~events.is_gradient & (events.time <= until)
        pairs = np.concatenate([events.worker[met], events.peer[met]])
        meetings = np.bincount(pairs, minlength=events.size)[self.counted]
        return meetings * (model_bytes / 1e6)

    def traffic(self) -> dict[str, float]:
        """See :class:`experiments.lib.trainer.Job`."""
        sent, averagings = self._megabytes(), self.events.averaging_counts[self.counted]
        return {
            "megabytes_mean": float(sent.mean()),
            "megabytes_largest": float(sent.max()),
            "averagings_mean": float(averagings.mean()),
            "averagings_largest": float(averagings.max()),
        }

    def describe(self) -> Rows:
        """Returns rows of the final table about events, and about stale gradients."""
        counts = self.events.gradient_counts[self.counted]
        staleness = self.told.staleness
        done = f"{counts.mean():.5g} ({counts.min()}, {counts.max()})"
        mean = staleness.sum() / max(1, len(staleness))  # A run may compute nothing.
        late = f"{mean:.3g} ({staleness.max(initial=0)})"
        return [
            ("gradients of a worker, mean (fewest, most)", done),
            *super().describe(),
            ("averagings during a gradient, mean (most)", late),
        ]

    def save(self, folder: RunFolder, title: str) -> None:
        """Draws pairs of workers, a timeline of about ten gradients, and staleness."""
        if not folder.active:
            return
        from matplotlib.figure import Figure  # Slow to import.

        events, told = self.events, self.told
        gradients = max(1.0, events.gradient_counts.mean())
        until = min(1.0, 10 / gradients) * events.duration
        for name, draw in {
            "pairs": events.plot_pairs,
            "timeline": functools.partial(told.plot_timeline, until=until),
            "staleness": told.plot_staleness,
        }.items():
            figure = Figure(figsize=(7, 5), layout="constrained")
            draw(figure.subplots())
            figure.suptitle(title)
            folder.save(f"{name}.png", figure)


@dataclasses.dataclass
class Virtual(EventJob):
    """A training on virtual clocks.

    The rate is the number of averagings of a worker per unit of time that was asked
    for.
    """

    events: asynchronous.Events
    rate: float

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
        self.workers = simulation.Workers(
            moment.params, moment.state, moment.model_state
        )

    def describe(self) -> Rows:
        """Returns rows of the final table: duration, and numbers of events."""
        events = self.events
        realized = events.averaging_counts.mean() / events.duration
        rates = f"{realized:.4g} ({self.rate:.4g})"
        return [
            ("virtual time", f"{events.duration:.5g}"),
            ("averagings of a worker per time (asked)", rates),
            *super().describe(),
        ]


def _stop(number: int) -> NoReturn:
    """Ends the run at once: nothing is saved, so it need not finish a step."""
    why = "virtual clocks have no checkpoints, and the same seed repeats a run"
    raise stopped_unsaved(number, why)
