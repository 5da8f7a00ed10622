r"""Virtual clocks: when workers compute and average.

Time is counted in units in which a worker of speed 1 computes one gradient. Worker
:math:`i` computes gradients back to back; each takes a random time of mean
:math:`1 / \text{speed}_i`. Each pair of neighbours averages at the times of a Poisson
process of its own, whatever the two are computing. Nothing here depends on the models:
a list of events is drawn first and can be looked at, stored, and run with any
algorithm by :func:`djax.asynchronous.simulate`.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from djax.asynchronous._numbers import is_number, is_whole
from djax.asynchronous.algorithms._constants import Asked
from djax.topologies import Topology
from djax.topologies.checks import check_undirected

from . import _plot
from ._events import NOBODY, Events

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Streams of random numbers. Nobody else's: NumPy takes (seed, 0) for (seed,), so that
# small numbers would be epochs of data, too.
_CLOCKS, _MEETINGS = 0x6772616469656E74, 0x617665726167696E

# Of the coefficient of variation. Of a gamma distribution of a larger one nearly all
# times are next to zero, and their mean is that of a few huge ones that nobody draws:
# at 10 the median is 1e-28 of the mean.
_MOST_VARIATION = 10.0
# Smaller ones are lost in rounding.
_LEAST_VARIATION = 1e-6
# Events of one list; more would not fit into memory.
_MOST_EVENTS = 10**8


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
        until = end if until is None else until
        return _plot.plot_rounds(self.start, self.finish, self.end, ax, until)


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
        in the paper's analysis; 0: constant; else of a gamma distribution. At most
        10, where one gradient in a hundred takes three quarters of all the time.
      seed: a worker takes the same times for its gradients whatever the topology, the
        rate and the end are.

    Returns:
      The events. The run ends with the last gradient, or at `duration`.

    Raises:
      TypeError: if `topology` is none, for example a Schedule, or an argument is no
        number.
      ValueError: if an argument is out of range, nothing or both say when to end, or
        there would be more than 100 million events.

    Examples:
      >>> import djax
      >>> ring = djax.topologies.ring(64)
      >>> events = djax.asynchronous.draw_events(ring, gradients=64 * 100)
      >>> counts = events.averaging_counts / events.duration  # about rate
      >>> print(events.gradient_counts.sum(), counts.mean().round(1))
      6400 1.0
    """
    check_undirected("draw_events", topology)
    size = topology.size
    asked = Asked(topology, rate)
    rates = asked.rates
    speeds = check_speeds("draw_events", speeds, size)
    check_variation("draw_events", variation)
    check_seed("draw_events", seed)
    if (gradients is None) == (duration is None):
        raise ValueError(
            "draw_events: give either the number of gradients or the duration."
        )
    expected = _expected_time(gradients, duration, speeds)
    count = expected * (speeds.sum() + rates.sum() / 2)
    if not count <= _MOST_EVENTS:
        raise ValueError(
            f"draw_events: about {count:.3g} events are asked for, more than "
            f"{_MOST_EVENTS:.0e}; lower the rate, the speeds, or what ends the run."
        )
    if gradients is not None:
        end = _time_of(gradients, expected, speeds, variation, seed)
    else:
        end = expected
    finish = [
        _finish_times(i, speed, end, variation, seed) for i, speed in enumerate(speeds)
    ]
    rng = np.random.default_rng((seed, _MEETINGS))
    i, j = np.nonzero(np.triu(rates))
    which = np.repeat(np.arange(len(i)), rng.poisson(rates[i, j] * end))
    time = np.concatenate([*finish, rng.uniform(0, end, len(which))])
    worker = np.concatenate([np.repeat(np.arange(size), [*map(len, finish)]), i[which]])
    peer = np.concatenate([np.full(len(worker) - len(which), NOBODY), j[which]])
    order = np.argsort(time, kind="stable")
    if gradients is not None:  # At the last one's time there may be more.
        order = order[np.cumsum(peer[order] == NOBODY) <= gradients]
    return Events(size, time[order], worker[order], peer[order], end, asked)


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
      TypeError: if an argument is no number.
      ValueError: if an argument is out of range, or there would be more than 100
        million gradients.

    Examples:
      >>> import djax
      >>> draw_rounds, speeds = djax.asynchronous.draw_rounds, [1, 1, 1, 0.25]
      >>> rounds = draw_rounds(4, 10, speeds=speeds, variation=0)
      >>> rounds.end[-1].item(), round(rounds.idle_share, 4)
      (40.0, 0.5625)
    """
    if not is_whole(size) or size < 1:
        raise ValueError(
            f"draw_rounds: size must be a number of workers, got {size!r}."
        )
    if not is_whole(steps):
        raise TypeError(f"draw_rounds: steps must be a whole number, got {steps!r}.")
    speeds = check_speeds("draw_rounds", speeds, size)
    check_variation("draw_rounds", variation)
    check_seed("draw_rounds", seed)
    if steps < 1 or not (speeds > 0).all():
        raise ValueError(
            "draw_rounds: all wait for the slowest, so that steps and speeds must be "
            f"positive; got {steps} steps and speeds down to {speeds.min()}."
        )
    if size * steps > _MOST_EVENTS:
        raise ValueError(
            f"draw_rounds: {size * steps:.3g} gradients are asked for, more than "
            f"{_MOST_EVENTS:.0e}; lower the steps."
        )
    durations = np.stack(
        [_durations(i, steps, s, variation, seed) for i, s in enumerate(speeds)], 1
    )
    end = np.cumsum(durations.max(1))
    start = np.concatenate([[0.0], end[:-1]])
    return Rounds(start, start[:, None] + durations)


def check_speeds(name: str, speeds: ArrayLike, size: int) -> np.ndarray:
    """Returns `float64[n]`, or raises ValueError."""
    given = np.asarray(speeds)
    if given.dtype.kind not in "iuf":  # Booleans, above all.
        raise TypeError(f"{name}: speeds must be numbers, got {speeds!r}.")
    given = given.astype(np.float64)
    if given.ndim > 1 or given.size not in (1, size):
        raise ValueError(
            f"{name}: speeds must be one number or one for each of the {size} workers, "
            f"got shape {given.shape}."
        )
    if not ((given >= 0) & (given < np.inf)).all():
        raise ValueError(f"{name}: speeds must be finite and at least 0, got {speeds}.")
    slowest = given[given > 0].min(initial=np.inf)
    if slowest * _MOST_EVENTS < given.max():
        raise ValueError(
            f"{name}: while the slowest worker computes one gradient, at speed "
            f"{slowest:.3g}, the fastest would compute more than {_MOST_EVENTS:.0e}, "
            f"at speed {given.max():.3g}; use speed 0 for a worker that computes none."
        )
    return np.broadcast_to(given, size)


def check_variation(name: str, variation: float) -> None:
    """Raises TypeError or ValueError unless it is a coefficient of variation."""
    if not is_number(variation):
        raise TypeError(f"{name}: variation must be a number, got {variation!r}.")
    if variation > 0 and not _LEAST_VARIATION <= variation <= _MOST_VARIATION:
        raise ValueError(
            f"{name}: variation must be 0, for constant times, or between "
            f"{_LEAST_VARIATION:g} and {_MOST_VARIATION:g}, got {variation}: it is the "
            "standard deviation of a gradient's time in units of its mean, 1 for "
            "exponentially distributed times."
        )
    if not variation >= 0:
        raise ValueError(
            f"{name}: variation must be finite and at least 0, got {variation}."
        )


def check_seed(name: str, seed: Any) -> None:
    """Raises TypeError or ValueError unless it is a whole number, at least 0."""
    if not is_whole(seed):
        raise TypeError(f"{name}: seed must be a whole number, got {seed!r}.")
    if seed < 0:
        raise ValueError(f"{name}: seed must be at least 0, got {seed}.")


def _durations(
    worker: int, count: int, speed: float, variation: float, seed: int
) -> np.ndarray:
    """Of a worker's first gradients: with a larger count, the same ones and more."""
    if variation == 0:
        return np.full(count, 1 / speed)
    rng = np.random.default_rng((seed, _CLOCKS, worker))
    shape = float(variation) ** -2  # NumPy has no negative powers of integers.
    return rng.standard_gamma(shape, count) / (shape * speed)


