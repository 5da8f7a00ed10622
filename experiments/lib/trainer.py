"""The training loop: chunks of steps, and what is measured in between."""

import contextlib
import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import simulation

from .checkpoints import INTERRUPTED, Saver, Termination
from .data import Prefetch
from .divergence import Diverged as Diverged
from .divergence import Watch, check_losses
from .evaluation import make_assess
from .tasks import Task

CHUNK_BYTES, CHUNK_STEPS = 64 * 2**20, 500
"""Batches that are loaded together have at most so many bytes, and steps."""


class Stopped(Exception):
    """The run was told to end, and what it has is saved where the message says so.

    Args:
      message: why, and how to go on.
      code: with which the process ends.
    """

    def __init__(self, message: str, code: int = 0):
        """Nothing more."""
        super().__init__(message)
        self.code = code


class Outcome(NamedTuple):
    """What a training leaves behind.

    Attributes:
      workers: the local workers.
      history: one record an evaluation, the last at the end: `epoch`, `step`, `loss`
        (mean training loss of the epoch), what
        :func:`experiments.lib.evaluation.make_assess` measures, `seconds` since the
        start; and `collapsed`, if the training was ended for that.
      unsaved: why checkpoints could not be written, on any process.
    """

    workers: simulation.Workers
    history: list[dict[str, Any]]
    unsaved: Sequence[str] = ()


