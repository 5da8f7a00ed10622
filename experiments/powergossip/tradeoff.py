"""Quality against bytes, as both studies here show it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..configs.powergossip.table_fashion_mnist import AFTER
from ..lib import figures, study
from ..lib.tables import Study

COLORS = {
    "all-reduce": "tab:green",
    "D-PSGD": "black",
    "PowerGossip": "tab:blue",
    "CHOCO": "tab:orange",
    "DeepSqueeze": "tab:purple",
    "Moniqua": "tab:gray",
}
"""By the first words of a method's name."""


def draw(shown: Study, records: Sequence[dict[str, Any]]) -> Figure:
    """The score against what a worker sent.

    Args:
      shown: what was run.
      records: of it.
    """
    figure, ((axes,),) = figures.panels((9, 4.5))
    _, _, label = shown.table.title.partition(": ")
    points: list[tuple[str, float, float, str]] = []
    for row in shown.table.rows:
        runs = study.chosen(shown, records, row)
        runs = [run for run in runs if run["score"] is not None]
        if not runs:  # All have diverged, or none was made.
            continue
        scores = figures.column(runs, "score")
        color = next(c for name, c in COLORS.items() if row.method.startswith(name))
        x, y = runs[0]["megabytes"], np.mean(scores)
        axes.plot([x] * len(scores), scores, ".", color=color, alpha=0.5)
        face = "white" if row.method.endswith(AFTER) else color
        axes.plot(x, y, "o", color=color, markerfacecolor=face)
        points.append((row.method.removesuffix(AFTER), x, y, color))
    axes.set(xscale="log", xlabel="MB that a worker sends", ylabel=label)
    axes.set_title("open circles: averaging after the step, not before", size=9)
    axes.margins(x=0.1, y=0.1)
    _label(axes, points)
    return figure


def _label(axes: Axes, points: Sequence[tuple[str, float, float, str]]) -> None:
    """Names the points in a column beside the axes, from the highest to the lowest.

    Beside their points the names would cover each other where methods are as good.

    Args:
      axes: with the points.
      points: name, x, y and colour of each.
    """
    ordered = sorted(points, key=lambda point: -point[2])
    heights = np.linspace(0.97, 0.03, max(2, len(ordered)))
    for (name, x, y, color), height in zip(ordered, heights, strict=False):
        axes.annotate(
            name,
            (x, y),
            (1.03, height),
            textcoords=axes.transAxes,
            size=8,
            va="center",
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.6},
        )
