r"""A²CiD² and its baseline on Fashion-MNIST: graphs, numbers of workers, and rates.

Nabli, Belilovsky and Oyallon, A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning, 2023, https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.table_fashion_mnist           # 30 minutes
    python -m experiments.acid.table_fashion_mnist --smoke   # a minute

The paper's protocol, on virtual clocks: every worker has all the data, in an order of
its own; together they see it 20 times, however many they are; heavy-ball momentum 0.9,
weight decay 5e-4 without biases, gradients clipped at norm 1, a linear warm-up over a
sixtieth of the training, decays after 50 and 75 % of it; 3 seeds. Scaled down: an MLP
in place of ResNet-18, images of clothes in place of CIFAR-10, batches of 32 in place of
128, 20 epochs in place of 300. Every method is tuned on the same grid of learning
rates, for each graph and number of workers, with the first seed.

The data are those of Debian's package dataset-fashion-mnist. Expect the consensus
distance of A²CiD² on the ring of 64 to end at a hundredth of the baseline's at twice
the rate, and its accuracy to be the baseline's: it is noise of gradients that holds
these runs back, see :mod:`experiments.acid.curvature`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..lib import study
from ..lib.papers import Row, Table
from ..lib.study import Study

SIZES, GRAPHS = (16, 32, 64), ("ring", "exponential", "complete")
METHODS = {
    "AR-SGD": ("--algorithm all_reduce_sgd", "tab:gray", "-"),
    "baseline, rate 1": ("--algorithm adpsgd --rate 1", "black", "-"),
    "baseline, rate 2": ("--algorithm adpsgd --rate 2", "black", "--"),
    "A²CiD², rate 1": ("--algorithm a2cid2 --rate 1", "tab:blue", "-"),
}
CURVES = {
    "loss": "training loss",
    "mean": "accuracy, mean of workers",
    "consensus_distance": "consensus distance",
}


def _applies(method: str, graph: str) -> bool:
    """Not everything is of interest everywhere, or differs."""
    if method == "AR-SGD":
        return graph == "complete"
    if method == "baseline, rate 2":
        return graph == "ring"
    return not (graph == "complete" and method.startswith("A²CiD²"))


STUDY = Study(
    Table(
        "Fashion-MNIST: test accuracy of the averaged model in %",
        """
        --task fashion_mnist --model mlp --model-options hidden "(64,)" --split whole
        --optimizer-options momentum 0.9 nesterov False --weight-decay 5e-4
        --decayed matrices --clip-norm 1 --batch-size 32 --epochs 20 --evaluations 5
        --warmup 0.0167 --decay-at 0.5 0.75
        """,
        workers=16,
        smoke="--mock --epochs 1 --steps-per-epoch 2 --evaluations 2 --batch-size 4",
        rows=tuple(
            Row(
                method,
                arguments if method == "AR-SGD" else f"{arguments} --topology {graph}",
                learning_rate=0.1,
                setting=f"{graph} of {size}",
                workers=size,
            )
            for size in SIZES
            for graph in GRAPHS
            for method, (arguments, _, _) in METHODS.items()
            if _applies(method, graph)
        ),
        score="averaged",
    ),
    rates=(0.025, 0.05, 0.1, 0.2, 0.4),
)


def draw(records: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy against the number of workers, and curves on the largest ring."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, 3)
    for axes, graph in zip(panels[0], GRAPHS, strict=True):
        if axes is not panels[0, 0]:
            axes.sharey(panels[0, 0])
        for method, (_, color, style) in METHODS.items():
            points = []
            for size in SIZES:
                runs = _runs(records, method, f"{graph} of {size}")
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
        for method, (_, color, style) in METHODS.items():
            for run in _runs(records, method, f"ring of {SIZES[-1]}")[:1]:
                axes.plot(run["epoch"], run[key], style, color=color, label=method)
        axes.set(xlabel="epoch of all workers together", ylabel=label)
    panels[1, 1].set_title(f"ring of {SIZES[-1]}, first seed")
    panels[1, 2].set_yscale("log")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    panels[0, 2].legend(fontsize=8)
    return figure


def _runs(records, method: str, setting: str) -> list[dict[str, Any]]:
    """The chosen runs of a row that have a score."""
    rows = [
        row
        for row in STUDY.table.rows
        if (row.method, row.setting) == (method, setting)
    ]
    found = [run for row in rows for run in study.chosen(STUDY, records, row)]
    return [run for run in found if run["score"] is not None]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    return study.main(__file__, __doc__, STUDY, draw, arguments)


if __name__ == "__main__":
    main()
