"""Table 5: CIFAR-10 and VGG-11, for 16 workers whose messages may be lost.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

The protocol is that of :mod:`experiments.configs.relaysgd.table2_cifar10`, with alpha
0.01, momentum 0.9 and the seed 1. If a message of RelaySGD is lost, the receiver puts
its own latest average in its place. If a message of D-PSGD is lost, the receiver
divides by the total weight of the messages that arrived. The paper's code does so only
since a correction after the submission, so D-PSGD may converge here where the paper has
"diverges". :mod:`experiments.relaysgd.table5_message_loss` makes the table on digits.
"""

from ...lib.tables import Choice, Row, Table
from .table2_cifar10 import D2, MOMENTUM, QUASI_GLOBAL, SGP, SHALLOW, TREES

COMMON = MOMENTUM.replace(split="dirichlet:0.01")
LOSSES = {"reliable": 0.0, "1 % lost": 0.01, "10 % lost": 0.1}
LINES = {
    "RelaySGD, double trees": (
        TREES | {"missing": "latest"},
        (0.3, 0.3, 0.3),
        ("89.2", "89.3", "89.3"),
    ),
    "D-PSGD + quasi-global momentum, ring": (
        QUASI_GLOBAL,
        (0.05, 0.05, 0.05),
        ("69.3", "diverges", "diverges"),
    ),
    "D², ring": (D2, (0.025, 0.025, 0.025), ("87.4", "diverges", "diverges")),
    "SGP, one-peer exponential": (SGP, (0.1, 0.1, 0.05), ("88.5", "88.6", "88.1")),
}
"""The options of each method, and its learning rate and the paper's accuracy for each
of `LOSSES`."""

TABLE = Table(
    "Table 5: CIFAR-10, test accuracy of the worst worker in %, messages lost",
    prepare="cifar10 --download",
    example=Choice("RelaySGD, double trees", "10 % lost"),
    last=2,
    smoke=SHALLOW,
    rows=tuple(
        Row(
            method,
            COMMON.replace(**options, learning_rate=rate, drop_probability=probability),
            setting=setting,
            expected=accuracy,
            seeds=(1,),
        )
        for method, (options, rates, expected) in LINES.items()
        for (setting, probability), rate, accuracy in zip(
            LOSSES.items(), rates, expected, strict=True
        )
    ),
)
