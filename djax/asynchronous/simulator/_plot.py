"""Pictures of asynchronous runs, which show who computes, averages and waits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.6  # Height of a bar, in units of the distance between workers.


def plot_pairs(counts: np.ndarray, ax: "Axes | None") -> "Axes":
    """Draws how often each pair averages, `int[n, n]`, as a heat map."""
    ax = make_axes(ax)
    image = ax.imshow(counts, cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="averagings")
    ax.set(xlabel="worker", ylabel="worker")
    return ax


def plot_staleness(staleness: np.ndarray, ax: "Axes | None") -> "Axes":
    """Draws a histogram of the staleness of gradients, `int[gradients]`."""
    ax = make_axes(ax)
    counts = np.bincount(staleness, minlength=1)
    ax.bar(np.arange(len(counts)), counts / max(1, counts.sum()))
    ax.set(
        xlabel="averagings during a gradient's computation", ylabel="share of gradients"
    )
    return ax


def plot_timeline(
    finished: Sequence[np.ndarray],
    meetings: np.ndarray,
    duration: float,
    ax: "Axes | None",
    until: float,
) -> "Axes":
    """Draws a bar for each gradient, and a line between the two ends of an averaging.

    Args:
      finished: for each worker the times when its gradients end, `float[gradients]`.
      meetings: `float[3, averagings]`, the times of averagings and their two workers.
      duration: the end of the run, where the bars of unfinished gradients end.
      ax: where to draw; by default new axes.
      until: end of the picture.
    """
    ax = make_axes(ax)
    for i, finish in enumerate(finished if any(map(len, finished)) else ()):
        start = np.concatenate([[0.0], finish])  # The last gradient is not finished.
        _bars(ax, i, start, np.concatenate([finish, [duration]]), until)
    time, *ends = meetings[:, meetings[0] <= until]
    ax.vlines(time, *ends, color="crimson", linewidth=1)
    ax.scatter(np.tile(time, 2), np.concatenate(ends), color="crimson", s=8)
    return _finish(ax, len(finished), until)


def plot_rounds(
    start: np.ndarray,
    finish: np.ndarray,
    end: np.ndarray,
    ax: "Axes | None",
    until: float,
) -> "Axes":
    """Draws a bar for each gradient, and a line at each all-reduce.

    Workers wait where there is no bar.

    Args:
      start: `float[steps]`, the times when the gradients begin.
      finish: `float[steps, n]`, the times when the gradients end.
      end: `float[steps]`, the times when the all-reduces end.
      ax: where to draw; by default new axes.
      until: end of the picture.
    """
    ax = make_axes(ax)
    size = finish.shape[1]
    for i in range(size):
        _bars(ax, i, start, finish[:, i], until)
    ends = end[end <= until]
    ax.vlines(ends, -_BAR / 2, size - 1 + _BAR / 2, color="crimson", linewidth=1)
    return _finish(ax, size, until)


def make_axes(ax: "Axes | None") -> "Axes":
    """Returns the axes that are given, or new ones."""
    if ax is None:
        # Only pictures need matplotlib, so that the library does not depend on it.
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    return ax


def _bars(ax, worker, start, finish, until):
    seen = start < until
    lengths = np.minimum(finish[seen], until) - start[seen]
    ax.broken_barh(
        list(zip(start[seen], lengths, strict=True)),
        (worker - _BAR / 2, _BAR),
        facecolor="lightsteelblue",
        edgecolor="white",
        linewidth=1,
    )


def _finish(ax, size, until):
    ax.set(xlabel="time", ylabel="worker", xlim=(0, until), ylim=(size - 0.5, -0.5))
    if size <= 16:
        ax.set_yticks(range(size))
    return ax
