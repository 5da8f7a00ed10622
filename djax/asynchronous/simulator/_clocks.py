r"""Virtual clocks: when asynchronous workers compute and average.

The unit of time is the time in which a worker of speed 1 computes one gradient. Worker
:math:`i` computes gradients back to back, each of which takes a random time of mean
:math:`1 / \text{speed}_i`. Each pair of neighbours averages at the times of a Poisson
process of its own, whether or not the two are computing. No time depends on the models.
So all events are drawn first, and the list can be inspected, stored, and simulated with
any algorithm by :func:`djax.asynchronous.simulate`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from djax._values import is_number, is_whole
from djax.topologies import Topology
from djax.topologies.checks import check_undirected

from ..algorithms import Asked
from ._durations import MOST_EVENTS, Durations
from ._events import NOBODY, Events

# Identifies the stream of random numbers for averagings; see `_durations`.
_MEETINGS = 0x617665726167696E


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
      topology: which workers are neighbours. Its mixing weights play no role.
      rate: averagings of a worker per unit of time, or of each pair, `float[n, n]`, as
        in :func:`djax.asynchronous.edge_rates`. A rate below 1 gives local SGD with
        random numbers of local steps; at rate 0 there are no averagings.
      gradients: the run ends when all workers together have computed this number of
        gradients. Fast workers compute more of them than slow workers.
      duration: the run ends at this time. Either `gradients` or `duration` has to be
        given.
      speeds: gradients of each worker per unit of time, `float[n]` or one number for
        all. A worker of speed 0 computes no gradients.
      variation: standard deviation of the duration of a gradient, in units of its mean.
        With 1, durations are exponentially distributed, so that gradients are a Poisson
        process, as in the paper's analysis. With 0, durations are constant. With other
        values they are gamma distributed. The largest value is 10, with which one
        gradient in a hundred takes three quarters of all the time.
      seed: seed of all random times. The durations of a worker's gradients depend on
        neither the topology nor the rate nor the end of the run.

    Returns:
      The events. The run ends with the last gradient, or at `duration`.

    Raises:
      TypeError: if `topology` is no Topology but a Schedule, for example, or another
        argument is no number.
      ValueError: if an argument is out of range, if not exactly one of `gradients` and
        `duration` is given, or if there would be more than 100 million events.

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
    durations = Durations("draw_events", size, speeds, variation, seed)
    if (gradients is None) == (duration is None):
        raise ValueError(
            "draw_events: give either the number of gradients or the duration."
        )
    expected = _expected_time(gradients, duration, durations.speeds)
    count = expected * (durations.speeds.sum() + rates.sum() / 2)
    if not count <= MOST_EVENTS:
        raise ValueError(
            f"draw_events: about {count:.3g} events are asked for, more than "
            f"{MOST_EVENTS:.0e}; lower the rate, the speeds, or what ends the run."
        )
    if gradients is not None:
        end = _time_of(gradients, expected, durations)
    else:
        end = expected
    finish = durations.finish_times(end)
    rng = np.random.default_rng((seed, _MEETINGS))
    i, j = np.nonzero(np.triu(rates))
    which = np.repeat(np.arange(len(i)), rng.poisson(rates[i, j] * end))
    time = np.concatenate([*finish, rng.uniform(0, end, len(which))])
    worker = np.concatenate([np.repeat(np.arange(size), [*map(len, finish)]), i[which]])
    peer = np.concatenate([np.full(len(worker) - len(which), NOBODY), j[which]])
    order = np.argsort(time, kind="stable")
    if gradients is not None:  # More gradients may end at the same time as the last.
        order = order[np.cumsum(peer[order] == NOBODY) <= gradients]
    return Events(size, time[order], worker[order], peer[order], end, asked)


def _expected_time(gradients: Any, duration: Any, speeds: np.ndarray) -> float:
    """Estimates the duration of a run; raises an error if it would not be positive."""
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


def _time_of(gradients: int, until: float, durations: Durations) -> float:
    """Returns when the workers have computed `gradients`; `until` is a first guess."""
    while True:
        finish = np.concatenate(durations.finish_times(until))
        if len(finish) >= gradients:
            return float(np.partition(finish, gradients - 1)[gradients - 1])
        until *= 1.1
