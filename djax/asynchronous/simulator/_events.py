"""The events of an asynchronous run: when each gradient and averaging happens."""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from djax._values import counted, is_whole, read_only

from .._plot import (
    draw_averagings,
    draw_bars,
    draw_staleness,
    finish_timeline,
    make_axes,
)
from ..algorithms import Asked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOBODY = -1
"""The `peer` of an event that is a gradient."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Events:
    """All gradients and averagings of a run, in order of time, as an immutable value.

    A gradient is computed from the worker's model at the time of its previous gradient,
    or at the start, and is applied at the time of the event. Events at the same time
    happen in the order of the list.

    Args:
      size: number of workers.
      time: `float64[events]`, the times of the events, ascending.
      worker: `int32[events]`, the worker of a gradient, or one end of an averaging.
      peer: `int32[events]`, the other end of an averaging, or -1 for a gradient.
      duration: the end of the run, not before the last event.
      asked: the rates of averagings for which the events were drawn; None if they were
        not drawn.

    Raises:
      ValueError: if a time is out of order, a worker does not exist, or a worker
        averages with itself; the message names the event.

    Examples:
      >>> from djax import asynchronous
      >>> events = asynchronous.Events(3, [0.5, 0.7, 1.1], [0, 0, 0], [-1, 2, -1], 2.0)
      >>> events
      Events(3 workers, 2 gradients and 1 averaging in 2 units of time)
      >>> events.gradient_counts.tolist(), events.averaging_counts.tolist()
      ([2, 0, 0], [1, 0, 1])
      >>> events.staleness.tolist()  # One averaging during worker 0's second gradient.
      [0, 1]
    """

    size: int
    time: np.ndarray
    worker: np.ndarray
    peer: np.ndarray
    duration: float
    asked: Asked | None = None

    def __post_init__(self):
        for name, dtype in (("time", "f8"), ("worker", "i4"), ("peer", "i4")):
            array = read_only(np.array(getattr(self, name), dtype))
            object.__setattr__(self, name, array)
        object.__setattr__(self, "duration", float(self.duration))
        _check_events(self)

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def is_gradient(self) -> np.ndarray:
        """`bool[events]`: which events are gradients; the others are averagings."""
        return read_only(self.peer == NOBODY)

    @cached_property
    def gradient_counts(self) -> np.ndarray:
        """`int64[n]`: number of gradients of each worker."""
        workers = self.worker[self.is_gradient]
        return read_only(np.bincount(workers, minlength=self.size))

    @cached_property
    def pair_counts(self) -> np.ndarray:
        """`int64[n, n]`, symmetric: number of averagings of each pair."""
        counts = np.zeros((self.size, self.size), np.int64)
        meets = ~self.is_gradient
        np.add.at(counts, (self.worker[meets], self.peer[meets]), 1)
        return read_only(counts + counts.T)

    @property
    def averaging_counts(self) -> np.ndarray:
        """`int64[n]`: number of averagings in which each worker takes part."""
        return self.pair_counts.sum(1)

    @cached_property
    def staleness(self) -> np.ndarray:
        """`int64[gradients]`: number of averagings during each gradient.

        Counted are the averagings of the worker between the start of a gradient, with
        whose model it is computed, and the time when the gradient is applied.
        """
        since = np.zeros(self.size, np.int64)
        result = []
        for i, j in zip(self.worker.tolist(), self.peer.tolist(), strict=True):
            if j == NOBODY:
                result.append(since[i])
                since[i] = 0
            else:
                since[i] += 1
                since[j] += 1
        return read_only(np.array(result, np.int64))

    @cached_property
    def elapsed(self) -> np.ndarray:
        """`float64[events, 2]`: time since the previous event of `worker` and `peer`.

        The entry is zero for the missing peer of a gradient.
        """
        last = np.zeros(self.size)
        result = np.zeros((len(self), 2))
        rows = zip(
            self.time.tolist(), self.worker.tolist(), self.peer.tolist(), strict=True
        )
        for e, (t, i, j) in enumerate(rows):
            result[e, 0], last[i] = t - last[i], t
            if j != NOBODY:
                result[e, 1], last[j] = t - last[j], t
        return read_only(result)

    def last_times(self, time: float) -> np.ndarray:
        """Returns `float64[n]`: each worker's last event time up to `time`, or 0."""
        last = np.zeros(self.size)
        past = slice(np.searchsorted(self.time, time, side="right"))
        meets = ~self.is_gradient[past]
        np.maximum.at(last, self.worker[past], self.time[past])
        np.maximum.at(last, self.peer[past][meets], self.time[past][meets])
        return last

    def plot_pairs(self, ax: "Axes | None" = None) -> "Axes":
        """Draws how often each pair averages, as a heat map; returns its axes."""
        ax = make_axes(ax)
        image = ax.imshow(self.pair_counts, cmap="viridis", interpolation="nearest")
        ax.figure.colorbar(image, ax=ax, label="averagings")
        ax.set(xlabel="worker", ylabel="worker")
        return ax

    def plot_timeline(
        self, ax: "Axes | None" = None, until: float | None = None
    ) -> "Axes":
        """Draws each worker's gradients as bars and the averagings as lines.

        After its last gradient a worker is drawn as computing the next one, unless
        there are no gradients at all.

        Args:
          ax: where to draw; by default new axes.
          until: end of the picture; by default the end of the run.

        Returns:
          The axes.
        """
        ax, gradients = make_axes(ax), self.is_gradient
        until = self.duration if until is None else until
        for i in range(self.size) if gradients.any() else ():
            finish = self.time[gradients & (self.worker == i)]
            start = np.append(0.0, finish)  # The last gradient is not finished.
            draw_bars(ax, i, start, np.append(finish, self.duration), until)
        seen = ~gradients & (self.time <= until)
        draw_averagings(ax, self.time[seen], self.worker[seen], self.peer[seen])
        return finish_timeline(ax, self.size, until)

    def plot_staleness(self, ax: "Axes | None" = None) -> "Axes":
        """Draws a histogram of the staleness, and returns its axes."""
        ax = make_axes(ax)
        draw_staleness(ax, self.staleness)
        return ax

    def __repr__(self) -> str:
        gradients = int(self.is_gradient.sum())
        return (
            f"Events({counted(self.size, 'worker')}, {counted(gradients, 'gradient')} "
            f"and {counted(len(self) - gradients, 'averaging')} in "
            f"{self.duration:.4g} units of time)"
        )


