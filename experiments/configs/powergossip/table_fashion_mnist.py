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

from collections.abc import Iterable, Mapping
from typing import Any

from ...lib.config import Config
from ...lib.tables import Row, Study, Table
from .table_cifar10 import (
    ALL_REDUCE,
    CHOCO_SIGN,
    CHOCO_TOP,
    DEEP_SQUEEZE,
    DPSGD,
    MONIQUA,
    POWER,
    RATE,
)

COMMON = (
    Config(task="fashion_mnist", task_options={"pool": 2}, model="resnet8")
    .replace(split="reshuffled", topology="ring", workers=8)
    .replace(batch_size=32, epochs=3, evaluations=1)
    .replace(warmup=0.05, decay_at=(0.5, 0.75))
    .replace(optimizer_options={"momentum": 0.9, "nesterov": True})
    .replace(weight_decay=1e-4, decayed="all_but_norms")
)
AFTER = ", after the step"
"""Ends the names of methods that average after a step's update, not before."""


def make_methods(
    before: Iterable[int], after: Iterable[int], **options: Any
) -> dict[str, dict[str, Any]]:
    """All methods of a study, by their names.

    Args:
      before: iterations of PowerGossip where averaging comes before the update.
      after: likewise where it comes after.
      **options: of D-PSGD and PowerGossip, where averaging comes before the update.
    """
    power = {n: f"PowerGossip, {n} iteration{'s' * (n > 1)}" for n in (*before, *after)}
    late = {"overlap": False}
    return {
        "all-reduce": ALL_REDUCE,
        "D-PSGD": DPSGD | options,
        **{power[n]: POWER | options | {"iterations": n} for n in before},
        "CHOCO, sign": CHOCO_SIGN,
        "CHOCO, top 1 %": CHOCO_TOP,
        "DeepSqueeze, sign": DEEP_SQUEEZE,
        "Moniqua, 2 bits": MONIQUA,
        "D-PSGD" + AFTER: DPSGD | late,
        **{power[n] + AFTER: POWER | late | {"iterations": n} for n in after},
    }


def make_study(
    title: str,
    common: Config,
    methods: Mapping[str, Mapping[str, Any]],
    rates: tuple[float, ...],
    variants: Mapping[str, tuple[Mapping[str, Any], ...]],
    accuracy: bool = True,
) -> Study:
    """A study in which PowerGossip is not tuned.

    Args:
      title: of the table.
      common: the options of all rows.
      methods: how each averages.
      rates: learning rates that all but PowerGossip are tried with. It takes that of
        D-PSGD where this averages when it does, before or after the update.
      variants: consensus rates and what else a method is tried with.
      accuracy: whether the score is one.
    """
    rows = [Row(method, common.replace(**own)) for method, own in methods.items()]
    return Study(
        Table(title, tuple(rows), score="mean", accuracy=accuracy),
        rates=rates,
        variants=variants,
        borrowed={
            method: "D-PSGD" + AFTER * method.endswith(AFTER)
            for method in methods
            if method.startswith("PowerGossip")
        },
    )


def consensus_rates(*rates: float) -> tuple[dict[str, Any], ...]:
    """Variants that differ in the consensus rate alone."""
    return tuple({"consensus_rate": rate} for rate in rates)


STUDY = make_study(
    "PowerGossip on Fashion-MNIST: mean test accuracy of the workers in %",
    COMMON,
    make_methods(before=(1, 2), after=(2, 3), consensus_rate=RATE),
    rates=(0.1, 0.2, 0.4),
    variants={
        "CHOCO, sign": consensus_rates(0.15, 0.45, 0.9),
        "CHOCO, top 1 %": consensus_rates(0.0125, 0.0375, 0.1),
        "DeepSqueeze, sign": consensus_rates(0.01, 0.05, 0.2),
        "Moniqua, 2 bits": (
            {"consensus_rate": 0.005, "theta": 0.25},
            {"consensus_rate": 0.02, "theta": 0.25},
            {"consensus_rate": 0.02, "theta": 1.0},
        ),
    },
)
