"""The training loop: chunks of steps, and what is measured in between."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import simulation

from .checkpoints import Saver, Termination
from .data import Prefetch
from .errors import UsageError
from .evaluation import make_assess
from .report import RunFolder
from .tasks import Task

CHUNK_BYTES, CHUNK_STEPS = 64 * 2**20, 500
"""Batches that are loaded together have at most so many bytes, and steps."""
TIMED_SECONDS = 1.0
"""About how long the steps last that are timed together."""


class Diverged(UsageError):
    """The loss is no longer finite."""


class Stopped(Exception):
    """The run was told to end, and what it has is saved."""


class Outcome(NamedTuple):
    """What a training leaves behind.

    Attributes:
      workers: the local workers.
      history: one record an evaluation, the last at the end: `epoch`, `step`, `loss`
        (mean training loss of the epoch), what
        :func:`experiments.common.evaluation.make_assess` measures, `seconds` since the
        start; and `collapsed`, if the training was ended for that.
    """

    workers: simulation.Workers
    history: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Synchronous:
    """A training in steps that all workers take together.

    Attributes:
      task: what is learned.
      optimizer: the chain with the mechanism.
      base: the same without.
      communicator: where the workers live.
      epochs: passes over the data.
      cost: what a step sends.
      rounds: when the steps are on virtual clocks, or None.
      saver: of checkpoints, or None.
      collapse: an epoch, and the score that the best worker has to have by then for the
        training to go on; or None.
    """

    task: Task
    optimizer: optax.GradientTransformation
    base: optax.GradientTransformation
    communicator: djax.Communicator
    epochs: int
    cost: djax.CommunicationCost
    rounds: djax.asynchronous.Rounds | None = None
    saver: Saver | None = None
    collapse: tuple[float, float] | None = None

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
        """Trains the local workers, from where the saver has them.

        Args:
          params: the first models, with a leading axis of local workers.
          evaluations: how many, spread evenly; the last is at the end.
          report: called with each record of the history; with `time`, if there are
            virtual clocks.
          advance: called with the epochs since the last call.

        Raises:
          Diverged: on every process alike, if the loss of a worker is not finite.
          Stopped: on every process alike, after SIGTERM.
        """
        task = self.task
        workers = simulation.init_workers(
            self.optimizer,
            self.communicator,
            params,
            jax.tree.map(jnp.asarray, task.model_state),
        )
        position = _Position()
        if self.saver is not None and self.saver.latest is not None:
            workers, saved = self.saver.restore(workers)
            position = _Position(**saved)
            for record in position.history:
                report(record)
            advance(position.step / task.steps_per_epoch)
        with Termination() as termination:
            workers = self._run(
                workers, position, evaluations, report, advance, termination
            )
        return Outcome(workers, position.history)

    def _run(self, workers, position, evaluations, report, advance, termination):
        task, start = self.task, time.perf_counter() - position.seconds
        steps = _make_steps(
            task.gradient_fn, self.optimizer, self.communicator, task.dispatch
        )
        assess = make_assess(task, self.communicator)
        due = {round((i + 1) * self.epochs / evaluations) for i in range(evaluations)}
        chunks = _cut(task, position.step, self.epochs)
        with Prefetch(
            lambda i: task.batches(*chunks[i]) if i < len(chunks) else None
        ) as p:
            for i, (first, last) in enumerate(chunks):
                workers, measured = steps(workers, p(i))
                position.losses.append(np.asarray(measured["loss"]).tolist())
                position.step = last
                advance((last - first) / task.steps_per_epoch)
                epoch, rest = divmod(last, task.steps_per_epoch)
                if rest == 0:
                    loss = position.finish_epoch(self.communicator, epoch)
                    if epoch in due:
                        record = {"epoch": epoch, "step": last, "loss": loss}
                        record |= assess(workers.params, workers.model_state)
                        record["seconds"] = time.perf_counter() - start
                        if self.rounds is not None:
                            record["time"] = float(self.rounds.end[last - 1])
                        record |= self._find_collapse(record)
                        position.history.append(record)
                        report(record)
                        if "collapsed" in record:
                            break
                position.seconds = time.perf_counter() - start
                self._save(workers, position, termination)
        return workers

    def _find_collapse(self, record: dict[str, Any]) -> dict[str, bool]:
        if self.collapse is None:
            return {}
        epoch, least = self.collapse
        sign = 1 if self.task.higher_is_better else -1
        best = max(sign * score for score in record["scores"])
        fails = record["epoch"] >= epoch and not best >= sign * least
        return {"collapsed": True} if fails else {}

    def _save(self, workers, position, termination) -> None:
        """Saves if any process has to, and ends the run if it was told to end."""
        if self.saver is None:
            return
        local = len(self.communicator.local_ranks)
        asked = self.communicator.gather(
            [(self.saver.due, termination.requested)] * local
        )
        stopping = any(stop for _, stop in asked)
        last = position.step == self.epochs * self.task.steps_per_epoch
        if last and not stopping:
            return
        if stopping or any(due for due, _ in asked):
            self.saver.save(position.step, workers, dataclasses.asdict(position))
        if stopping:
            self.saver.close()
            raise Stopped(
                f"stopped by SIGTERM after step {position.step}; to go on, start the "
                f"same with --checkpoints {self.saver.folder} --resume"
            )

    def megabytes(self, params: Any) -> tuple[float, float]:
        """What a worker sends, on average and at most."""
        del params  # The cost knows them.
        steps = self.epochs * self.task.steps_per_epoch
        cost = self.cost
        return cost.mean_bytes * steps / 1e6, cost.max_bytes * steps / 1e6

    def describe(
        self, params: Any, history: Sequence[dict[str, Any]]
    ) -> list[tuple[str, str]]:
        """Rows of the final table: what steps cost; some are repeated for it."""
        total, gradient = time_steps(
            self.task,
            (self.optimizer, self.base),
            self.communicator,
            params,
            self._count_timed(history[-1]),
        )
        gradient = min(total, gradient)  # Where averaging takes no time, noise is left.
        sent, most = self.megabytes(params)
        messages = self.cost.mean_messages * self.epochs * self.task.steps_per_epoch
        rows = [
            ("MB sent per worker, mean (largest)", f"{sent:.5g} ({most:.5g})"),
            ("messages sent per worker", f"{messages:.5g}"),
            ("time per step", f"{total * 1e3:.3g} ms"),
            ("  of it gradient and base optimizer", f"{gradient * 1e3:.3g} ms"),
            ("  of it communication", f"{(total - gradient) * 1e3:.3g} ms"),
        ]
        if self.rounds is not None:
            rows += [
                ("virtual time", f"{self.rounds.end[-1]:.5g}"),
                ("idle share of the workers' time", f"{self.rounds.idle_share:.1%}"),
            ]
        return rows

    def _count_timed(self, last: dict[str, Any]) -> int:
        """How many steps are repeated: as many as a chunk has, if they are fast."""
        local = len(self.communicator.local_ranks)
        paces = self.communicator.gather([last["seconds"] / last["step"]] * local)
        most = max(1, int(TIMED_SECONDS / paces[0]))
        return min(most, chunk_steps(self.task))

    def save(self, folder: RunFolder, title: str) -> None:
        """There are no pictures but those of every run."""


def time_steps(
    task: Task,
    optimizers: Sequence[optax.GradientTransformation],
    communicator: djax.Communicator,
    params: Any,
    steps: int,
    repeats: int = 5,
) -> list[float]:
    """Seconds of a step with each of several optimizers, measured in turns.

    Args:
      task: what is learned; its first steps are repeated.
      optimizers: what is compared.
      communicator: where the workers live.
      params: of the local workers, with their leading axis.
      steps: how many are timed together.
      repeats: how often each is timed, after once that compiles.

    Returns:
      The shortest time of each, without compilation and loading of data.
    """
    model_state = jax.tree.map(jnp.asarray, task.model_state)
    batches = jax.tree.map(jnp.asarray, task.batches(0, steps))
    programs = [
        _make_steps(task.gradient_fn, optimizer, communicator, task.dispatch)
        for optimizer in optimizers
    ]
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
    return list(durations[1:].min(0) / steps)


@functools.lru_cache(maxsize=1)
def _make_steps(gradient_fn, optimizer, communicator, dispatch):
    """Kept, so that what was trained is timed without compiling it again."""
    return simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )


def check_losses(losses: np.ndarray, workers: np.ndarray, when: str) -> None:
    """Raises Diverged if a loss is not finite.

    Args:
      losses: `float[gradients]`.
      workers: `int[gradients]`, whose they are; more do no harm.
      when: for the error.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise Diverged(
            f"training diverged: worker {workers[bad[0]]}'s loss is {losses[bad[0]]} "
            f"{when}. Lower --learning-rate, lengthen --warmup, or lower "
            "--consensus-rate if it is above 1."
        )


