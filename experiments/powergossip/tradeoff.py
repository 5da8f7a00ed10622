"""Quality against bytes, as both studies here show it."""

from collections.abc import Sequence
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
        scores = [run["score"] for run in runs if run["score"] is not None]
        if not scores:
            continue
        color = next(c for name, c in COLORS.items() if row.method.startswith(name))
        x, y = runs[0]["megabytes"], np.mean(scores)
        axes.plot([x] * len(scores), scores, ".", color=color, alpha=0.5)
        axes.plot(x, y, "o", color=color)
        axes.annotate(row.method, (x, y), (5, 4), textcoords="offset points", size=8)
    axes.set(xscale="log", xlabel="MB that a worker sends", ylabel=label)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    return figure
