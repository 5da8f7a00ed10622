"""Quality against bytes, as both studies of the paper's tables show it."""

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
    """The score against what was sent, and against time.

    Args:
      label: of the score.
      shown: what was run.
      records: of it.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in shown.table.rows:
        runs = study.chosen(shown, records, row)
        scores = [run["score"] for run in runs if run["score"] is not None]
        if not scores:
            continue
        color = next(c for name, c in COLORS.items() if row.method.startswith(name))
        x, y = runs[0]["megabytes"], np.mean(scores)
        left.plot([x] * len(scores), scores, ".", color=color, alpha=0.5)
        left.plot(x, y, "o", color=color)
        left.annotate(row.method, (x, y), (4, 4), textcoords="offset points", size=7)
        values = np.array(runs[0]["mean"]) * (100 if shown.table.accuracy else 1)
        right.plot(runs[0]["epoch"], values, color=color, label=row.method, lw=1)
    left.set(xscale="log", xlabel="MB that a worker sends", ylabel=label)
    right.set(xlabel="epoch", ylabel=label, title="first seed")
    right.legend(fontsize=6)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if not shown.table.accuracy:
            axes.set_yscale("log")
    return figure
