"""Runs and draws :mod:`experiments.configs.acid.table_fashion_mnist`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..configs.acid import table_fashion_mnist
from ..configs.acid.table_fashion_mnist import SIZES
from ..lib import study
from ..lib.tables import Study

STYLES = {
    "AR-SGD": ("tab:gray", "-"),
    "baseline, rate 1": ("black", "-"),
    "baseline, rate 2": ("black", "--"),
    "A²CiD², rate 1": ("tab:blue", "-"),
}
CURVES = {
    "loss": "training loss",
    "mean": "accuracy, mean of workers",
    "consensus_distance": "consensus distance",
}


def draw(shown: Study, records: Sequence[dict[str, Any]]) -> Figure:
    """Draws accuracy against the number of workers, and curves on the largest ring."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, 3)
    for axes, graph in zip(panels[0], ("ring", "exponential", "complete"), strict=True):
        if axes is not panels[0, 0]:
            axes.sharey(panels[0, 0])
        for method, (color, style) in STYLES.items():
            points = []
            for size in SIZES:
                runs = _runs(shown, records, method, f"{graph} of {size}")
                points += [(size, run["score"]) for run in runs]
            if points:
                sizes = sorted({size for size, _ in points})
                means = [np.mean([y for x, y in points if x == s]) for s in sizes]
                axes.plot(sizes, means, style, color=color, label=method)
                axes.plot(*zip(*points, strict=True), ".", color=color)
        axes.set(title=graph, xscale="log", xlabel="workers")
        axes.set_xticks(SIZES, map(str, SIZES))
        axes.minorticks_off()
    panels[0, 0].set_ylabel("accuracy, averaged model, %")
    for axes, (key, label) in zip(panels[1], CURVES.items(), strict=True):
        for method, (color, style) in STYLES.items():
            for run in _runs(shown, records, method, f"ring of {SIZES[-1]}")[:1]:
                axes.plot(run["epoch"], run[key], style, color=color, label=method)
        axes.set(xlabel="epoch of all workers together", ylabel=label)
    panels[1, 1].set_title(f"ring of {SIZES[-1]}, first seed")
    panels[1, 2].set_yscale("log")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    panels[0, 2].legend(fontsize=8)
    return figure


def _runs(shown, records, method: str, setting: str) -> list[dict[str, Any]]:
    """Returns the chosen runs of a row that have a score."""
    rows = [
        row
        for row in shown.table.rows
        if (row.method, row.setting) == (method, setting)
    ]
    found = [run for row in rows for run in study.chosen(shown, records, row)]
    return [run for run in found if run["score"] is not None]


main = study.script(__file__, table_fashion_mnist, draw)

if __name__ == "__main__":
    main()
