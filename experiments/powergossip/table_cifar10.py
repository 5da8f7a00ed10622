r"""CIFAR-10 and ResNet-20 on a ring of 8: quality against bytes.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.table_cifar10              # lists the rows
    python -m experiments.prepare cifar10 --download             # once
    mpirun -n 8 python -m experiments.powergossip.table_cifar10 \
        --method "PowerGossip, 1 iteration"
    python -m experiments.powergossip.table_cifar10 --smoke      # a minute, random data

With Slurm:

    #!/bin/bash
    #SBATCH --nodes=2 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=8
    #SBATCH --time=04:00:00 --signal=TERM@120 --requeue
    srun python -m experiments.powergossip.table_cifar10 \
        --method "PowerGossip, 1 iteration" --seeds 10 \
        -- --data-dir $DJAX_DATA --checkpoints $SCRATCH/power-cifar-10 --resume

Settings and bytes are those of :mod:`experiments.powergossip.settings` and
`experiments.powergossip.configurations`. All data are dealt out anew in each epoch, in
48 full batches of each worker; the published code has a 49th that is not full. The
score is the mean test accuracy of the workers; that of the averaged model, whose
statistics of the normalizations are recomputed, is in the metrics. No result of the
paper could be read.

Expect PowerGossip, untuned, to be as good as D-PSGD for a fiftieth of the bytes.
"""

from collections.abc import Sequence
from typing import Any

from ..lib import papers
from ..lib.papers import Table
from .rows import make_rows
from .settings import CIFAR10

TABLE = Table(
    "CIFAR-10, mean test accuracy of the workers in %",
    """
    --task cifar10 --model resnet20 --split reshuffled --topology ring
    --batch-size 128 --epochs 300 --evaluations 60 --weight-decay 1e-4
    --decayed all_but_norms --optimizer-options momentum 0.9 nesterov True
    --warmup 0.01667 --warmup-from 0.1 --rate-at-end --decay-at 0.5 0.75
    """,
    workers=8,
    smoke="""
    --mock --model-options width 0.125 depth 8 --batch-size 4 --epochs 1
    --steps-per-epoch 3 --evaluations 1
    """,
    rows=make_rows(CIFAR10),
    score="mean",
)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    return papers.main(__file__, __doc__, TABLE, arguments)


if __name__ == "__main__":
    main()
