r"""The paper's image task on Fashion-MNIST: quality against bytes on a ring of 8.

Vogels, Karimireddy and Jaggi, PowerGossip, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.table_fashion_mnist           # 45 minutes
    python -m experiments.powergossip.table_fashion_mnist --smoke   # a minute

The protocol is the paper's: 8 workers on a ring, data that are dealt out again in each
epoch, a ResNet with batch normalization, Nesterov momentum 0.9, weight decay 1e-4,
linear warm-up, decays after 50 and 75 % of the training, and averaging before the
step's update. There are 3 seeds. The task is scaled down: ResNet-8 replaces ResNet-20,
images of clothes of 14 x 14 pixels replace CIFAR-10, and 3 epochs of batches of 32
replace 300 epochs of batches of 128. Every method is tuned on the same grid of learning
rates with the first seed. Methods that need a consensus rate are also tuned on a grid
of consensus rates. PowerGossip is not tuned: it uses the learning rate of D-PSGD. Both
PowerGossip and D-PSGD are also shown with averaging after the update.

The data are those of Debian's package dataset-fashion-mnist. With averaging before the
update, expect PowerGossip with 2 iterations 0.6 points behind D-PSGD, for 1/28 of the
bytes. With averaging after the update D-PSGD is a point better; expect PowerGossip with
3 iterations a point behind it, for 1/21 of the bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ...lib.config import Config
from ...lib.tables import Row, Study, Table
from . import table_cifar10 as cifar10

COMMON = (
    Config(task="fashion_mnist", task_options={"pool": 2}, model="resnet8")
    .replace(split="reshuffled", topology="ring", workers=8)
    .replace(batch_size=32, epochs=3, evaluations=1)
    .replace(warmup=0.05, decay_at=(0.5, 0.75))
    .replace(optimizer_options={"momentum": 0.9, "nesterov": True})
    .replace(weight_decay=1e-4, decayed="all_but_norms")
)
AFTER = ", after the step"
"""The end of the names of methods that average after a step's update."""


def make_study(
    title: str,
    common: Config,
    *,
    before: Sequence[int],
    after: Sequence[int],
    rates: tuple[float, ...],
    consensus_rates: Mapping[str, tuple[float, ...]],
    smoke: Mapping[str, Any],
    accuracy: bool = True,
    **options: Any,
) -> Study:
    """Makes a study in which PowerGossip is not tuned.

    PowerGossip uses the learning rate of the D-PSGD that averages at the same time,
    before or after the update. The other methods are tuned on the grid `rates`, some
    also on a grid of `consensus_rates`.
    The numbers of iterations of PowerGossip are `before` if it averages before the
    update, and else `after`. The `options` are those of methods that average before it.
    """
    dpsgd, power = cifar10.DPSGD, cifar10.POWER
    name = {n: f"PowerGossip, {n} iteration{'s' * (n > 1)}" for n in (*before, *after)}
    late = {"overlap": False}
    methods = {
        "all-reduce": cifar10.ALL_REDUCE,
        "D-PSGD": dpsgd | options,
        **{name[n]: power | options | {"iterations": n} for n in before},
        "CHOCO, sign": cifar10.CHOCO_SIGN,
        "CHOCO, top 1 %": cifar10.CHOCO_TOP,
        "DeepSqueeze, sign": cifar10.DEEP_SQUEEZE,
        "Moniqua, 2 bits": cifar10.MONIQUA,
        "D-PSGD" + AFTER: dpsgd | late,
        **{name[n] + AFTER: power | late | {"iterations": n} for n in after},
    }
    rows = [Row(method, common.replace(**own)) for method, own in methods.items()]
    variants = {
        method: tuple({"consensus_rate": rate} for rate in tried)
        for method, tried in consensus_rates.items()
    }
    slow, fast = variants["Moniqua, 2 bits"]
    low, high = {"theta": 0.25}, {"theta": 1.0}
    variants["Moniqua, 2 bits"] = (slow | low, fast | low, fast | high)
    return Study(
        Table(title, tuple(rows), smoke, score="mean", accuracy=accuracy),
        rates=rates,
        variants=variants,
        borrowed={
            method: "D-PSGD" + AFTER * method.endswith(AFTER)
            for method in methods
            if method.startswith("PowerGossip")
        },
    )


STUDY = make_study(
    "PowerGossip on Fashion-MNIST: mean test accuracy of the workers in %",
    COMMON,
    before=(1, 2),
    after=(2, 3),
    consensus_rate=cifar10.RATE,
    rates=(0.1, 0.2, 0.4),
    consensus_rates={
        "CHOCO, sign": (0.15, 0.45, 0.9),
        "CHOCO, top 1 %": (0.0125, 0.0375, 0.1),
        "DeepSqueeze, sign": (0.01, 0.05, 0.2),
        "Moniqua, 2 bits": (0.005, 0.02),
    },
    smoke=cifar10.SHALLOW,
)
