"""Runs and draws :mod:`experiments.configs.acid.table_fashion_mnist`."""

from collections.abc import Sequence

import numpy as np

from ..configs.acid import table_fashion_mnist
from ..configs.acid.table_fashion_mnist import SIZES
from ..lib import figures, study
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


def draw(shown: Study, records: Sequence[figures.Record]):
    """Draws accuracy against the number of workers, and curves on the largest ring."""
    rows = {(row.method, row.setting): row for row in shown.table.rows}

    def runs_of(method, graph, size):
        """Returns the best rate's runs with a score; none if there is no such row."""
        row = rows.get((method, f"{graph} of {size}"))
        runs = study.chosen(shown, records, row) if row else []
        return [run for run in runs if run["score"] is not None]

    figure, panels = figures.panels((12, 6.4), 2, 3)
    for axes, graph in zip(panels[0], ("ring", "exponential", "complete"), strict=True):
        if axes is not panels[0, 0]:
            axes.sharey(panels[0, 0])
        for method, (color, style) in STYLES.items():
            runs = {size: runs_of(method, graph, size) for size in SIZES}
            scores = {n: figures.column(own, "score") for n, own in runs.items() if own}
            if scores:
                means = list(map(np.mean, scores.values()))
                axes.plot(list(scores), means, style, color=color, label=method)
            for size, values in scores.items():
                axes.plot([size] * len(values), values, ".", color=color)
        axes.set(title=graph, xscale="log", xlabel="workers")
        axes.set_xticks(SIZES, map(str, SIZES))
        axes.minorticks_off()
    panels[0, 0].set_ylabel("accuracy, averaged model, %")
    for axes, (key, label) in zip(panels[1], CURVES.items(), strict=True):
        for method, (color, style) in STYLES.items():
            for run in runs_of(method, "ring", SIZES[-1])[:1]:
                axes.plot(run["epoch"], run[key], style, color=color, label=method)
        axes.set(xlabel="epoch of all workers together", ylabel=label)
    panels[1, 1].set_title(f"ring of {SIZES[-1]}, first seed")
    panels[1, 2].set_yscale("log")
    panels[0, 0].legend(fontsize=8)
    panels[0, 2].legend(fontsize=8)
    return figure


main = study.script(__file__, table_fashion_mnist, draw)

if __name__ == "__main__":
    main()
