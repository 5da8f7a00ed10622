"""Table 3: ImageNet and ResNet-18 with EvoNorm, for 16 workers at alpha 0.1.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

The score is the mean top-1 accuracy of the workers over the last 5 evaluations. The
paper's code contains neither the number of workers, nor epochs, batch sizes or learning
rates. Our choices are 16 workers with batches of 32 images, 90 epochs, decays after
epochs 30, 60 and 80, and weight decay 1e-4. The learning rates below are similar to
those of Table 2; `--tune` tries the grids.

Expect RelaySGD above D-PSGD, and D² to diverge, as in Table 2 at alpha 0.1.
"""

from ...lib.config import Config
from ...lib.tables import Choice, Row, Table
from .table2_cifar10 import ALL_REDUCE, CHAIN, D2, QUASI_GLOBAL, SGP, TREES

COMMON = (
    Config(task="imagenet2012", model="resnet18_evonorm", workers=16)
    .replace(batch_size=32, epochs=90, evaluations=90)
    .replace(warmup=5 / 90, decay_at=(30 / 90, 60 / 90, 80 / 90))
    .replace(optimizer_options={"momentum": 0.9, "nesterov": True})
    .replace(weight_decay=1e-4, decayed="all_but_norms", split="dirichlet:0.1")
)
GRID = (0.05, 0.1, 0.2)
EXPONENTIAL = QUASI_GLOBAL | {"topology": "exponential"}
DIVERGES = "49.5, diverges at epoch 65"
LINES = {
    "all-reduce": (ALL_REDUCE, "69.7", 0.2, (0.1, 0.2, 0.4)),
    "RelaySGD + momentum, double trees": (TREES, "60.0", 0.3, (0.15, 0.3, 0.6)),
    "RelaySGD + momentum, chain": (CHAIN, "60.0", 0.5, (0.25, 0.5, 1.0)),
    "D-PSGD + quasi-global momentum, ring": (QUASI_GLOBAL, "55.8", 0.1, GRID),
    "D-PSGD + quasi-global momentum, exponential": (EXPONENTIAL, "61.5", 0.1, GRID),
    "D² + momentum, ring": (D2, DIVERGES, 0.05, (0.025, 0.05, 0.1)),
    "SGP + momentum, one-peer exponential": (SGP, "58.5", 0.1, GRID),
}
"""The options of each method, the paper's accuracy, its learning rate, and the grid."""

TABLE = Table(
    "Table 3: ImageNet, mean test accuracy of the workers in %",
    prepare="imagenet2012 --raw-dir TARS",
    example=Choice(
        "RelaySGD + momentum, double trees", more=("--precision", "bfloat16")
    ),
    hours=24,
    smoke={
        "task_options": {"size": 32},
        "model_options": {"width": 0.125, "blocks": (1, 1)},
    },
    score="mean",
    last=5,
    rows=tuple(
        Row(
            method,
            COMMON.replace(**{"learning_rate": rate} | options),
            expected=expected,
            tried=grid,
        )
        for method, (options, expected, rate, grid) in LINES.items()
    ),
)
