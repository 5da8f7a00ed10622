"""The training loop: one chunk of steps an epoch, and what is measured in between."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import metrics, simulation

from .errors import UsageError
from .report import RunFolder
from .tasks import Task


class Diverged(UsageError):
    """The loss is no longer finite."""


class Outcome(NamedTuple):
    """What a training leaves behind.

    Attributes:
      workers: the local workers.
      history: one record an evaluation, the last at the end: `epoch`, `step`, `loss`
        (mean training loss of the epoch), `mean`, `worst` and `averaged` (the task's
        score of the workers and of the averaged model), `mean_loss` and
        `averaged_loss` of the same, `consensus_distance`, `seconds` since the start.
    """

    workers: simulation.Workers
    history: list[dict[str, Any]]


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    communicator: djax.Communicator,
    params: Any,
    epochs: int,
    evaluations: int,
    report: Callable[[dict[str, Any]], None],
    advance: Callable[[float], object],
) -> Outcome:
    """Trains the local workers.

    Args:
      task: what is learned.
      optimizer: the chain with the mechanism.
      communicator: where the workers live.
      params: of the local workers, with their leading axis.
      epochs: passes over the data.
      evaluations: how many, spread evenly; the last is at the end.
      report: called with each record of the history.
      advance: called after each epoch, with 1.

    Raises:
      Diverged: on every process alike, if the loss of a worker is not finite.
    """
    workers = simulation.init_workers(
        optimizer, communicator, params, jax.tree.map(jnp.asarray, task.model_state)
    )
    steps = _make_steps(task.gradient_fn, optimizer, communicator, task.dispatch)
    assess = make_assess(task, communicator)
    due = {round((i + 1) * epochs / evaluations) for i in range(evaluations)}
    history, start = [], time.perf_counter()
    for epoch in range(1, epochs + 1):
        workers, measured = steps(workers, task.batches(epoch))
        losses = np.asarray(measured["loss"])
        loss = _mean_loss(communicator, losses, epoch, task.steps_per_epoch)
        advance(1)
        if epoch in due:
            record = {
                "epoch": epoch,
                "step": epoch * task.steps_per_epoch,
                "loss": loss,
                **assess(workers.params),
                "seconds": time.perf_counter() - start,
            }
            history.append(record)
            report(record)
    return Outcome(workers, history)


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
    """

    task: Task
    optimizer: optax.GradientTransformation
    base: optax.GradientTransformation
    communicator: djax.Communicator
    epochs: int
    cost: djax.CommunicationCost
    rounds: djax.asynchronous.Rounds | None

    @property
    def ranks(self) -> range:
        """The workers that come to the end."""
        return range(self.communicator.size)

    def train(self, params: Any, evaluations: int, report, advance) -> "Outcome":
        """See :func:`train`; the records have the virtual time, if there is one."""

        def timed(record):
            if self.rounds is not None:
                record["time"] = float(self.rounds.end[record["step"] - 1])
            report(record)

        return train(
            self.task,
            self.optimizer,
            self.communicator,
            params,
            self.epochs,
            evaluations,
            timed,
            advance,
        )

    def describe(self, params: Any) -> list[tuple[str, str]]:
        """Rows of the final table: what steps cost; some are repeated for it."""
        total, gradient = time_steps(
            self.task, (self.optimizer, self.base), self.communicator, params
        )
        cost, steps = self.cost, self.epochs * self.task.steps_per_epoch
        sent, most = (cost.mean_bytes * steps / 1e6, cost.max_bytes * steps / 1e6)
        rows = [
            ("MB sent per worker, mean (largest)", f"{sent:.5g} ({most:.5g})"),
            ("messages sent per worker", f"{cost.mean_messages * steps:.5g}"),
            ("time per step", f"{total * 1e3:.3g} ms"),
            ("  of it gradient and base optimizer", f"{gradient * 1e3:.3g} ms"),
            ("  of it communication", f"{max(0.0, total - gradient) * 1e3:.3g} ms"),
        ]
        if self.rounds is not None:
            rows += [
                ("virtual time", f"{self.rounds.end[-1]:.5g}"),
                ("idle share of the workers' time", f"{self.rounds.idle_share:.1%}"),
            ]
        return rows

    def save(self, folder: RunFolder, title: str) -> None:
        """There are no pictures but those of every run."""


def time_steps(
    task: Task,
    optimizers: Sequence[optax.GradientTransformation],
    communicator: djax.Communicator,
    params: Any,
    repeats: int = 5,
) -> list[float]:
    """Seconds of a step with each of several optimizers, measured in turns.

    Args:
      task: what is learned; its first epoch is repeated.
      optimizers: what is compared.
      communicator: where the workers live.
      params: of the local workers, with their leading axis.
      repeats: how often each is timed, after once that compiles.

    Returns:
      The shortest time of each, without compilation and loading of data.
    """
    model_state = jax.tree.map(jnp.asarray, task.model_state)
    batches = jax.tree.map(jnp.asarray, task.batches(1))
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
    return list(durations[1:].min(0) / task.steps_per_epoch)


@functools.lru_cache(maxsize=1)
def _make_steps(gradient_fn, optimizer, communicator, dispatch):
    """Kept, so that what was trained is timed without compiling it again."""
    return simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )


def make_assess(
    task: Task, communicator: djax.Communicator
) -> Callable[[Any], dict[str, float]]:
    """Makes what evaluates the local workers' models: `params -> ` part of a record.

    Args:
      task: what is learned.
      communicator: where the workers live.
    """
    program = jax.jit(communicator.spmd(lambda p: _assess(task, communicator, p)))
    return lambda params: _summarize(task, communicator, program(params))


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


def _assess(task: Task, communicator: djax.Communicator, params: Any) -> dict:
    """One worker's model, and the averaged one."""
    averaged = metrics.mean_params(params, communicator)
    return {
        "own": task.evaluate(params),
        "averaged": task.evaluate(averaged),
        "consensus_distance": metrics.consensus_distance(params, communicator),
    }


def _summarize(task: Task, communicator: djax.Communicator, assessed: dict) -> dict:
    """Puts the local workers' arrays `[local]` together with those of all others."""
    local = jax.tree.map(np.asarray, assessed)
    everyone = communicator.gather(
        [
            jax.tree.map(lambda x, i=i: float(x[i]), local)
            for i in range(len(communicator.local_ranks))
        ]
    )
    scores = [worker["own"][task.score] for worker in everyone]
    return {
        "mean": statistics.fmean(scores),
        "worst": min(scores) if task.higher_is_better else max(scores),
        "averaged": everyone[0]["averaged"][task.score],
        "mean_loss": statistics.fmean(worker["own"]["loss"] for worker in everyone),
        "averaged_loss": everyone[0]["averaged"]["loss"],
        "consensus_distance": everyone[0]["consensus_distance"],
    }


def _mean_loss(communicator, losses, epoch, steps_per_epoch) -> float:
    """Mean training loss of all workers; raises if one is not finite."""
    everyone = np.asarray(communicator.gather(list(losses)), np.float64)
    for t, losses in enumerate(everyone.T):
        step = (epoch - 1) * steps_per_epoch + t + 1
        check_losses(losses, np.arange(len(losses)), f"in epoch {epoch} (step {step})")
    return math.fsum(everyone.ravel()) / everyone.size
