r"""The paper's image task on Fashion-MNIST: quality against bytes on a ring of 8.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.table_fashion_mnist           # 45 minutes
    python -m experiments.powergossip.table_fashion_mnist --smoke   # a minute

The paper's protocol: 8 workers on a ring, data dealt out anew in each epoch, ResNet
with batch normalization, Nesterov momentum 0.9, weight decay 1e-4, linear warm-up,
decays after 50 and 75 % of the training, averaging before the step's update; 3 seeds.
Scaled down: ResNet-8 in place of ResNet-20, clothes of 14 x 14 pixels in place of
CIFAR-10, 3 epochs of batches of 32 in place of 300 of 128. Every method is tuned on the
same grid of learning rates, and those that need a consensus rate on a grid of these,
too, with the first seed; PowerGossip is not tuned: it takes D-PSGD's learning rate.
Both are shown with averaging after the update, too.

The data are those of Debian's package dataset-fashion-mnist. Expect PowerGossip with 2
iterations 0.6 points behind D-PSGD for 1/28 of the bytes, and with averaging after the
update, where D-PSGD is a point better, with 3 a point behind for 1/21.
"""

import functools
from collections.abc import Sequence
from typing import Any

from ..lib import study
from ..lib.papers import Row, Table
from ..lib.study import Study
from . import tradeoff

METHODS = {
    "all-reduce": "--algorithm all_reduce_sgd",
    "D-PSGD": "--algorithm dpsgd --overlap --consensus-rate 1.308",
    "PowerGossip, 1 iteration": "--algorithm power_gossip --overlap "
    "--consensus-rate 1.308",
    "PowerGossip, 2 iterations": "--algorithm power_gossip --overlap "
    "--consensus-rate 1.308 --iterations 2",
    "CHOCO, sign": "--algorithm choco_sgd --overlap --compressor sign",
    "CHOCO, top 1 %": "--algorithm choco_sgd --overlap --compressor top_k "
    "--compressor-options fraction 0.01",
    "DeepSqueeze, sign": "--algorithm deep_squeeze --overlap --compressor sign",
    "Moniqua, 2 bits": "--algorithm moniqua --overlap",
    "D-PSGD, after the step": "--algorithm dpsgd",
    "PowerGossip, 2 iterations, after the step": "--algorithm power_gossip "
    "--iterations 2",
    "PowerGossip, 3 iterations, after the step": "--algorithm power_gossip "
    "--iterations 3",
}
TUNED = {
    "CHOCO, sign": ("0.15", "0.45", "0.9"),
    "CHOCO, top 1 %": ("0.0125", "0.0375", "0.1"),
    "DeepSqueeze, sign": ("0.01", "0.05", "0.2"),
    "Moniqua, 2 bits": (
        "0.005 --theta 0.25",
        "0.02 --theta 0.25",
        "0.02 --theta 1",
    ),
}
STUDY = Study(
    Table(
        "PowerGossip on Fashion-MNIST: mean test accuracy of the workers in %",
        """
        --task fashion_mnist --task-options pool 2 --model resnet8 --split reshuffled
        --topology ring --batch-size 32 --epochs 3 --evaluations 1 --weight-decay 1e-4
        --decayed all_but_norms --optimizer-options momentum 0.9 nesterov True
        --warmup 0.05 --decay-at 0.5 0.75
        """,
        workers=8,
        smoke="""
        --mock --model-options width 0.125 --epochs 1 --steps-per-epoch 2
        --evaluations 1 --batch-size 4
        """,
        rows=tuple(
            Row(method, arguments, learning_rate=0.1)
            for method, arguments in METHODS.items()
        ),
        score="mean",
    ),
    rates=(0.1, 0.2, 0.4),
    variants={
        method: tuple(f"--consensus-rate {rate}" for rate in rates)
        for method, rates in TUNED.items()
    },
    borrowed=tradeoff.owners(METHODS),
)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    picture = functools.partial(
        tradeoff.draw, "mean test accuracy of the workers, %", STUDY
    )
    return study.main(__file__, __doc__, STUDY, picture, arguments)


if __name__ == "__main__":
    main()
