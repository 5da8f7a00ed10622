"""Quality against bytes, as both studies here show it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..common import study
from ..common.study import Study

COLORS = {
    "all-reduce": "tab:green",
    "D-PSGD": "black",
    "PowerGossip": "tab:blue",
    "CHOCO": "tab:orange",
    "DeepSqueeze": "tab:purple",
    "Moniqua": "tab:gray",
}
"""By the first words of a method's name."""


AFTER = ", after the step"
"""Ends the names of methods that average after a step's update, not before."""


def owners(methods: Iterable[str]) -> dict[str, str]:
    """Whose learning rate PowerGossip takes: D-PSGD's, which averages when it does.

    Args:
      methods: all names.
    """
    return {
        method: "D-PSGD" + AFTER * method.endswith(AFTER)
        for method in methods
        if method.startswith("PowerGossip")
    }


def draw(label: str, shown: Study, records: Sequence[dict[str, Any]]) -> Figure:
    """The score against what a worker sent.

    Args:
      label: of the score.
      shown: what was run.
      records: of it.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in shown.table.rows:
        runs = study.chosen(shown, records, row)
        runs = [run for run in runs if run["score"] is not None]
        if not runs:  # All have diverged, or none was made.
            continue
        scores = [run["score"] for run in runs]
        color = next(c for name, c in COLORS.items() if row.method.startswith(name))
        x, y = runs[0]["megabytes"], np.mean(scores)
        axes.plot([x] * len(scores), scores, ".", color=color, alpha=0.5)
        face = "white" if row.method.endswith(AFTER) else color
        axes.plot(x, y, "o", color=color, markerfacecolor=face)
        name = row.method.removesuffix(AFTER)
        style: dict[str, Any] = {"size": 8, "rotation": 20, "rotation_mode": "anchor"}
        axes.annotate(name, (x, y), (6, 3), textcoords="offset points", **style)
    axes.set(xscale="log", xlabel="MB that a worker sends", ylabel=label)
    axes.set_title("open circles: averaging after the step, not before", size=9)
    axes.margins(x=0.2, y=0.1)
    axes.grid(alpha=0.3)
    return figure
