"""Parts of the pictures that show who computes, averages and waits."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR = 0.6  # Height of a bar, in units of the distance between workers.


def make_axes(ax: "Axes | None") -> "Axes":
    """Returns the axes that are given, or new ones."""
    if ax is None:
        # Only pictures need matplotlib, so that the library does not depend on it.
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    return ax


def draw_bars(
    ax: "Axes", worker: int, start: np.ndarray, finish: np.ndarray, until: float
) -> None:
    """Draws the part up to `until` of each gradient of a worker as a bar."""
    seen = start < until
    lengths = np.minimum(finish[seen], until) - start[seen]
    ax.broken_barh(
        list(zip(start[seen], lengths, strict=True)),
        (worker - BAR / 2, BAR),
        facecolor="lightsteelblue",
        edgecolor="white",
        linewidth=1,
    )


def draw_averagings(
    ax: "Axes", time: np.ndarray, worker: np.ndarray, peer: np.ndarray
) -> None:
    """Draws each averaging as a line between the two workers that averaged."""
    ax.vlines(time, worker, peer, color="crimson", linewidth=1)
    ends = np.concatenate([worker, peer])
    ax.scatter(np.tile(time, 2), ends, color="crimson", s=8)


def draw_staleness(ax: "Axes", staleness: np.ndarray) -> None:
    """Draws a histogram of the staleness of gradients."""
    counts = np.bincount(staleness, minlength=1)
    ax.bar(np.arange(len(counts)), counts / max(1, counts.sum()))
    during = "averagings during a gradient's computation"
    ax.set(xlabel=during, ylabel="share of gradients")


def finish_timeline(ax: "Axes", size: int, until: float) -> "Axes":
    """Gives a timeline of `size` workers its labels and limits."""
    ax.set(xlabel="time", ylabel="worker", xlim=(0, until), ylim=(size - 0.5, -0.5))
    if size <= 16:
        ax.set_yticks(range(size))
    return ax
