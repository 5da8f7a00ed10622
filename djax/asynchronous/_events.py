r"""What happens when: virtual clocks of workers that never wait.

Time is counted in units in which a worker of speed 1 computes one gradient. Worker
:math:`i` computes gradients back to back; each takes a random time of mean
:math:`1 / \text{speed}_i`. Each pair of neighbours averages at the times of a Poisson
process of its own, whatever the two are computing. Nothing here depends on the models:
a list of events is drawn first and can be looked at, stored, and run with any
algorithm by :func:`djax.asynchronous.simulate`.
"""

import dataclasses
import math
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from djax.topologies import Topology

from . import _plot
from ._constants import edge_rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOBODY = -1
"""The peer of a gradient."""

_CLOCKS, _MEETINGS = 0, 1  # Streams of random numbers.


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Events:
    """All gradients and averagings of a run, in their order: an immutable value.

    A worker's gradient is computed from its model at the time of its previous gradient,
    or at the start, and applied at the time of the event. At the same time the earlier
    in the list comes first.

    Args:
      size: number of workers.
      time: `float64[events]`, when they happen, ascending.
      worker: `int32[events]`, whose gradient it is, or one end of an averaging.
      peer: `int32[events]`, the other end, or -1 for a gradient.
      duration: when the run ends, not before the last event.

    Raises:
      ValueError: if a time is out of order, or a worker does not exist or averages with
        itself; the message names the event.

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

    def __post_init__(self):
        for name, dtype in (("time", "f8"), ("worker", "i4"), ("peer", "i4")):
            array = np.array(getattr(self, name), dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "duration", float(self.duration))
        _check_events(self)

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def is_gradient(self) -> np.ndarray:
        """`bool[events]`: which are gradients; the others are averagings."""
        return _frozen(self.peer == NOBODY)

    @cached_property
    def gradient_counts(self) -> np.ndarray:
        """`int64[n]`: how many gradients each worker computes."""
        workers = self.worker[self.is_gradient]
        return _frozen(np.bincount(workers, minlength=self.size))

    @cached_property
    def pair_counts(self) -> np.ndarray:
        """`int64[n, n]`, symmetric: how often each pair averages."""
        counts = np.zeros((self.size, self.size), np.int64)
        meets = ~self.is_gradient
        np.add.at(counts, (self.worker[meets], self.peer[meets]), 1)
        return _frozen(counts + counts.T)

    @property
    def averaging_counts(self) -> np.ndarray:
        """`int64[n]`: how many averagings each worker takes part in."""
        return self.pair_counts.sum(1)

    @cached_property
    def staleness(self) -> np.ndarray:
        """`int64[gradients]`: how often the model is averaged behind a gradient's back.

        That is, averagings of the worker between the time whose model the gradient is
        taken at and the time when it is applied.
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
        return _frozen(np.array(result, np.int64))

    @cached_property
    def elapsed(self) -> np.ndarray:
        """`float64[events, 2]`: time since the previous event of `worker` and `peer`.

        Zero for the missing peer of a gradient.
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
        return _frozen(result)

    def last_times(self, time: float) -> np.ndarray:
        """`float64[n]`: when each worker had its last event up to a time, or 0."""
        last = np.zeros(self.size)
        past = slice(np.searchsorted(self.time, time, side="right"))
        meets = ~self.is_gradient[past]
        np.maximum.at(last, self.worker[past], self.time[past])
        np.maximum.at(last, self.peer[past][meets], self.time[past][meets])
        return last

    def plot_pairs(self, ax: "Axes | None" = None) -> "Axes":
        """Draws who averaged with whom as a heat map, and returns its axes."""
        return _plot.plot_pairs(self, ax)

    def plot_timeline(
        self, ax: "Axes | None" = None, until: float | None = None
    ) -> "Axes":
        """Draws each worker's gradients as bars and the averagings as lines.

        Args:
          ax: where to draw; by default new axes.
          until: end of the picture; by default of the run.

        Returns:
          The axes.
        """
        return _plot.plot_timeline(self, ax, self.duration if until is None else until)

    def plot_staleness(self, ax: "Axes | None" = None) -> "Axes":
        """Draws a histogram of the staleness, and returns its axes."""
        return _plot.plot_staleness(self, ax)

    def __repr__(self) -> str:
        gradients = int(self.is_gradient.sum())
        parts = [
            f"{count} {noun}{'' if count == 1 else 's'}"
            for count, noun in (
                (self.size, "worker"),
                (gradients, "gradient"),
                (len(self) - gradients, "averaging"),
            )
        ]
        return (
            f"Events({parts[0]}, {parts[1]} and {parts[2]} in {self.duration:.4g} "
            "units of time)"
        )


class Rounds(NamedTuple):
    """When synchronous workers compute and wait.

    Attributes:
      start: `float64[steps]`, when all of them begin a gradient.
      finish: `float64[steps, n]`, when each has computed it. All wait for the last.
    """

    start: np.ndarray
    finish: np.ndarray

    @property
    def end(self) -> np.ndarray:
        """`float64[steps]`: when the step is made."""
        return self.finish.max(1)

    @property
    def idle_share(self) -> float:
        """Share of the workers' time that they spend waiting."""
        return float(
            1
            - np.sum(self.finish - self.start[:, None])
            / (self.finish.shape[1] * self.end[-1])
        )

    def plot_timeline(
        self, ax: "Axes | None" = None, until: float | None = None
    ) -> "Axes":
        """Draws each worker's gradients as bars, as of :class:`Events`."""
        end = float(self.end[-1])
        return _plot.plot_rounds(self, ax, end if until is None else until)


