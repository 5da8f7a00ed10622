"""Pictures of asynchronous runs."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ._clocks import Rounds
    from ._events import Events

_BAR = 0.6  # Of the distance between two workers.


def plot_pairs(events: "Events", ax: "Axes | None") -> "Axes":
    """A heat map of who averaged with whom."""
    ax = make_axes(ax)
    image = ax.imshow(events.pair_counts, cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="averagings")
    ax.set(xlabel="worker", ylabel="worker")
    return ax


def plot_staleness(events: "Events", ax: "Axes | None") -> "Axes":
    """A histogram."""
    ax = make_axes(ax)
    counts = np.bincount(events.staleness, minlength=1)
    ax.bar(np.arange(len(counts)), counts / max(1, counts.sum()))
    ax.set(
        xlabel="averagings during a gradient's computation", ylabel="share of gradients"
    )
    return ax


def plot_timeline(events: "Events", ax: "Axes | None", until: float) -> "Axes":
    """A bar for each gradient, and a line between the two ends of an averaging."""
    ax = make_axes(ax)
    gradients, past = events.is_gradient, events.time <= until
    for i in range(events.size if gradients.any() else 0):
        finish = events.time[gradients & (events.worker == i)]
        start = np.concatenate([[0.0], finish])  # The last one is not finished.
        _bars(ax, i, start, np.concatenate([finish, [events.duration]]), until)
    meets = ~gradients & past
    ends = np.stack([events.worker[meets], events.peer[meets]])
    ax.vlines(events.time[meets], *ends, color="crimson", linewidth=1)
    ax.scatter(np.tile(events.time[meets], 2), ends.ravel(), color="crimson", s=8)
    return _finish(ax, events.size, until)


def plot_rounds(rounds: "Rounds", ax: "Axes | None", until: float) -> "Axes":
    """A bar for each gradient, gaps where workers wait, a line at each all-reduce."""
    ax = make_axes(ax)
    size = rounds.finish.shape[1]
    for i in range(size):
        _bars(ax, i, rounds.start, rounds.finish[:, i], until)
    ends = rounds.end[rounds.end <= until]
    ax.vlines(ends, -_BAR / 2, size - 1 + _BAR / 2, color="crimson", linewidth=1)
    return _finish(ax, size, until)


def make_axes(ax: "Axes | None") -> "Axes":
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
