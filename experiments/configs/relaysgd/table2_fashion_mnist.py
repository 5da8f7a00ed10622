r"""Table 2, on Fashion-MNIST: 16 workers, by the heterogeneity of their data.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.table2_fashion_mnist           # 90 minutes
    python -m experiments.relaysgd.table2_fashion_mnist --smoke   # a minute

The protocol is the paper's: 16 workers, batches of 32, classes split by Dirichlet
distributions with alpha 1, 0.1 and 0.01, Nesterov momentum 0.9, weight decay 1e-4,
warm-up over a fortieth of the training, decays after 75 and 90 % of it, and 3 seeds.
Each worker's accuracy is averaged over the last two evaluations, and the score is that
of the worst worker. The task is scaled down: an MLP replaces VGG-11, images of clothes
replace CIFAR-10, and 20 epochs replace 200. For each alpha, every method is tuned on
the same grid of learning rates with the first seed.

The data are those of Debian's package dataset-fashion-mnist. Expect RelaySGD to be as
good as all-reduce at every alpha, and D-PSGD to lose 12 points at alpha 0.01.
"""

from ...lib.config import Config
from ...lib.tables import Row, Study, Table
from . import table2_cifar10 as cifar10

COMMON = (
    Config(task="fashion_mnist", model="mlp", model_options={"hidden": (64,)})
    .replace(workers=16, batch_size=32, epochs=20, evaluations=5)
    .replace(warmup=0.025, decay_at=(0.75, 0.9), weight_decay=1e-4)
)
TRACKING = {"algorithm": "gradient_tracking_sgd", "topology": "ring"}
METHODS = {
    "all-reduce": (cifar10.ALL_REDUCE, "90.2 90.2 90.2"),
    "RelaySGD, chain": (cifar10.CHAIN, "89.5 89.2 88.4"),
    "RelaySGD, double trees": (cifar10.TREES, "90.2 89.5 89.1"),
    "RelaySum/Grad, chain": (cifar10.GRADIENTS, "86.9 87.8 68.6"),
    "D-PSGD, ring": (cifar10.DPSGD, "– – 46.3"),
    "D-PSGD + quasi-global momentum, ring": (cifar10.QUASI_GLOBAL, "89.5 84.8 63.3"),
    "D², ring": (cifar10.D2, "88.2 88.5 61.0"),
    "gradient tracking, ring": (TRACKING, "– – –"),
    "SGP, one-peer exponential": (cifar10.SGP, "89.5 89.2 87.5"),
}
"""The options of each method, and the paper's accuracies on CIFAR-10 with momentum for
each of `ALPHAS`."""

STUDY = Study(
    Table(
        "Table 2 on Fashion-MNIST: test accuracy of the worst worker in %",
        last=2,
        smoke={"epochs": 2, "evaluations": 2},
        rows=tuple(
            Row(
                method,
                COMMON.replace(**options | {"split": f"dirichlet:{alpha}"}),
                setting=f"alpha {alpha:g}",
                expected=accuracy,
            )
            for method, (options, expected) in METHODS.items()
            for alpha, accuracy in zip(cifar10.ALPHAS, expected.split(), strict=True)
        ),
    ),
    rates=(0.003125, 0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8),
)
