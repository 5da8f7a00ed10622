"""Trains synchronously, in steps that all workers take together."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Generator
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import simulation
from djax.communicators import to_local
from djax.training import Checkpointer

from .data import Prefetch
from .divergence import Diverged, Watch, check_losses
from .evaluation import make_assess
from .signals import Termination, stopped_and_saved
from .tasks import Task
from .trainer import Job, Record, Records, Rows, chunk_steps

TIMED_SECONDS, TIMED_REPEATS = 1.0, 5
"""Approximate duration in seconds of the steps that are timed together, and how often
they are timed."""

make_steps = functools.lru_cache(maxsize=1)(simulation.make_steps)
"""Makes the function that trains. The last one is kept, so that its steps can be timed
without compiling them again."""


@dataclasses.dataclass
class Position:
    """The progress of a training, which a checkpoint stores beside the workers.

    Attributes:
      seconds: duration of these steps in seconds.
      losses: losses of the current epoch, a list `[local][steps]` for each chunk.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[list[list[float]]] = dataclasses.field(default_factory=list)
    history: list[Record] = dataclasses.field(default_factory=list)
    watch: Watch = dataclasses.field(default_factory=Watch)

    def take(self, step: int, losses: jax.Array, seconds: float) -> None:
        """Notes that all steps before `step` are done, with losses `[local, steps]`."""
        self.step, self.seconds = step, seconds
        self.losses.append(np.asarray(losses).tolist())

    def finish_epoch(self, communicator: djax.Communicator, epoch: int) -> float:
        """Returns the workers' mean loss; raises Diverged if one is not finite."""
        local = np.concatenate(self.losses, axis=1)
        self.losses = []
        before = self.step - local.shape[1]
        everyone = np.asarray(communicator.gather(list(local)), np.float64)
        for step, losses in enumerate(everyone.T, before + 1):
            when = f"in epoch {epoch} (step {step})"
            check_losses(losses, np.arange(communicator.size), when)
        self.watch.take(before, everyone.mean(0))
        return math.fsum(everyone.ravel()) / everyone.size


