"""Table 3: ImageNet and ResNet-18 with EvoNorm, 16 workers, alpha 0.1.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

The score is the mean top-1 accuracy of the workers over the last 5 evaluations. The
paper's code tells neither the number of workers, nor epochs, batch sizes or learning
rates: 16 workers of 32 images, 90 epochs, decays after 30, 60 and 80, weight decay 1e-4
and the learning rates below are ours, of the size of Table 2's; `--tune` tries the
grids.

Expect RelaySGD above D-PSGD, and D² to diverge, as in Table 2 at alpha 0.1.
"""

from ...lib.config import Config
from ...lib.tables import Choice, Row, Table
from .table2_cifar10 import ALL_REDUCE, CHAIN, D2, QUASI_GLOBAL, SGP, TREES

COMMON = Config().replace(
    task="imagenet2012",
    model="resnet18_evonorm",
    split="dirichlet:0.1",
    workers=16,
    batch_size=32,
    epochs=90,
    warmup=5 / 90,
    decay_at=(30 / 90, 60 / 90, 80 / 90),
    optimizer_options={"momentum": 0.9, "nesterov": True},
    weight_decay=1e-4,
    decayed="all_but_norms",
    evaluations=90,
)
TABLE = Table(
    "Table 3: ImageNet, mean test accuracy of the workers in %",
    prepare="imagenet2012 --raw-dir TARS",
    example=Choice(
        "RelaySGD + momentum, double trees", more=("--precision", "bfloat16")
    ),
    hours=24,
    smoke={"task_options": {"size": 32}},
    score="mean",
    last=5,
    rows=(
        Row(
            "all-reduce",
            COMMON.replace(**ALL_REDUCE, learning_rate=0.2),
            expected="69.7",
            tried=(0.1, 0.2, 0.4),
        ),
        Row(
            "RelaySGD + momentum, double trees",
            COMMON.replace(**TREES, learning_rate=0.3),
            expected="60.0",
            tried=(0.15, 0.3, 0.6),
        ),
        Row(
            "RelaySGD + momentum, chain",
            COMMON.replace(**CHAIN, learning_rate=0.5),
            expected="60.0",
            tried=(0.25, 0.5, 1.0),
        ),
        Row(
            "D-PSGD + quasi-global momentum, ring",
            COMMON.replace(**QUASI_GLOBAL, learning_rate=0.1),
            expected="55.8",
            tried=(0.05, 0.1, 0.2),
        ),
        Row(
            "D-PSGD + quasi-global momentum, exponential",
            COMMON.replace(
                algorithm="quasi_global_momentum",
                topology="exponential",
                learning_rate=0.1,
            ),
            expected="61.5",
            tried=(0.05, 0.1, 0.2),
        ),
        Row(
            "D² + momentum, ring",
            COMMON.replace(**D2, learning_rate=0.05),
            expected="49.5, diverges at epoch 65",
            tried=(0.025, 0.05, 0.1),
        ),
        Row(
            "SGP + momentum, one-peer exponential",
            COMMON.replace(**SGP, learning_rate=0.1),
            expected="58.5",
            tried=(0.05, 0.1, 0.2),
        ),
    ),
)
