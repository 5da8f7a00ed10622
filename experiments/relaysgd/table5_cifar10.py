r"""Table 5: CIFAR-10 and VGG-11, 16 workers, where messages get lost.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.table5_cifar10                # lists the rows
    python -m experiments.prepare cifar10 --download             # once
    mpirun -n 16 python -m experiments.relaysgd.table5_cifar10 --setting "10 % lost"
    python -m experiments.relaysgd.table5_cifar10 --smoke        # a minute, random data

The protocol is that of :mod:`experiments.relaysgd.table2_cifar10`. With Slurm:

    #!/bin/bash
    #SBATCH --nodes=4 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=8
    #SBATCH --time=04:00:00 --signal=TERM@120 --requeue
    srun python -m experiments.relaysgd.table5_cifar10 \
        --method "RelaySGD, double trees" --setting "10 % lost" \
        -- --data-dir $DJAX_DATA --checkpoints $SCRATCH/relay-loss-10 --resume

Alpha is 0.01, momentum 0.9, the seed 1. RelaySGD takes for what is lost the model that
it had last. Where D-PSGD misses a message it divides by the weight of those that came;
the paper's code did so only after the submission, so that its "diverges" need not come
back. :mod:`experiments.relaysgd.table5_message_loss` is the same on digits, in minutes.
"""

from collections.abc import Sequence
from typing import Any

from ..lib import papers
from ..lib.papers import Row, Table
from .table2_cifar10 import COMMON, MOMENTUM, SMOKE

LOSSES = {"reliable": 0.0, "1 % lost": 0.01, "10 % lost": 0.1}
_LINES = (
    (
        "RelaySGD, double trees",
        "--algorithm relay_sgd --topology double_binary_trees --missing latest",
        (0.3, 0.3, 0.3),
        ("89.2", "89.3", "89.3"),
    ),
    (
        "D-PSGD + quasi-global momentum, ring",
        "--algorithm quasi_global_momentum --topology ring",
        (0.05, 0.05, 0.05),
        ("69.3", "diverges", "diverges"),
    ),
    (
        "D², ring",
        "--algorithm d2_sgd --topology ring --no-check",
        (0.025, 0.025, 0.025),
        ("87.4", "diverges", "diverges"),
    ),
    (
        "SGP, one-peer exponential",
        "--algorithm sgp --rounds 2",
        (0.1, 0.1, 0.05),
        ("88.5", "88.6", "88.1"),
    ),
)

TABLE = Table(
    "Table 5: CIFAR-10, test accuracy of the worst worker in %, messages lost",
    f"{COMMON} --split dirichlet:0.01 {MOMENTUM}",
    workers=16,
    smoke=SMOKE,
    rows=tuple(
        Row(
            method,
            f"{arguments} --drop-probability {probability}",
            rate,
            setting=setting,
            expected=expected,
            seeds=(1,),
        )
        for method, arguments, rates, accuracies in _LINES
        for (setting, probability), rate, expected in zip(
            LOSSES.items(), rates, accuracies, strict=True
        )
    ),
    last=2,
)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    return papers.main(__file__, __doc__, TABLE, arguments)


if __name__ == "__main__":
    main()
