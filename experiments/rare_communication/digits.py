"""Runs and draws :mod:`experiments.configs.rare_communication.digits`."""

from collections.abc import Sequence

import numpy as np

from ..configs.rare_communication import digits
from ..lib import figures, study
from ..lib.tables import Study

STYLES = {
    "D-PSGD, every step": ("black", "s"),
    "D-PSGD": ("black", "o"),
    "all-reduce": ("tab:gray", "o"),
    "DiLoCo": ("tab:blue", "o"),
    "SlowMo": ("tab:cyan", "o"),
    "NoLoCo": ("tab:green", "o"),
    "LED": ("tab:orange", "D"),
    "K-GT": ("tab:red", "D"),
    "DiLoCo over gossip": ("tab:purple", "^"),
    "DiLoCo over PowerGossip": ("tab:pink", "^"),
    "DiLoCo over PowerGossip, every 2 steps": ("tab:brown", "^"),
    "DiLoCo over RelaySum": ("tab:olive", "^"),
}
"""The colour of each method, and the marker of its kind."""


def draw(shown: Study, records: Sequence[figures.Record]):
    """Draws errors against megabytes, at the end and during the training.

    The errors, 100 % minus the accuracies, have a logarithmic axis, since many
    accuracies are almost equal.
    """
    figure, ((left, right),) = figures.panels((11, 4.2), 1, 2, sharey=True)
    for row in shown.table.rows:
        runs = study.chosen(shown, records, row)
        runs = [run for run in runs if run["score"] is not None]
        if not runs:  # All runs of the row diverged, or none was made yet.
            continue
        color, marker = STYLES[row.method]
        errors = 100 - np.asarray(figures.column(runs, "score"))
        sent = runs[0]["megabytes"]  # The same for all seeds.
        left.plot([sent] * len(errors), errors, marker, color=color, ms=3, alpha=0.5)
        left.plot(sent, errors.mean(), marker, color=color, ms=7, label=row.method)
        epochs = np.asarray(runs[0]["epoch"])
        means = 100 - 100 * np.mean(figures.column(runs, "mean"), axis=0)
        style = {"color": color, "marker": marker, "ms": 3, "lw": 1}
        right.plot(sent * epochs / epochs[-1], means, **style)
    left.set(xscale="log", yscale="log", xlabel="MB that a worker sends")
    left.set_ylabel("test error, mean of workers, %")
    ticks = (2, 5, 10, 20, 50)
    left.set_yticks(ticks, [str(tick) for tick in ticks])
    left.set_yticks([], minor=True)
    left.set_title("after the training: mean of the seeds, and each seed", size=9)
    right.set(xscale="log", xlabel="MB that a worker has sent")
    right.set_title("during the training, mean of the seeds", size=9)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


main = study.script(__file__, digits, draw)

if __name__ == "__main__":
    main()
