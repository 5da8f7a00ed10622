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

from ...lib.config import Config
from ...lib.tables import Study, Table
from .table_cifar10 import make_rows

COMMON = (
    Config(task="fashion_mnist", model="mlp", model_options={"hidden": (64,)})
    .replace(split="whole", batch_size=32, epochs=20, evaluations=5)
    .replace(warmup=0.0167, decay_at=(0.5, 0.75), clip_norm=1.0)
    .replace(optimizer_options={"momentum": 0.9, "nesterov": False})
    .replace(weight_decay=5e-4, decayed="matrices")
)
SIZES = (16, 32, 64)
STUDY = Study(
    Table(
        "Fashion-MNIST: test accuracy of the averaged model in %",
        score="averaged",
        rows=tuple(
            row
            for size in SIZES
            for graph, methods in {
                "ring": ("baseline, rate 1", "baseline, rate 2", "A²CiD², rate 1"),
                "exponential": ("baseline, rate 1", "A²CiD², rate 1"),
                "complete": ("AR-SGD", "baseline, rate 1"),
            }.items()
            for row in make_rows(COMMON, [size], [graph], methods=methods)
        ),
    ),
    rates=(0.025, 0.05, 0.1, 0.2, 0.4),
)
