"""Trains synchronously, in steps that all workers take together."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import simulation
from djax.training import Checkpointer

from .data import Prefetch
from .divergence import Diverged, Watch, check_losses
from .evaluation import make_assess
from .report import RunFolder
from .signals import Termination, stopped_and_saved
from .steps import TIMED_SECONDS, describe_times, make_steps, time_steps
from .tasks import Task
from .trainer import Outcome, Record, Records, Rows, chunk_steps


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
        for t, losses in enumerate(everyone.T):
            check_losses(
                losses,
                np.arange(len(losses)),
                f"in epoch {epoch} (step {before + t + 1})",
            )
        self.watch.take(before, everyone.mean(0))
        return math.fsum(everyone.ravel()) / everyone.size


@dataclasses.dataclass
class Synchronous:
    """A :class:`experiments.lib.trainer.Job` of steps that all workers take together.

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

    task: Task
    optimizer: optax.GradientTransformation
    base: optax.GradientTransformation
    communicator: djax.Communicator
    params: Any
    epochs: int
    cost: djax.CommunicationCost
    rounds: djax.asynchronous.Rounds | None = None
    saver: Checkpointer | None = None
    collapse: tuple[float, float] | None = None
    outcome: Outcome = dataclasses.field(init=False, default_factory=Outcome)

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks of all workers."""
        return range(self.communicator.size)

    def train(self, evaluations: int, advance: Callable[[float], object]) -> Records:
        """See :class:`experiments.lib.trainer.Job`."""
        task, saver = self.task, self.saver
        workers, position = self._begin()
        yield from list(position.history)
        advance(position.step / task.steps_per_epoch)
        steps = make_steps(task, self.optimizer, self.communicator)
        assess = make_assess(task, self.communicator)
        due = {round((i + 1) * self.epochs / evaluations) for i in range(evaluations)}
        chunks = _cut(task, position.step, self.epochs)
        began = time.perf_counter() - position.seconds

        def load(i):
            return task.batches(*chunks[i]) if i < len(chunks) else None

        with (
            contextlib.nullcontext() if saver is None else contextlib.closing(saver),
            Termination(listen=saver is not None) as termination,
            Prefetch(load) as loaded,
        ):
            for i, (first, last) in enumerate(chunks):
                try:
                    workers, measured = steps(workers, loaded(i))
                except simulation.NonFiniteError as error:
                    self._explain(error, position, last)
                position.take(last, measured["loss"], time.perf_counter() - began)
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
                if saver is not None:
                    self._save(saver, workers, position, termination.number)
            if saver is not None:
                self.outcome.unsaved = saver.finish()
        self.outcome.workers = workers
        if "collapsed" not in position.history[-1]:
            position.watch.check()

    def _begin(self) -> tuple[simulation.Workers, Position]:
        """Returns workers and position, from the checkpoint or at the start."""
        model_state = jax.tree.map(jnp.asarray, self.task.model_state)
        workers = simulation.init_workers(
            self.optimizer, self.communicator, self.params, model_state
        )
        position = Position(history=self.outcome.history)
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
        position.take(last, error.metrics["loss"], position.seconds)
        position.finish_epoch(self.communicator, epoch)
        raise Diverged(
            f"training diverged: the gradient or model of worker {error.ranks[0]} is "
            f"not finite in epoch {epoch}."
        ) from error

    def _save(
        self,
        saver: Checkpointer,
        workers: simulation.Workers,
        position: Position,
        number: int,
    ) -> None:
        """Saves if a process asks for it; raises Stopped if one received a signal."""
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
        cost, steps = self.cost, self.outcome.history[-1]["step"]
        return {
            "megabytes_mean": cost.mean_bytes * steps / 1e6,
            "megabytes_largest": cost.max_bytes * steps / 1e6,
            "messages_mean": cost.mean_messages * steps,
            "messages_largest": cost.max_messages * steps,
        }

    def describe(self) -> Rows:
        """Returns rows of the final table: bytes and time of a step.

        Some steps are repeated to measure their time.
        """
        seconds = time_steps(
            self.task,
            (self.optimizer, self.base),
            self.communicator,
            self.params,
            self._count_timed(),
        )
        sent = self.traffic()
        rows = [
            (
                "MB sent per worker, mean (largest)",
                f"{sent['megabytes_mean']:.5g} ({sent['megabytes_largest']:.5g})",
            ),
            ("messages sent per worker", f"{sent['messages_mean']:.5g}"),
            *describe_times(seconds),
        ]
        if self.rounds is not None:
            rows += [
                ("virtual time", f"{self.rounds.end[-1]:.5g}"),
                ("idle share of the workers' time", f"{self.rounds.idle_share:.1%}"),
            ]
        return rows

    def _count_timed(self) -> int:
        """Returns how many steps are repeated: a chunk's, or fewer if they are slow."""
        last = self.outcome.history[-1]
        local = len(self.communicator.local_ranks)
        paces = self.communicator.gather([last["seconds"] / last["step"]] * local)
        most = max(1, int(TIMED_SECONDS / paces[0]))
        return min(most, chunk_steps(self.task))

    def save(self, folder: RunFolder, title: str) -> None:
        """Saves nothing, since this kind of training has no pictures of its own."""


def _cut(task: Task, start: int, epochs: int) -> list[tuple[int, int]]:
    """Cuts the steps from `start` on into chunks `(first, last)` within epochs."""
    whole, size = task.steps_per_epoch, chunk_steps(task)
    ends = [
        epoch * whole + min(end, whole)
        for epoch in range(epochs)
        for end in range(size, whole + size, size)
    ]
    ends = [end for end in ends if end > start]
    return list(zip([start, *ends[:-1]], ends, strict=True)) if ends else []
