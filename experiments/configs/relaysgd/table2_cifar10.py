"""Table 2: CIFAR-10 and VGG-11, 16 workers, whose data differ more or less.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

The score is the test accuracy of the worst worker, of each worker's mean over epochs
196 and 200; the paper's is the mean of seeds 1, 2 and 3. Learning rates were tuned with
seed 1 (`--tune` repeats it) on the grids that are listed. D²'s learning rate that is
written as 0.0126 is taken for the grid's 0.0125. A run is given up if no worker has
11 % at epoch 20.

Expect RelaySGD to keep its accuracy from alpha 1 to 0.01, and D-PSGD to lose it.
"""

from ...lib.config import Config
from ...lib.tables import Choice, Row, Table

COMMON = Config().replace(
    task="cifar10",
    model="vgg11",
    workers=16,
    batch_size=32,
    epochs=200,
    warmup=5 / 200,
    decay_at=(150 / 200, 180 / 200),
    weight_decay=1e-4,
    decayed="all_but_norms",
    evaluations=50,
    collapse=(20.0, 0.11),
)
PLAIN = COMMON.replace(optimizer_options={"momentum": None, "nesterov": False})
MOMENTUM = COMMON.replace(optimizer_options={"momentum": 0.9, "nesterov": True})
ALPHAS = (1.0, 0.1, 0.01)

ALL_REDUCE = {"algorithm": "all_reduce_sgd", "split": "iid"}
TREES = {"algorithm": "relay_sgd", "topology": "double_binary_trees"}
CHAIN = {"algorithm": "relay_sgd", "topology": "chain"}
GRADIENTS = {"algorithm": "relay_sgd_grad", "topology": "chain"}
DPSGD = {"algorithm": "dpsgd", "topology": "ring"}
QUASI_GLOBAL = {"algorithm": "quasi_global_momentum", "topology": "ring"}
D2 = {"algorithm": "d2_sgd", "topology": "ring", "check": False}
SGP = {"algorithm": "sgp", "rounds": 2}


def for_each_alpha(
    method: str,
    config: Config,
    rates: tuple[float, float, float],
    expected: tuple[str, str, str],
    tried: tuple[float, ...],
    uneven: tuple[float, ...] = (),
    even: tuple[float, ...] = (),
) -> list[Row]:
    """A line of the paper's table.

    Args:
      method: who averages.
      config: all but split and learning rate.
      rates: the paper's learning rates, for each of `ALPHAS`.
      expected: its accuracies, likewise.
      tried: its grid.
      uneven: what it also tried where alpha is below 1.
      even: what it also tried where alpha is 1.
    """
    return [
        Row(
            method,
            config.replace(
                learning_rate=rate, split=config.split or f"dirichlet:{alpha}"
            ),
            setting=f"alpha {alpha:g}",
            expected=accuracy,
            tried=tuple(sorted(tried + (even if alpha == 1 else uneven))),
        )
        for alpha, rate, accuracy in zip(ALPHAS, rates, expected, strict=True)
    ]


TABLE = Table(
    "Table 2: CIFAR-10, test accuracy of the worst worker in %",
    prepare="cifar10 --download",
    example=Choice("RelaySGD + momentum, chain", "alpha 0.01"),
    last=2,
    rows=(
        *for_each_alpha(
            "all-reduce",
            PLAIN.replace(**ALL_REDUCE),
            rates=(0.1, 0.1, 0.1),
            expected=("87.0 (87.3 86.9 86.9)",) * 3,
            tried=(0.1, 0.2, 0.4, 0.8, 1.6),
        ),
        *for_each_alpha(
            "all-reduce + momentum",
            MOMENTUM.replace(**ALL_REDUCE),
            rates=(0.1, 0.1, 0.1),
            expected=("90.2 (90.4 89.8 90.3)",) * 3,
            tried=(0.05, 0.1, 0.2),
        ),
        *for_each_alpha(
            "RelaySGD, double trees",
            PLAIN.replace(**TREES),
            rates=(1.2, 0.6, 0.3),
            expected=("87.4", "86.9", "84.6 (85.7 82.0 86.3)"),
            tried=(0.3, 0.6, 1.2),
        ),
        *for_each_alpha(
            "RelaySGD + momentum, double trees",
            MOMENTUM.replace(**TREES),
            rates=(0.6, 0.3, 0.15),
            expected=(
                "90.2 (90.3 90.0 90.5)",
                "89.5 (89.4 89.9 89.2)",
                "89.1 (89.3 89.2 88.9)",
            ),
            tried=(0.15, 0.3, 0.6),
            uneven=(0.075,),
        ),
        *for_each_alpha(
            "RelaySGD, chain",
            PLAIN.replace(**CHAIN),
            rates=(2.0, 2.0, 1.0),
            expected=("87.3", "87.2", "86.5"),
            tried=(0.5, 1.0, 2.0),
        ),
        *for_each_alpha(
            "RelaySGD + momentum, chain",
            MOMENTUM.replace(**CHAIN),
            rates=(0.5, 0.5, 0.125),
            expected=("89.5", "89.2", "88.4"),
            tried=(0.25, 0.5, 1.0),
            uneven=(0.125,),
        ),
        *for_each_alpha(
            "D-PSGD, ring",
            PLAIN.replace(**DPSGD),
            rates=(0.4, 0.1, 0.2),
            expected=("87.4", "79.9", "53.9"),
            tried=(0.05, 0.1, 0.2, 0.4),
            uneven=(0.0125, 0.025),
        ),
        *for_each_alpha(
            "D-PSGD + quasi-global momentum, ring",
            MOMENTUM.replace(**QUASI_GLOBAL),
            rates=(0.1, 0.025, 0.05),
            expected=("89.5", "84.8", "63.3 (70.1 64.6 55.2)"),
            tried=(0.05, 0.1),
            uneven=(0.025,),
            even=(0.2,),
        ),
        *for_each_alpha(
            "D², ring",
            PLAIN.replace(**D2),
            rates=(0.2, 0.2, 0.1),
            expected=("87.2", "84.0", "38.2"),
            tried=(0.05, 0.1, 0.2),
        ),
        *for_each_alpha(
            "D² + momentum, ring",
            MOMENTUM.replace(**D2),
            rates=(0.05, 0.05, 0.0125),
            expected=("88.2", "88.5", "61.0 (86.4 86.5 10.1)"),
            tried=(0.05, 0.1, 0.2),
            uneven=(0.0125, 0.025),
        ),
        *for_each_alpha(
            "SGP, one-peer exponential",
            PLAIN.replace(**SGP),
            rates=(0.4, 0.2, 0.2),
            expected=("87.4", "86.7", "86.7"),
            tried=(0.05, 0.1, 0.2, 0.4),
        ),
        *for_each_alpha(
            "SGP + momentum, one-peer exponential",
            MOMENTUM.replace(**SGP),
            rates=(0.1, 0.1, 0.025),
            expected=("89.5", "89.2", "87.5"),
            tried=(0.05, 0.1, 0.2, 0.4),
            uneven=(0.025,),
        ),
        *for_each_alpha(
            "RelaySum/Grad, chain",
            PLAIN.replace(**GRADIENTS),
            rates=(0.4, 0.4, 0.4),
            expected=("88.8", "88.5", "83.5"),
            tried=(0.1, 0.2, 0.4),
        ),
        *for_each_alpha(
            "RelaySum/Grad + momentum, chain",
            MOMENTUM.replace(**GRADIENTS),
            rates=(0.05, 0.1, 0.025),
            expected=("86.9", "87.8", "68.6"),
            tried=(0.05, 0.1),
            uneven=(0.025,),
        ),
    ),
)
