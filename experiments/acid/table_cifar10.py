r"""CIFAR-10 and ResNet-18: accuracy by graph, number of workers, and rate.

Nabli, Belilovsky and Oyallon, A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning, 2023, https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.table_cifar10                     # lists the rows
    python -m experiments.prepare cifar10 --download             # once
    mpirun -n 16 python -m experiments.acid.table_cifar10 \
        --method "A²CiD², rate 1" --setting "ring of 16"
    python -m experiments.acid.table_cifar10 --smoke             # a minute, random data

Under mpirun workers do not wait for each other; without, the same is simulated on
virtual clocks. With Slurm:

    #!/bin/bash
    #SBATCH --nodes=4 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=8
    #SBATCH --time=02:00:00 --signal=TERM@120 --requeue
    srun python -m experiments.acid.table_cifar10 --method "A²CiD², rate 1" \
        --setting "ring of 16" --seeds 1 \
        -- --data-dir $DJAX_DATA --checkpoints $SCRATCH/acid-ring-16 --resume

Settings are those of the published program. Every worker has all the data, in an order
of its own; together they see it 300 times. The learning rate of 0.1 is for batches of
256 samples in all, and grows to that for the true number during the first 5 epochs; it
is decayed after half and three quarters of the training. The norm of a gradient is
clipped at 1. The score is the test accuracy of the averaged model, whose statistics of
the normalizations are recomputed; the program took those of worker 0. It holds no
result that could be put beside.

Expect all methods alike where there are few workers or the graph is complete, and on
large rings A²CiD² at rate 1 at or above its baseline at rate 2.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ..lib import papers
from ..lib.papers import Row, Table

METHODS = {
    "AR-SGD": "--algorithm all_reduce_sgd",
    "baseline, rate 1": "--algorithm adpsgd --rate 1",
    "baseline, rate 2": "--algorithm adpsgd --rate 2",
    "A²CiD², rate 1": "--algorithm a2cid2 --rate 1",
    "A²CiD², rate 2": "--algorithm a2cid2 --rate 2",
}
GRAPHS = ("complete", "exponential", "ring")
COMMON = """
    --optimizer-options momentum 0.9 nesterov False --split whole
    --decayed matrices --clip-norm 1 --linear-scaling 256 --warmup-from 0.1
"""
SMOKE = """
    --mock --model-options width 0.125 --batch-size 4 --epochs 1 --steps-per-epoch 3
    --evaluations 1
"""


def make_rows(sizes: Sequence[int], seeds: tuple[int, ...]) -> Iterator[Row]:
    """All methods on all graphs of some sizes.

    Args:
      sizes: numbers of workers.
      seeds: of the runs.

    Yields:
      The rows. AR-SGD has no graph; on complete graphs A²CiD² is its baseline.
    """
    for size in sizes:
        for method, arguments in METHODS.items():
            for graph in GRAPHS if method != "AR-SGD" else (None,):
                if graph == "complete" and method.startswith("A²CiD²"):
                    continue
                yield Row(
                    method,
                    arguments + (f" --topology {graph}" if graph else ""),
                    0.1,
                    setting=f"{graph or 'group'} of {size}",
                    seeds=seeds,
                    workers=size,
                )


TABLE = Table(
    "CIFAR-10, test accuracy of the averaged model in %",
    f"""
    --task cifar10 --model resnet18 --batch-size 128 --epochs 300 --evaluations 20
    --weight-decay 5e-4 --warmup 0.0167 --decay-at 0.5 0.75 {COMMON}
    """,
    workers=16,
    smoke=SMOKE,
    rows=tuple(make_rows((4, 8, 16, 32, 64), (1, 2, 3))),
    score="averaged",
)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    return papers.main(__file__, __doc__, TABLE, arguments)


if __name__ == "__main__":
    main()
