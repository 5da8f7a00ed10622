"""Draws quality against bytes for the studies on Fashion-MNIST and on speeches."""

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
"""The colour of each method, by the first words of its name."""


def draw(shown: Study, records: Sequence[dict[str, Any]]) -> Figure:
    """Draws the score of each method against the megabytes that a worker sent.

    Args:
      shown: the study.
      records: its records.
    """
    figure, ((axes,),) = figures.panels((9, 4.5))
    _, _, label = shown.table.title.partition(": ")
    label = label.replace(" in %", ", %")
    points: list[tuple[str, float, float, str]] = []
    for row in shown.table.rows:
        runs = study.chosen(shown, records, row)
        runs = [run for run in runs if run["score"] is not None]
        if not runs:  # All runs of the row diverged, or none was made yet.
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
    """Writes the names of the points in a column beside the axes, the highest first.

    Names that stood beside their points would cover each other, since the scores of
    many methods are almost equal.

    Args:
      axes: the axes with the points.
      points: name, x, y and colour of each point.
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