def _finish_times(
    worker: int, speed: float, until: float, variation: float, seed: int
) -> np.ndarray:
    """When a worker's gradients are ready, up to a time."""
    if speed == 0:
        return np.zeros(0)
    count = 1 + math.ceil(until * speed)
    while True:
        if variation == 0:  # No sum, whose rounding would add up.
            finish = np.arange(1, count + 1) / speed
        else:
            finish = np.cumsum(_durations(worker, count, speed, variation, seed))
        if finish[-1] > until:
            return finish[: np.searchsorted(finish, until, side="right")]
        count *= 2


def _expected_time(gradients: Any, duration: Any, speeds: np.ndarray) -> float:
    """About how long a run is; raises unless what ends it is a positive number."""
    if gradients is None:
        if not is_number(duration):
            raise TypeError(
                f"draw_events: duration must be a number, got {duration!r}."
            )
        if not 0 < duration < math.inf:
            raise ValueError(f"draw_events: duration must be positive, got {duration}.")
        return float(duration)
    if not is_whole(gradients):
        raise ValueError(f"draw_events: gradients must be an int, got {gradients!r}.")
    if gradients < 1 or not speeds.any():
        raise ValueError(
            f"draw_events: cannot wait for {gradients} gradients at speeds up to "
            f"{speeds.max()}; give a duration, or make both positive."
        )
    return float(gradients / speeds.sum())


def _time_of(
    gradients: int, until: float, speeds: np.ndarray, variation: float, seed: int
) -> float:
    """When all workers together have computed so many gradients, about at `until`."""
    while True:
        finish = np.concatenate(
            [_finish_times(i, s, until, variation, seed) for i, s in enumerate(speeds)]
        )
        if len(finish) >= gradients:
            return float(np.partition(finish, gradients - 1)[gradients - 1])
        until *= 1.1
