"""Shares code between asynchronous trainings on virtual clocks and in real time."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

import djax
from djax import asynchronous

from .report import RunFolder
from .tasks import Task
from .trainer import Outcome, Record, Rows


@dataclasses.dataclass
class EventJob:
    """The base class of asynchronous trainings, whose workers make events.

    A subclass that adds `train` is a :class:`experiments.lib.trainer.Job`.

    Attributes:
      params: initial parameters, with a leading axis of local workers.
    """

    task: Task
    algorithm: asynchronous.EventTransformation
    communicator: djax.Communicator
    params: Any
    outcome: Outcome = dataclasses.field(init=False, default_factory=Outcome)

    @property
    def events(self) -> asynchronous.Events:
        """The gradients and averagings of all workers."""
        raise NotImplementedError

    def measure(
        self,
        time: float,
        losses: np.ndarray,
        assessed: Record,
        seconds: float,
        before: int = 0,
    ) -> Record:
        """Adds a record to the history, and returns it.

        Args:
          losses: `float[gradients]`, losses of all gradients up to that time.
          before: number of gradients of all workers that `losses` does not have, since
            an earlier part of the run computed them.
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
        self.outcome.history.append(record)
        return record

    def _megabytes(self, until: float = math.inf) -> np.ndarray:
        """Returns the megabytes that each worker sent until then, `float[workers]`."""
        events = self.events
        model_bytes = sum(x.nbytes // len(x) for x in jax.tree.leaves(self.params))
        met = ~events.is_gradient & (events.time <= until)
        pairs = np.concatenate([events.worker[met], events.peer[met]])
        return np.bincount(pairs, minlength=events.size) * (model_bytes / 1e6)

    def traffic(self) -> dict[str, float]:
        """See :class:`experiments.lib.trainer.Job`."""
        sent, averagings = self._megabytes(), self.events.averaging_counts
        return {
            "megabytes_mean": float(sent.mean()),
            "megabytes_largest": float(sent.max()),
            "averagings_mean": float(averagings.mean()),
            "averagings_largest": float(averagings.max()),
        }

    def describe(self) -> Rows:
        """Returns rows of the final table about events, and about stale gradients."""
        counts, staleness = self.events.gradient_counts, self.events.staleness
        sent = self._megabytes()
        return [
            (
                "gradients of a worker, mean (fewest, most)",
                f"{counts.mean():.5g} ({counts.min()}, {counts.max()})",
            ),
            (
                "MB sent per worker, mean (largest)",
                f"{sent.mean():.5g} ({sent.max():.5g})",
            ),
            (
                "averagings during a gradient, mean (most)",
                f"{staleness.mean():.3g} ({staleness.max(initial=0)})",
            ),
        ]

    def save(self, folder: RunFolder, title: str) -> None:
        """Draws pairs of workers, a timeline of about ten gradients, and staleness."""
        if not folder.active:
            return
        from matplotlib.figure import Figure  # Slow to import.

        events = self.events
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