def draw_events(
    topology: Topology,
    rate: ArrayLike = 1.0,
    *,
    gradients: int | None = None,
    duration: float | None = None,
    speeds: ArrayLike = 1.0,
    variation: float = 1.0,
    seed: int = 0,
) -> Events:
    r"""Draws when workers compute and average.

    Args:
      topology: who talks to whom. Its mixing weights play no role.
      rate: averagings of a worker per unit of time, or `float[n, n]` of each pair, as
        in :func:`djax.asynchronous.edge_rates`. Below 1 it is local SGD, at random; at
        0 nobody averages.
      gradients: end when the workers have computed so many in all: fast workers compute
        more of them.
      duration: end at this time. One of the two is needed.
      speeds: gradients of each worker per unit of time, `float[n]` or one for all;
        0 computes none.
      variation: standard deviation of the time that a gradient takes, in units of its
        mean. 1: exponentially distributed, so that gradients are a Poisson process, as
        in the paper's analysis; 0: constant; else of a gamma distribution.
      seed: a worker takes the same times for its gradients whatever the topology, the
        rate and the end are.

    Returns:
      The events. The run ends with the last gradient, or at `duration`.

    Raises:
      ValueError: if an argument is out of range, or nothing or both say when to end.

    Examples:
      >>> import djax
      >>> ring = djax.topologies.ring(64)
      >>> events = djax.asynchronous.draw_events(ring, gradients=64 * 100)
      >>> counts = events.averaging_counts / events.duration  # about rate
      >>> print(events.gradient_counts.sum(), counts.mean().round(1))
      6400 1.0
    """
    size = topology.size
    rates = edge_rates(topology, rate)
    speeds = check_speeds("draw_events", speeds, size)
    check_variation("draw_events", variation)
    if (gradients is None) == (duration is None):
        raise ValueError(
            "draw_events: give either the number of gradients or the duration."
        )
    if gradients is not None:
        duration = _time_of(gradients, speeds, variation, seed)
    if not 0 < duration < math.inf:
        raise ValueError(f"draw_events: duration must be positive, got {duration}.")
    finish = [
        _finish_times(i, speed, duration, variation, seed)
        for i, speed in enumerate(speeds)
    ]
    rng = np.random.default_rng((seed, _MEETINGS))
    i, j = np.nonzero(np.triu(rates))
    which = np.repeat(np.arange(len(i)), rng.poisson(rates[i, j] * duration))
    time = np.concatenate([*finish, rng.uniform(0, duration, len(which))])
    worker = np.concatenate([np.repeat(np.arange(size), [*map(len, finish)]), i[which]])
    peer = np.concatenate([np.full(len(worker) - len(which), NOBODY), j[which]])
    order = np.argsort(time, kind="stable")
    if gradients is not None:  # At the last one's time there may be more.
        order = order[np.cumsum(peer[order] == NOBODY) <= gradients]
    return Events(size, time[order], worker[order], peer[order], duration)


