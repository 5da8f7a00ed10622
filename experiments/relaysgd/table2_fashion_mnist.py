"""Runs and draws :mod:`experiments.configs.relaysgd.table2_fashion_mnist`."""

from collections.abc import Sequence

import numpy as np

from ..configs.relaysgd import table2_fashion_mnist
from ..configs.relaysgd.table2_cifar10 import ALPHAS
from ..lib import figures, study
from ..lib.tables import Study

COLORS = {
    "all-reduce": "black",
    "RelaySGD, chain": "tab:red",
    "RelaySGD, double trees": "tab:pink",
    "RelaySum/Grad, chain": "tab:orange",
    "D-PSGD, ring": "tab:purple",
    "D-PSGD + quasi-global momentum, ring": "tab:olive",
    "D², ring": "tab:blue",
    "gradient tracking, ring": "tab:gray",
    "SGP, one-peer exponential": "tab:cyan",
}


def draw(shown: Study, records: Sequence[figures.Record]):
    """Draws the worst worker's accuracy, against alpha and against epochs."""
    figure, ((left, right),) = figures.panels((11, 4), 1, 2)
    positions = np.arange(len(ALPHAS))
    for method, color in COLORS.items():
        rows = [row for row in shown.table.rows if row.method == method]
        runs = [study.chosen(shown, records, row) for row in rows]
        scores = [[r["score"] for r in own if r["score"] is not None] for own in runs]
        means = [np.mean(values) if values else np.nan for values in scores]
        left.plot(positions, means, color=color, marker="o", ms=3, label=method)
        for x, values in zip(positions, scores, strict=True):
            left.plot([x] * len(values), values, ".", color=color, ms=3, alpha=0.5)
        for run in runs[-1][:1]:
            right.plot(run["epoch"], np.multiply(100, run["worst"]), color=color)
    left.set_xticks(positions, [f"{alpha:g}" for alpha in ALPHAS])
    left.set(xlabel="alpha: the smaller, the more the workers' classes differ")
    left.set(ylabel="test accuracy of the worst worker, %")
    right.set(xlabel="epoch", title=f"alpha {ALPHAS[-1]:g}, first seed")
    left.legend(fontsize=7)
    return figure


main = study.script(__file__, table2_fashion_mnist, draw)

if __name__ == "__main__":
    main()
