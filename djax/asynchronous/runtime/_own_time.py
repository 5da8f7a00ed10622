"""A worker's own time, in which A²CiD² mixes and in which averagings become due."""

import time


class OwnTime:
    """Counts time in gradients of this worker, so that slow workers average less often.

    The time is the number of finished gradients plus the fraction of the current
    gradient that has passed. This fraction is estimated from the durations of earlier
    gradients, where the latest gradient has weight 1/2, the one before 1/4, and so on.
    It is at most 1, however long a gradient takes. During the very first gradient no
    time passes, since nothing is known about its duration.

    Args:
      finished: number of gradients that are finished at the start.

    Attributes:
      finished: number of finished gradients.
      duration: estimated duration of a gradient in seconds; 0 before the first one has
        finished.
    """

    def __init__(self, finished: int = 0):
        """Starts between two gradients."""
        self.finished = finished
        self.duration = 0.0
        self._began: float | None = None

    def begin(self) -> None:
        """Notes that a gradient begins."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """Notes that the current gradient has finished."""
        assert self._began is not None
        latest = time.perf_counter() - self._began
        self.duration = (latest + (self.duration or latest)) / 2
        self._began = None
        self.finished += 1

    def __call__(self) -> float:
        """Returns the time in gradients; may be called by any thread."""
        # Another thread may end the gradient between these two reads. The result is
        # then the time of its beginning or of its end, and both are right.
        finished, began = self.finished, self._began
        if began is None or not self.duration:
            return float(finished)
        share = (time.perf_counter() - began) / self.duration
        return finished + min(share, 1.0)

    def until(self, moment: float) -> float:
        """Estimates the seconds until the worker's own time is `moment`."""
        return (moment - self()) * (self.duration or 1.0)
