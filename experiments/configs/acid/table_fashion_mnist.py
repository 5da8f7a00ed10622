r"""A²CiD² and its baseline on Fashion-MNIST: graphs, numbers of workers, and rates.

Nabli, Belilovsky and Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.table_fashion_mnist           # 30 minutes
    python -m experiments.acid.table_fashion_mnist --smoke   # a minute

The protocol is the paper's, on virtual clocks. Each worker has all the data, in an
order of its own, and all workers together see the data 20 times for any number of
workers. Momentum is heavy-ball with 0.9, weight decay is 5e-4 except for biases, and
gradients are clipped at norm 1. The learning rate has a linear warm-up over a sixtieth
of the training, and decays after 50 and 75 % of it. There are 3 seeds. The task is
scaled down: an MLP replaces ResNet-18, images of clothes replace CIFAR-10, batches have
32 samples instead of 128, and there are 20 epochs instead of 300. For each graph and
size, every method is tuned on the same grid of learning rates with the first seed.

The data are those of Debian's package dataset-fashion-mnist. On the ring of 64, expect
the final consensus distance of A²CiD² at rate 1 to be a hundredth of the baseline's at
rate 2, but the same accuracy: these runs are limited by the noise of gradients, see
:mod:`experiments.acid.curvature`.
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
