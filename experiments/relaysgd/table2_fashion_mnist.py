r"""Table 2, on Fashion-MNIST: 16 workers, whose data differ more or less.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.table2_fashion_mnist           # 90 minutes
    python -m experiments.relaysgd.table2_fashion_mnist --smoke   # a minute

The paper's protocol: 16 workers, batches of 32, classes split by Dirichlet
distributions of alpha 1, 0.1 and 0.01, Nesterov momentum 0.9, weight decay 1e-4,
warm-up over a fortieth of the training, decays after 75 and 90 % of it, 3 seeds. The
score is the accuracy of the worst worker, of each worker's mean over the last two
evaluations. Scaled down: an MLP in place of VGG-11, images of clothes in place of
CIFAR-10, 20 epochs in place of 200. Every method is tuned on the same grid of learning
rates, for each alpha, with the first seed.

The data are those of Debian's package dataset-fashion-mnist. Expect RelaySGD as good as
all-reduce at every alpha, and D-PSGD to lose 12 points at 0.01.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..lib import study
from ..lib.papers import Row, Table
from ..lib.study import Study

ALPHAS = (1.0, 0.1, 0.01)
METHODS = {
    "all-reduce": ("--algorithm all_reduce_sgd", "black"),
    "RelaySGD, chain": ("--algorithm relay_sgd --topology chain", "tab:red"),
    "RelaySGD, double trees": (
        "--algorithm relay_sgd --topology double_binary_trees",
        "tab:pink",
    ),
    "RelaySum/Grad, chain": (
        "--algorithm relay_sgd_grad --topology chain",
        "tab:orange",
    ),
    "D-PSGD, ring": ("--algorithm dpsgd --topology ring", "tab:purple"),
    "D-PSGD + quasi-global momentum, ring": (
        "--algorithm quasi_global_momentum --topology ring",
        "tab:olive",
    ),
    "D², ring": ("--algorithm d2_sgd --topology ring --no-check", "tab:blue"),
    "gradient tracking, ring": (
        "--algorithm gradient_tracking_sgd --topology ring",
        "tab:gray",
    ),
    "SGP, one-peer exponential": ("--algorithm sgp --rounds 2", "tab:cyan"),
}
PAPER = {
    "all-reduce": ("90.2", "90.2", "90.2"),
    "RelaySGD, chain": ("89.5", "89.2", "88.4"),
    "RelaySGD, double trees": ("90.2", "89.5", "89.1"),
    "RelaySum/Grad, chain": ("86.9", "87.8", "68.6"),
    "D-PSGD, ring": ("–", "–", "46.3"),
    "D-PSGD + quasi-global momentum, ring": ("89.5", "84.8", "63.3"),
    "D², ring": ("88.2", "88.5", "61.0"),
    "gradient tracking, ring": ("–", "–", "–"),
    "SGP, one-peer exponential": ("89.5", "89.2", "87.5"),
}
"""With momentum, on CIFAR-10, for each of `ALPHAS`."""

STUDY = Study(
    Table(
        "Table 2 on Fashion-MNIST: test accuracy of the worst worker in %",
        """
        --task fashion_mnist --model mlp --model-options hidden "(64,)"
        --batch-size 32 --epochs 20 --evaluations 5 --warmup 0.025
        --decay-at 0.75 0.9 --weight-decay 1e-4
        """,
        workers=16,
        smoke="--mock --epochs 2 --steps-per-epoch 2 --evaluations 2 --batch-size 4",
        rows=tuple(
            Row(
                method,
                f"{arguments} --split dirichlet:{alpha}",
                learning_rate=0.1,
                setting=f"alpha {alpha:g}",
                expected=PAPER[method][i],
            )
            for method, (arguments, _) in METHODS.items()
            for i, alpha in enumerate(ALPHAS)
        ),
        last=2,
    ),
    rates=(0.003125, 0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8),
)


def draw(records: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy against alpha, and of each worker against epochs at the smallest."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions = np.arange(len(ALPHAS))
    for method, (_, color) in METHODS.items():
        rows = [row for row in STUDY.table.rows if row.method == method]
        runs = [study.chosen(STUDY, records, row) for row in rows]
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
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    return study.main(__file__, __doc__, STUDY, draw, arguments)


if __name__ == "__main__":
    main()