def draw_rounds(
    size: int,
    steps: int,
    *,
    speeds: ArrayLike = 1.0,
    variation: float = 1.0,
    seed: int = 0,
) -> Rounds:
    """Draws when workers compute that wait for each other, as in all-reduce SGD.

    Everyone begins a gradient when the slowest has finished the one before; the
    all-reduce itself takes no time. The times of each worker's gradients are those of
    :func:`draw_events` with the same seed, so that both can be compared.

    Args:
      size: number of workers.
      steps: gradients of each.
      speeds: as in :func:`draw_events`, but positive.
      variation: as in :func:`draw_events`.
      seed: as in :func:`draw_events`.

    Returns:
      The rounds.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> import djax
      >>> draw_rounds, speeds = djax.asynchronous.draw_rounds, [1, 1, 1, 0.25]
      >>> rounds = draw_rounds(4, 10, speeds=speeds, variation=0)
      >>> rounds.end[-1].item(), round(rounds.idle_share, 4)
      (40.0, 0.5625)
    """
    speeds = check_speeds("draw_rounds", speeds, size)
    check_variation("draw_rounds", variation)
    if steps < 1 or not (speeds > 0).all():
        raise ValueError(
            "draw_rounds: all wait for the slowest, so that steps and speeds must be "
            f"positive; got {steps} steps and speeds down to {speeds.min()}."
        )
    durations = np.stack(
        [_durations(i, steps, s, variation, seed) for i, s in enumerate(speeds)], 1
    )
    end = np.cumsum(durations.max(1))
    start = np.concatenate([[0.0], end[:-1]])
    return Rounds(start, start[:, None] + durations)


def check_speeds(name: str, speeds: ArrayLike, size: int) -> np.ndarray:
    """Returns `float64[n]`, or raises ValueError."""
    given = np.asarray(speeds, np.float64)
    if given.ndim > 1 or given.size not in (1, size):
        raise ValueError(
            f"{name}: speeds must be one number or one for each of the {size} workers, "
            f"got shape {given.shape}."
        )
    if not ((given >= 0) & (given < np.inf)).all():
        raise ValueError(f"{name}: speeds must be finite and at least 0, got {speeds}.")
    return np.broadcast_to(given, size)


def check_variation(name: str, variation: float) -> None:
    """Raises ValueError unless it is a coefficient of variation."""
    if not 0 <= variation < math.inf:
        raise ValueError(
            f"{name}: variation must be finite and at least 0, got {variation}."
        )


def _durations(
    worker: int, count: int, speed: float, variation: float, seed: int
) -> np.ndarray:
    """Of a worker's first gradients: with a larger count, the same ones and more."""
    if variation == 0:
        return np.full(count, 1 / speed)
    rng = np.random.default_rng((seed, _CLOCKS, worker))
    shape = variation**-2
    return rng.standard_gamma(shape, count) / (shape * speed)


def _finish_times(
    worker: int, speed: float, until: float, variation: float, seed: int
) -> np.ndarray:
    """When a worker's gradients are ready, up to a time."""
    if speed == 0:
        return np.zeros(0)
    count = 1 + math.ceil(until * speed)
    while True:
        finish = np.cumsum(_durations(worker, count, speed, variation, seed))
        if finish[-1] > until:
            return finish[: np.searchsorted(finish, until, side="right")]
        count *= 2


def _time_of(gradients: int, speeds: np.ndarray, variation: float, seed: int) -> float:
    """When all workers together have computed so many gradients."""
    if gradients < 1 or not speeds.any():
        raise ValueError(
            f"draw_events: cannot wait for {gradients} gradients at speeds up to "
            f"{speeds.max()}; give a duration, or make both positive."
        )
    until = gradients / speeds.sum()
    while True:
        finish = np.concatenate(
            [_finish_times(i, s, until, variation, seed) for i, s in enumerate(speeds)]
        )
        if len(finish) >= gradients:
            return float(np.partition(finish, gradients - 1)[gradients - 1])
        until *= 1.1


def _check_events(events: Events) -> None:
    count = len(events.time)
    if events.worker.shape != (count,) or events.peer.shape != (count,):
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


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
