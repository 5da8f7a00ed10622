"""Recognizes trainings that get worse instead of better.

A divergence often ends in a loss that is not finite, but not always. If a step has made
all units of a network output zero, the loss stays at that of guessing for the rest of
the run. Without the checks below, the user would only see an accuracy of 10 %.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from djax import asynchronous

from .errors import UsageError

TAIL = 0.2
"""The last share of the training, whose losses are compared with the first."""
EXPLODED = 5.0
"""A loss has exploded if it is more than this many times the first loss. Runs at the
edge of divergence that still learn were seen to reach 3.6 times."""
RECOVERED = 0.8
"""After an explosion the loss has to fall to this share of the first loss. (Guessing
among a worker's own classes has 0.9 times the loss of guessing among all classes.)"""
GROWN = 2.0
"""If the last losses are more than this many times the first loss, the training has
diverged, even if the loss has grown slowly."""
SHORT, GROWN_IN_SHORT = 20, 20.0
"""The first steps of a sound run may look like a divergence. With fewer than `SHORT`
steps, only losses above `GROWN_IN_SHORT` times the first loss count as grown."""


class Diverged(UsageError):
    """Raised if the loss is not finite, or has grown and not come back."""


@contextlib.contextmanager
def in_own_words() -> Iterator[None]:
    """Raises Diverged in place of :class:`djax.asynchronous.NonFiniteError`.

    The advice of the library's error names arguments that the command line lacks.
    """
    try:
        yield
    except asynchronous.NonFiniteError as error:
        (worker,), number = error.ranks, error.step
        which = "a gradient" if number is None else f"gradient {number + 1}"
        raise Diverged(
            f"training diverged: worker {worker}'s {which}, or the model after it, is "
            "not finite."
        ) from error


@dataclasses.dataclass
class Watch:
    """Follows the losses of a training, to tell at the end whether it diverged.

    Attributes:
      first: mean loss of the workers in the first step; None if that step is unknown.
      largest: the largest mean loss of a step.
      tail: medians of losses in the last fifth of the training, one for each call of
        :meth:`take` whose losses reach into it.
    """

    steps: int = 0
    first: float | None = None
    largest: float = 0.0
    tail: list[float] = dataclasses.field(default_factory=list)

    def take(self, before: int, losses: Sequence[float] | np.ndarray) -> None:
        """Notes the losses of the steps after `before` steps, `float[steps]`."""
        if len(losses) == 0:
            return
        if before == 0:
            self.first = float(losses[0])
        self.largest = max(self.largest, float(np.max(losses)))
        length = max(1, round(TAIL * self.steps))
        late = np.asarray(losses)[max(0, self.steps - length - before) :]
        if late.size:
            self.tail.append(float(np.median(late)))

    def check(self) -> None:
        """Raises Diverged if the loss has grown and not come back.

        Nothing is raised before the end of the training, if the first step is unknown,
        or if the first loss is not positive, since losses cannot be compared with it.
        """
        if self.first is None or not self.first > 0 or not self.tail:
            return
        last = statistics.median(self.tail) / self.first
        exploded = self.largest > EXPLODED * self.first and last > RECOVERED
        grown = last > GROWN
        if self.steps < SHORT:
            grown = last > GROWN_IN_SHORT
            exploded &= self.steps >= SHORT // 2
        if exploded or grown:
            raise Diverged(
                f"training diverged: the loss was {self.first:.4g} in the first step, "
                f"{self.largest:.4g} at its worst, and {last * self.first:.4g} in the "
                "last fifth of the training."
            )


def watch_all(losses: np.ndarray, workers: int) -> None:
    """Raises Diverged if the losses of a whole training have grown and not come back.

    Losses are `float[gradients]`, those of all workers in the order of time.
    """
    steps = len(losses) // workers
    watch = Watch(steps)
    watch.take(0, losses[: steps * workers].reshape(steps, workers).mean(1))
    watch.check()


def check_losses(losses: np.ndarray, workers: np.ndarray, when: str) -> None:
    """Raises Diverged if a loss of these workers is not finite.

    Losses are `float[gradients]`, workers `int[gradients]`, and further workers are
    ignored. The error says `when` the losses were computed.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise Diverged(
            f"training diverged: worker {workers[bad[0]]}'s loss is {losses[bad[0]]} "
            f"{when}."
        )
