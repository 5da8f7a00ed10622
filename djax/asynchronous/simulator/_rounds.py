"""Virtual clocks of synchronous workers, to compare asynchronous workers with them."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from djax._values import is_whole

from .._plot import BAR, draw_bars, finish_timeline, make_axes
from ._durations import MOST_EVENTS, Durations

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Rounds(NamedTuple):
    """When synchronous workers compute, and when they wait for each other.

    Attributes:
      start: `float64[steps]`, when all workers begin a gradient.
      finish: `float64[steps, n]`, when each worker has computed its gradient. All
        workers wait for the last one.
    """

    start: np.ndarray
    finish: np.ndarray

    @property
    def end(self) -> np.ndarray:
        """`float64[steps]`: when each step ends."""
        return self.finish.max(1)

    @property
    def idle_share(self) -> float:
        """Share of all workers' time that is spent waiting."""
        busy = np.sum(self.finish - self.start[:, None])
        return float(1 - busy / (self.finish.shape[1] * self.end[-1]))

    def plot_timeline(
        self, ax: "Axes | None" = None, until: float | None = None
    ) -> "Axes":
        """Draws each worker's gradients as bars; see :class:`Events`.

        Workers wait where there is no bar. A line is drawn at each all-reduce.
        """
        ax, end, size = make_axes(ax), self.end, self.finish.shape[1]
        until = float(end[-1]) if until is None else until
        for i in range(size):
            draw_bars(ax, i, self.start, self.finish[:, i], until)
        seen, reach = end[end <= until], BAR / 2
        ax.vlines(seen, -reach, size - 1 + reach, color="crimson", linewidth=1)
        return finish_timeline(ax, size, until)


def draw_rounds(
    size: int,
    steps: int,
    *,
    speeds: ArrayLike = 1.0,
    variation: float = 1.0,
    seed: int = 0,
) -> Rounds:
    """Draws when workers compute if they wait for each other, as in all-reduce SGD.

    All workers begin a gradient when the slowest worker has finished the previous one.
    The all-reduce itself takes no time. Each worker's gradients have the same durations
    as in :func:`draw_events` with the same seed, so that both can be compared.

    Args:
      size: number of workers.
      steps: number of gradients of each worker.
      speeds: gradients of each worker per unit of time, `float[n]` or one number for
        all. Unlike in :func:`draw_events`, all have to be positive.
      variation: standard deviation of the duration of a gradient, in units of its mean;
        see :func:`draw_events`.
      seed: seed of the durations.

    Returns:
      The times at which all gradients begin and end.

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
    durations = Durations("draw_rounds", size, speeds, variation, seed)
    if steps < 1 or not (durations.speeds > 0).all():
        raise ValueError(
            "draw_rounds: all wait for the slowest, so that steps and speeds must be "
            f"positive; got {steps} steps and speeds down to {durations.speeds.min()}."
        )
    if size * steps > MOST_EVENTS:
        raise ValueError(
            f"draw_rounds: {size * steps:.3g} gradients are asked for, more than "
            f"{MOST_EVENTS:.0e}; lower the steps."
        )
    drawn = np.stack([durations.draw(i, steps) for i in range(size)], 1)
    end = np.cumsum(drawn.max(1))
    start = np.concatenate([[0.0], end[:-1]])
    return Rounds(start, start[:, None] + drawn)
