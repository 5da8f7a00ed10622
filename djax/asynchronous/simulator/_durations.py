"""How long gradients take on virtual clocks.

Simulations of different algorithms can be compared only if each worker is equally fast
in all of them. So the random durations of a worker's gradients depend only on the seed
and the worker, not on what else is drawn.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from djax._values import is_number, is_whole

# Identifies the stream of random numbers for durations. It is a large number, since
# NumPy draws the same numbers for the seeds (seed, 0) and (seed,): with a small number,
# the durations could equal random numbers that are drawn elsewhere.
_STREAM = 0x6772616469656E74

# Largest coefficient of variation. With a larger one, nearly all durations of a gamma
# distribution are close to zero, and their mean comes from a few huge ones that are
# never drawn: at 10 the median is 1e-28 of the mean.
_MOST_VARIATION = 10.0
# Smallest coefficient of variation except 0. Smaller ones are lost in rounding.
_LEAST_VARIATION = 1e-6
# Largest number of events of one run; more would not fit into memory.
MOST_EVENTS = 10**8


class Durations:
    """How long the gradients of all workers take.

    Args:
      name: the function that was given the other arguments, for errors.
      size: number of workers.
      speeds: gradients per unit of time, one number or one for each worker.
      variation: coefficient of variation of each duration.
      seed: seed of all draws.

    Attributes:
      speeds: `float64[size]`.

    Raises:
      TypeError: speeds, variation or seed are no numbers.
      ValueError: speeds, variation or seed are not in their ranges.
    """

    def __init__(
        self, name: str, size: int, speeds: ArrayLike, variation: float, seed: int
    ):
        """Checks the arguments; nothing is drawn yet."""
        self.speeds = _check_speeds(name, speeds, size)
        _check_variation(name, variation)
        if not is_whole(seed):
            raise TypeError(f"{name}: seed must be a whole number, got {seed!r}.")
        if seed < 0:
            raise ValueError(f"{name}: seed must be at least 0, got {seed}.")
        self._variation, self._seed = variation, seed

    def draw(self, worker: int, count: int) -> np.ndarray:
        """Draws how long each of a worker's first gradients takes, `float64[count]`.

        With a larger `count`, the first durations are the same, and others follow.
        """
        speed = self.speeds[worker]
        if self._variation == 0:
            return np.full(count, 1 / speed)
        rng = np.random.default_rng((self._seed, _STREAM, worker))
        # NumPy has no negative powers of integers.
        shape = float(self._variation) ** -2
        return rng.standard_gamma(shape, count) / (shape * speed)

    def finish_times(self, until: float) -> list[np.ndarray]:
        """Draws when each worker finishes its gradients, up to `until`."""
        return [self._finish_times(i, until) for i in range(len(self.speeds))]

    def _finish_times(self, worker: int, until: float) -> np.ndarray:
        speed = self.speeds[worker]
        if speed == 0:
            return np.zeros(0)
        count = 1 + math.ceil(until * speed)
        while True:
            # Not a sum of constant durations, since its rounding would add up.
            if self._variation == 0:
                finish = np.arange(1, count + 1) / speed
            else:
                finish = np.cumsum(self.draw(worker, count))
            if finish[-1] > until:
                return finish[: np.searchsorted(finish, until, side="right")]
            count *= 2


def _check_speeds(name: str, speeds: ArrayLike, size: int) -> np.ndarray:
    """Returns `float64[size]`; raises TypeError or ValueError unless given speeds."""
    given = np.asarray(speeds)
    if given.dtype.kind not in "iuf":  # Booleans, for example.
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
    if slowest * MOST_EVENTS < given.max():
        raise ValueError(
            f"{name}: while the slowest worker computes one gradient, at speed "
            f"{slowest:.3g}, the fastest would compute more than {MOST_EVENTS:.0e}, "
            f"at speed {given.max():.3g}; use speed 0 for a worker that computes none."
        )
    return np.broadcast_to(given, size)


def _check_variation(name: str, variation: float) -> None:
    """Raises TypeError or ValueError unless `variation` can be that of a duration."""
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