def _check_events(events: Events) -> None:
    count = events.time.size
    if not is_whole(events.size) or events.size < 1:
        raise ValueError(
            f"Events: size must be a number of workers, got {events.size!r}."
        )
    if not 0 <= events.duration < np.inf:
        raise ValueError(f"Events: the run cannot end at {events.duration}.")
    if any(x.shape != (count,) for x in (events.time, events.worker, events.peer)):
        raise ValueError(
            "Events: time, worker and peer need one entry an event, got shapes "
            f"{events.time.shape}, {events.worker.shape} and {events.peer.shape}."
        )
    workers = range(events.size)
    mistakes = {
        "is before its predecessor, or before 0": np.diff(events.time, prepend=0) < 0,
        "is after the end": ~(events.time <= events.duration),
        f"has a worker that is not in {workers}": ~np.isin(events.worker, workers),
        f"has a peer that is neither -1 nor in {workers}": ~np.isin(
            events.peer, [NOBODY, *workers]
        ),
        "has a worker that averages with itself": events.worker == events.peer,
    }
    for mistake, where in mistakes.items():
        if where.any():
            e = int(where.argmax())
            raise ValueError(
                f"Events: number {e} (time {events.time[e]}, worker "
                f"{events.worker[e]}, peer {events.peer[e]}) {mistake}."
            )
