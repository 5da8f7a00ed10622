"""Draws quality against bytes for the studies on Fashion-MNIST and on speeches."""

from collections.abc import Sequence

import numpy as np

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


def draw(shown: Study, records: Sequence[figures.Record]):
    """Draws the score of each method against the megabytes that a worker sent.

    The names are written in a column beside the axes, the highest score first. Beside
    their points they would cover each other, since many scores are almost equal.
    """
    figure, ((axes,),) = figures.panels((9, 4.5))
    _, _, label = shown.table.title.partition(": ")
    points: list[tuple[float, float, str, str]] = []
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
        points.append((x, y, row.method.removesuffix(AFTER), color))
    axes.set(xscale="log", xlabel="MB that a worker sends")
    axes.set_ylabel(label.replace(" in %", ", %"))
    axes.set_title("open circles: averaging after the step, not before", size=9)
    axes.margins(x=0.1, y=0.1)
    points.sort(key=lambda point: -point[1])
    heights = np.linspace(0.97, 0.03, max(2, len(points)))
    for (x, y, name, color), height in zip(points, heights, strict=False):
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
    return figure
