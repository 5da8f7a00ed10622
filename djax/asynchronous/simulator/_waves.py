"""Events of different workers commute: which of them run side by side.

A wave is a matching, pairs of workers that average, and then a set of workers that
each compute a gradient. Waves are filled in the order of the events, each as early as
the events of the same workers before it allow: run wave by wave they give what they
give one after another.
"""

import math
from typing import NamedTuple

import numpy as np

from ._events import NOBODY, Events

# Waves of unlimited capacity differ in size, so that slots of the mean size would stay
# empty in small ones. At four fifths of it, 90 to 100 % of them are filled.
_SHARE_OF_MEAN = 0.8


class Waves(NamedTuple):
    """Which events each wave has, as numbers in the list; -1 where a slot is empty.

    Attributes:
      averagings: `int64[waves, averagings]`.
      gradients: `int64[waves, gradients]`.
    """

    averagings: np.ndarray
    gradients: np.ndarray


def capacities(events: Events) -> tuple[int, int]:
    """How many averagings and gradients a wave should hold, to be nearly always full.

    An empty slot costs what a full one does. Capacities are sizes of compiled programs:
    they are rounded, so that similar events have the same.
    """
    waves = level(events, 0, len(events), events.size, events.size)
    means = [(slots >= 0).sum() / max(1, len(slots)) for slots in waves]
    sizes = [math.ceil(_SHARE_OF_MEAN * mean) for mean in means]
    return tuple(size - size % 2 if size > 8 else size for size in sizes)


def level(
    events: Events, first: int, last: int, averagings: int, gradients: int
) -> Waves:
    """Puts the events numbered `first` to `last - 1` into waves of given capacities."""
    meetings, computations = _Slots(averagings), _Slots(gradients)
    # The first waves in which a worker may average, and compute.
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
    """Waves of one kind of event, each filled up to a capacity."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.waves: list[list[int]] = []
        self._next: list[int] = []  # Itself, or a later wave if this one is full.

    def place(self, event: int, earliest: int) -> int:
        """Puts an event into the first wave with room, and returns which it is."""
        while len(self.waves) <= earliest:
            self._append()
        wave, passed = earliest, []
        while self._next[wave] != wave:
            passed.append(wave)
            wave = self._next[wave]
        for full in passed:  # Path compression: later searches are short.
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
        """`int64[count, capacity]`, with -1 in what is empty."""
        array = np.full((count, self.capacity), -1)
        for row, wave in zip(array, self.waves, strict=False):
            row[: len(wave)] = wave
        return array
