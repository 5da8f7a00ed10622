"""Puts events that can be computed at the same time into waves.

Events of different workers can be computed in any order, so that many of them can run
in one program. A wave is a set of disjoint pairs of workers that average, followed by a
set of workers each of which computes a gradient. The events are put into waves in their
order, each into the earliest wave that the earlier events of its workers allow. So the
waves give the same results as the events one after another.
"""

import math
from typing import NamedTuple

import numpy as np

from ._events import NOBODY, Events

# All waves have the same number of slots for events. Without such a limit waves differ
# in size. If the number of slots were their mean size, many slots of small waves would
# stay empty. With four fifths of the mean, 90 to 100 % of all slots are filled.
_SHARE_OF_MEAN = 0.8


class Waves(NamedTuple):
    """The numbers of the events in each wave, or -1 where a slot is empty.

    Attributes:
      averagings: `int64[waves, averagings]`.
      gradients: `int64[waves, gradients]`.
    """

    averagings: np.ndarray
    gradients: np.ndarray


def capacities(events: Events) -> tuple[int, int]:
    """Returns how many averagings and gradients a wave should have room for.

    An empty slot costs as much time as a full one, so waves should nearly always be
    full. The numbers are rounded, so that similar events share compiled programs.
    """
    waves = level(events, 0, len(events), events.size, events.size)
    means = [(slots >= 0).sum() / max(1, len(slots)) for slots in waves]
    sizes = [math.ceil(_SHARE_OF_MEAN * mean) for mean in means]
    return tuple(size - size % 2 if size > 8 else size for size in sizes)


def level(
    events: Events, first: int, last: int, averagings: int, gradients: int
) -> Waves:
    """Puts events into waves.

    Args:
      events: all events of the simulation.
      first: index of the first event.
      last: index after the last event.
      averagings: largest number of averagings in a wave.
      gradients: largest number of gradients in a wave.
    """
    meetings, computations = _Slots(averagings), _Slots(gradients)
    # For each worker, the first wave in which it may average, and may compute.
    meets, computes = [0] * events.size, [0] * events.size
    workers, peers = events.worker.tolist(), events.peer.tolist()
    for e in range(first, last):
        i, j = workers[e], peers[e]
        if j == NOBODY:
            wave = computations.place(e, computes[i])
            meets[i] = computes[i] = wave + 1
        else:
            wave = meetings.place(e, max(meets[i], meets[j]))
            meets[i] = meets[j] = wave + 1
            computes[i] = computes[j] = wave
    count = max(len(meetings.waves), len(computations.waves))
    return Waves(meetings.to_array(count), computations.to_array(count))


class _Slots:
    """The slots of one kind of event in all waves, each filled up to a capacity."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.waves: list[list[int]] = []
        # For each wave its own index, or that of a later wave if it is full.
        self._next: list[int] = []

    def place(self, event: int, earliest: int) -> int:
        """Puts an event into the first wave with room; returns the wave's number."""
        while len(self.waves) <= earliest:
            self._append()
        wave, passed = earliest, []
        while self._next[wave] != wave:
            passed.append(wave)
            wave = self._next[wave]
        for full in passed:  # Shortens later searches.
            self._next[full] = wave
        self.waves[wave].append(event)
        if len(self.waves[wave]) == self.capacity:
            self._next[wave] = wave + 1
            if wave + 1 == len(self.waves):
                self._append()
        return wave

    def _append(self) -> None:
        self._next.append(len(self.waves))
        self.waves.append([])

    def to_array(self, count: int) -> np.ndarray:
        """Returns `int64[count, capacity]`, with -1 in empty slots."""
        array = np.full((count, self.capacity), -1)
        for row, wave in zip(array, self.waves, strict=False):
            row[: len(wave)] = wave
        return array