@dataclasses.dataclass
class Position:
    """How far a training is; what a checkpoint has of it besides the workers.

    Attributes:
      step: steps that are done.
      seconds: what they took.
      losses: of the present epoch, a list `[local][steps]` for each chunk.
      history: the records so far.
      watch: sees the losses of all epochs.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[list[list[float]]] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    watch: Watch = dataclasses.field(default_factory=Watch)

    def take(self, step: int, losses: jax.Array, seconds: float) -> None:
        """Steps are done, up to `step`, with losses `[local, steps]`."""
        self.step, self.seconds = step, seconds
        self.losses.append(np.asarray(losses).tolist())

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
        self.watch.take(before, everyone.mean(0))
        return math.fsum(everyone.ravel()) / everyone.size


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    communicator: djax.Communicator,
    params: Any,
    epochs: int,
    evaluations: int,
    report: Callable[[dict[str, Any]], None],
    advance: Callable[[float], object],
    *,
    saver: Saver | None = None,
    collapse: tuple[float, float] | None = None,
) -> Outcome:
    """Trains the local workers, from where the saver has them.

    Args:
      task: what is learned.
      optimizer: the chain with the mechanism.
      communicator: where the workers live.
      params: the first models, with a leading axis of local workers.
      epochs: passes over the data.
      evaluations: how many, spread evenly; the last is at the end.
      report: called with each record of the history.
      advance: called with the epochs since the last call.
      saver: of checkpoints, if any.
      collapse: an epoch, and the score that the best worker has to have by then for the
        training to go on.

    Raises:
      Diverged: on every process alike, if the loss of a worker is not finite, or if
        it was far above its start and has not come back by the end.
      Stopped: on every process alike, after SIGTERM or Ctrl-C, if there is a saver.
      CheckpointError: likewise, if the saver's checkpoint is of other workers.
    """
    workers = simulation.init_workers(
        optimizer, communicator, params, jax.tree.map(jnp.asarray, task.model_state)
    )
    position = Position()
    if saver is not None and saver.latest is not None:
        workers, saved = saver.restore(workers)
        watch = Watch(**saved.pop("watch", {}))  # Older checkpoints have none.
        position = Position(**saved, watch=watch)
        for record in position.history:
            report(record)
        advance(position.step / task.steps_per_epoch)
    position.watch.steps = epochs * task.steps_per_epoch
    steps = make_steps(task, optimizer, communicator)
    assess = make_assess(task, communicator)
    due = {round((i + 1) * epochs / evaluations) for i in range(evaluations)}
    chunks = _cut(task, position.step, epochs)
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
                _explain(error, position, communicator, task, last)
            position.take(last, measured["loss"], time.perf_counter() - began)
            advance((last - first) / task.steps_per_epoch)
            if last % task.steps_per_epoch == 0:
                epoch = last // task.steps_per_epoch
                loss = position.finish_epoch(communicator, epoch)
                if epoch in due:
                    record = {"epoch": epoch, "step": last, "loss": loss}
                    record |= assess(workers.params, workers.model_state)
                    record["seconds"] = time.perf_counter() - began
                    if collapse and _collapsed(task, record, *collapse):
                        record["collapsed"] = True
                    position.history.append(record)
                    report(record)
                    if "collapsed" in record:
                        break
            if saver is not None:
                _save(
                    saver, communicator, workers, position, termination, chunks[-1][1]
                )
        if saver is not None:
            saver.finish()
    if not any("collapsed" in record for record in position.history):
        position.watch.check()
    failures = saver.failures if saver is not None else ()
    return Outcome(workers, position.history, failures)


def _explain(error, position, communicator, task, last) -> NoReturn:
    """Raises Diverged, on every process alike; names the loss if that is not finite."""
    epoch = math.ceil(last / task.steps_per_epoch)
    position.take(last, error.metrics["loss"], position.seconds)
    position.finish_epoch(communicator, epoch)
    raise Diverged(
        f"training diverged: the gradient or model of worker {error.ranks[0]} is not "
        f"finite in epoch {epoch}."
    ) from error


def _collapsed(task: Task, record: dict[str, Any], epoch: float, least: float) -> bool:
    """Whether no worker has the least score by that epoch."""
    sign = 1 if task.higher_is_better else -1
    best = max(sign * score for score in record["scores"])
    return record["epoch"] >= epoch and not best >= sign * least


def _save(saver, communicator, workers, position, termination, end) -> None:
    """Saves if any process has to; raises Stopped if any was told to end."""
    local = len(communicator.local_ranks)
    own = saver.due, termination.requested and termination.number, saver.held
    everyone = communicator.gather([own] * local)
    saver.settle([held for _, _, held in everyone])
    told = [number for _, number, _ in everyone if number]
    if told or (position.step < end and any(due for due, _, _ in everyone)):
        saver.save(position.step, workers, dataclasses.asdict(position))
    if told:
        saver.finish()
        raise _stopped(saver, position.step, told[0])


def _stopped(saver: Saver, step: int, number: int) -> Stopped:
    """What is said of a run that a signal ends."""
    how, code = describe_signal(number)
    rest = f"start the same with --checkpoints {saver.folder} --resume"
    if saver.failures:
        return Stopped(
            f"stopped by {how} after step {step}, but not all checkpoints could be "
            f"saved: {saver.failures[-1]}; to go on from the last one, {rest}",
            code or 1,
        )
    return Stopped(f"stopped by {how} after step {step}; to go on, {rest}", code)


def describe_signal(number: int) -> tuple[str, int]:
    """What a signal is called, and with which code a run ends that is saved."""
    if number == signal.SIGINT:
        return "Ctrl-C", INTERRUPTED
    return signal.Signals(number).name, 0


def make_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    communicator: djax.Communicator,
) -> simulation.StepsFn:
    """Makes what trains; the last one is kept, and need not be compiled again.

    Args:
      task: what is learned.
      optimizer: the chain with the mechanism.
      communicator: where the workers live.
    """
    return _make_steps(task.gradient_fn, optimizer, communicator, task.dispatch)


@functools.lru_cache(maxsize=1)
def _make_steps(gradient_fn, optimizer, communicator, dispatch):
    return simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )


def chunk_steps(task: Task) -> int:
    """How many steps' batches are loaded together."""
    one = task.batches(0, 1)
    size = sum(x.nbytes for x in jax.tree.leaves(one))
    most, whole = (
        min(CHUNK_STEPS, max(1, CHUNK_BYTES // max(1, size))),
        task.steps_per_epoch,
    )
    fewest = math.ceil(whole / most)
    # Chunks of two sizes are compiled twice: rather up to twice as many of one size.
    for count in range(fewest, 2 * fewest + 1):
        if whole % count == 0:
            return whole // count
    return math.ceil(whole / fewest)


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