@dataclasses.dataclass
class Synchronous(Job):
    """A training of steps that all workers take together.

    Attributes:
      optimizer: the chain with the mechanism.
      base: the same chain without the mechanism.
      cost: what a worker sends in a step.
      rounds: times at which steps end on virtual clocks; None without clocks.
      saver: saves the workers, and restores them before the first step. None for a run
        that saves nothing and does not listen to signals.
      collapse: an epoch and a score: the training ends at that epoch unless a worker
        has reached that score.
    """

    optimizer: optax.GradientTransformation
    base: optax.GradientTransformation
    epochs: int
    cost: djax.CommunicationCost
    rounds: djax.asynchronous.Rounds | None = None
    saver: Checkpointer | None = None
    collapse: tuple[float, float] | None = None

    def train(self, evaluations: int, advance: Callable[[float], object]) -> Records:
        """See :class:`experiments.lib.trainer.Job`."""
        saver = self.saver
        with (
            contextlib.nullcontext() if saver is None else contextlib.closing(saver),
            # From the start on: the first steps are compiled for seconds to minutes.
            Termination(listen=saver is not None) as termination,
        ):
            workers, position = self._begin()
            yield from list(position.history)
            advance(position.step / self.task.steps_per_epoch)
            workers = yield from self._take_steps(
                workers, position, termination, evaluations, advance
            )
            if saver is not None:
                self.unsaved = saver.finish()
        self.workers = workers
        if "collapsed" not in position.history[-1]:
            position.watch.check()

    def _take_steps(
        self,
        workers: simulation.Workers,
        position: Position,
        termination: Termination,
        evaluations: int,
        advance: Callable[[float], object],
    ) -> Generator[Record, None, simulation.Workers]:
        """Trains from a position on, yields records, and returns the workers."""
        task = self.task
        steps = self._make_steps(self.optimizer)
        assess = make_assess(task, self.communicator)
        due = {round((i + 1) * self.epochs / evaluations) for i in range(evaluations)}
        chunks = _cut(task, position.step, self.epochs)
        began = time.perf_counter() - position.seconds

        def load(i):
            return task.batches(*chunks[i]) if i < len(chunks) else None

        with Prefetch(load) as loaded:
            for i, (first, last) in enumerate(chunks):
                try:
                    workers, measured = steps(workers, loaded(i))
                except simulation.NonFiniteError as error:
                    self._explain(error, position, last)
                losses = to_local(self.communicator, measured["loss"])
                position.take(last, losses, time.perf_counter() - began)
                advance((last - first) / task.steps_per_epoch)
                if last % task.steps_per_epoch == 0:
                    epoch = last // task.steps_per_epoch
                    loss = position.finish_epoch(self.communicator, epoch)
                    if epoch in due:
                        record = {"epoch": epoch, "step": last, "loss": loss}
                        record |= assess(workers.params, workers.model_state)
                        record["seconds"] = time.perf_counter() - began
                        self._complete(record)
                        position.history.append(record)
                        yield record
                        if "collapsed" in record:
                            break
                self._save(workers, position, termination.number)
        return workers

    def _begin(self) -> tuple[simulation.Workers, Position]:
        """Returns workers and position, from the checkpoint or at the start."""
        workers = self._init_workers(self.optimizer)
        position = Position(history=self.history)
        if self.saver is not None and self.saver.latest is not None:
            workers, saved = self.saver.restore(workers)
            position.history += saved.pop("history")
            position.watch = Watch(**saved.pop("watch"))
            position = dataclasses.replace(position, **saved)
        position.watch.steps = self.epochs * self.task.steps_per_epoch
        return workers, position

    def _complete(self, record: Record) -> None:
        """Adds to a record what was sent, the virtual time, and whether to give up."""
        record["megabytes"] = self.cost.mean_bytes * record["step"] / 1e6
        if self.rounds is not None:
            record["time"] = float(self.rounds.end[record["step"] - 1])
        if self.collapse is not None:
            epoch, least = self.collapse
            sign = 1 if self.task.higher_is_better else -1
            best = max(sign * score for score in record["scores"])
            if record["epoch"] >= epoch and not best >= sign * least:
                record["collapsed"] = True

    def _explain(
        self, error: simulation.NonFiniteError, position: Position, last: int
    ) -> NoReturn:
        """Raises Diverged, and names the loss if the loss is not finite."""
        epoch = math.ceil(last / self.task.steps_per_epoch)
        losses = to_local(self.communicator, error.metrics["loss"])
        position.take(last, losses, position.seconds)
        position.finish_epoch(self.communicator, epoch)
        raise Diverged(
            f"training diverged: the gradient or model of worker {error.ranks[0]} is "
            f"not finite in epoch {epoch}."
        ) from error

    def _save(
        self, workers: simulation.Workers, position: Position, number: int
    ) -> None:
        """Saves if a process asks for it; raises Stopped if one received a signal."""
        if (saver := self.saver) is None:
            return
        due, numbers = saver.agree(number)
        told = [number for number in numbers if number]
        ended = position.step == self.epochs * self.task.steps_per_epoch
        if told or (due and not ended):
            saver.save(position.step, workers, dataclasses.asdict(position))
        if told:
            unsaved, when = saver.finish(), f" after step {position.step}"
            raise stopped_and_saved(told[0], saver.directory, unsaved, when)

    def traffic(self) -> dict[str, float]:
        """See :class:`experiments.lib.trainer.Job`."""
        cost, steps = self.cost, self.history[-1]["step"]
        return {
            "megabytes_mean": cost.mean_bytes * steps / 1e6,
            "megabytes_largest": cost.max_bytes * steps / 1e6,
            "messages_mean": cost.mean_messages * steps,
            "messages_largest": cost.max_messages * steps,
        }

    def describe(self) -> Rows:
        """Returns rows of the final table: bytes and time of a step."""
        rows = [
            *super().describe(),
            *describe_levels(self.cost, self.history[-1]["step"]),
            ("messages sent per worker", f"{self.traffic()['messages_mean']:.5g}"),
            *describe_times(self._time_steps()),
        ]
        if self.rounds is not None:
            rows += [
                ("virtual time", f"{self.rounds.end[-1]:.5g}"),
                ("idle share of the workers' time", f"{self.rounds.idle_share:.1%}"),
            ]
        return rows

    def _make_steps(self, optimizer):
        task = self.task
        return make_steps(
            task.gradient_fn, optimizer, self.communicator, dispatch=task.dispatch
        )

    def _init_workers(self, optimizer):
        state = jax.tree.map(jnp.asarray, self.task.model_state)
        return simulation.init_workers(optimizer, self.communicator, self.params, state)

    def _time_steps(self) -> np.ndarray:
        """Repeats the first steps to measure how many seconds a step takes.

        The steps of a chunk are timed together, or fewer if they are slow. The result
        is `float[TIMED_REPEATS, 2]`, with and without the mechanism. Compiling and
        loading data do not count.
        """
        last = self.history[-1]
        local = len(self.communicator.local_ranks)
        paces = self.communicator.gather([last["seconds"] / last["step"]] * local)
        steps = min(max(1, int(TIMED_SECONDS / paces[0])), chunk_steps(self.task))
        batches = jax.tree.map(jnp.asarray, self.task.batches(0, steps))
        optimizers = (self.optimizer, self.base)
        programs = [self._make_steps(optimizer) for optimizer in optimizers]
        workers = [self._init_workers(optimizer) for optimizer in optimizers]
        durations = np.empty((1 + TIMED_REPEATS, 2))  # The first repeat compiles.
        for repeat, i in np.ndindex(durations.shape):
            began = time.perf_counter()
            workers[i], measured = programs[i](workers[i], batches)
            jax.block_until_ready((workers[i], measured))
            durations[repeat, i] = time.perf_counter() - began
        return durations[1:] / steps


def describe_levels(cost: djax.CommunicationCost, steps: int) -> Rows:
    """Returns rows of the final table: what is sent within and between groups."""
    said = {"local": "within groups", "across": "between groups"}
    return [
        (f"  of it {where}", f"{cost[name].mean_bytes * steps / 1e6:.5g}")
        for name, where in said.items()
        if name in cost.by_name
    ]


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


def _cut(task: Task, start: int, epochs: int) -> list[tuple[int, int]]:
    """Cuts the steps from `start` on into chunks `(first, last)` within epochs."""
    whole, size = task.steps_per_epoch, chunk_steps(task)
    chunks = [
        (epoch * whole + first, epoch * whole + min(first + size, whole))
        for epoch in range(epochs)
        for first in range(0, whole, size)
    ]
    return [(max(first, start), last) for first, last in chunks if last > start]