@dataclasses.dataclass
class _Position:
    """How far a training is; what a checkpoint has of it besides the workers.

    Attributes:
      step: steps that are done.
      seconds: what they took.
      losses: of the present epoch, a list `[local][steps]` for each chunk.
      history: the records so far.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[list[list[float]]] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def finish_epoch(self, communicator: djax.Communicator, epoch: int) -> float:
        """Mean loss of all workers; raises Diverged if one is not finite."""
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
        return math.fsum(everyone.ravel()) / everyone.size


def chunk_steps(task: Task) -> int:
    """How many steps' batches are loaded together."""
    one = task.batches(0, 1)
    size = sum(x.nbytes for x in jax.tree.leaves(one))
    most = min(CHUNK_STEPS, max(1, CHUNK_BYTES // max(1, size)))
    return math.ceil(task.steps_per_epoch / math.ceil(task.steps_per_epoch / most))


def _cut(task: Task, start: int, epochs: int) -> list[tuple[int, int]]:
    """Chunks `(first, last)` of steps from `start` on, within epochs."""
    whole, size = task.steps_per_epoch, chunk_steps(task)
    ends = [
        epoch * whole + min(end, whole)
        for epoch in range(epochs)
        for end in range(size, whole + size, size)
    ]
    ends = [end for end in ends if end > start]
    return list(zip([start, *ends[:-1]], ends, strict=True)) if ends else []
