"""Training in steps that all workers take together."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import simulation

from . import trainer
from .checkpoints import Saver
from .report import RunFolder
from .tasks import Task

TIMED_SECONDS = 1.0
"""About how long the steps last that are timed together."""


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
    ) -> trainer.Outcome:
        """See :func:`experiments.lib.trainer.train`.

        The records also have `megabytes`, what a worker has sent so far, on average;
        and the virtual `time`, if there is one.
        """

        def timed(record):
            record["megabytes"] = self.cost.mean_bytes * record["step"] / 1e6
            if self.rounds is not None:
                record["time"] = float(self.rounds.end[record["step"] - 1])
            report(record)

        return trainer.train(
            self.task,
            self.optimizer,
            self.communicator,
            params,
            self.epochs,
            evaluations,
            timed,
            advance,
            saver=self.saver,
            collapse=self.collapse,
        )

    def megabytes(
        self, params: Any, history: Sequence[dict[str, Any]]
    ) -> tuple[float, float]:
        """What a worker sent, on average and at most."""
        del params  # The cost knows them.
        cost, steps = self.cost, history[-1]["step"]
        return cost.mean_bytes * steps / 1e6, cost.max_bytes * steps / 1e6

    def traffic(
        self, params: Any, history: Sequence[dict[str, Any]]
    ) -> dict[str, float]:
        """What a worker sent, on average, and the one that sent most."""
        mean, largest = self.megabytes(params, history)
        steps = history[-1]["step"]
        return {
            "megabytes_mean": mean,
            "megabytes_largest": largest,
            "messages_mean": self.cost.mean_messages * steps,
            "messages_largest": self.cost.max_messages * steps,
        }

    def describe(
        self, params: Any, history: Sequence[dict[str, Any]]
    ) -> list[tuple[str, str]]:
        """Rows of the final table: what steps cost; some are repeated for it."""
        seconds = time_steps(
            self.task,
            (self.optimizer, self.base),
            self.communicator,
            params,
            self._count_timed(history[-1]),
        )
        sent, most = self.megabytes(params, history)
        messages = self.cost.mean_messages * history[-1]["step"]
        rows = [
            ("MB sent per worker, mean (largest)", f"{sent:.5g} ({most:.5g})"),
            ("messages sent per worker", f"{messages:.5g}"),
            *describe_times(seconds),
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
        return min(most, trainer.chunk_steps(self.task))

    def save(self, folder: RunFolder, title: str) -> None:
        """There are no pictures but those of every run."""


def time_steps(
    task: Task,
    optimizers: Sequence[optax.GradientTransformation],
    communicator: djax.Communicator,
    params: Any,
    steps: int,
    repeats: int = 5,
) -> np.ndarray:
    """Seconds of a step with each of several optimizers, measured in turns.

    Args:
      task: what is learned; its first steps are repeated.
      optimizers: what is compared.
      communicator: where the workers live.
      params: of the local workers, with their leading axis.
      steps: how many are timed together.
      repeats: how often each is timed, after once that compiles.

    Returns:
      `float[repeats, optimizers]`, without compilation and loading of data.
    """
    model_state = jax.tree.map(jnp.asarray, task.model_state)
    batches = jax.tree.map(jnp.asarray, task.batches(0, steps))
    programs = [
        trainer.make_steps(task, optimizer, communicator) for optimizer in optimizers
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
    return durations[1:] / steps


def describe_times(seconds: np.ndarray) -> list[tuple[str, str]]:
    """Rows of the final table: the time of a step, and what of it is communication.

    Both kinds of steps are timed in turns, so that each turn gives a difference. Where
    these have both signs, their median says nothing: it is smaller than what changes
    from one turn to the next.

    Args:
      seconds: `float[repeats, 2]` of a step with and without communication.
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
