r"""Table 4: AG News, DistilBERT fine-tuned with Adam by 16 workers, alpha 0.1.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.table4_ag_news                # lists the rows
    python -m experiments.prepare ag_news --download             # once
    mpirun -n 16 python -m experiments.relaysgd.table4_ag_news \
        --method "Relay-Adam, chain" -- --model-options weights model.safetensors \
        --task-options vocabulary_file vocab.txt
    python -m experiments.relaysgd.table4_ag_news --smoke        # a minute, random data

`model.safetensors` and `vocab.txt` are those of distilbert-base-uncased. With Slurm:

    #!/bin/bash
    #SBATCH --nodes=4 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=8
    #SBATCH --time=04:00:00 --signal=TERM@120 --requeue
    srun python -m experiments.relaysgd.table4_ag_news --method "Relay-Adam, chain" \
        -- --model-options weights $BERT/model.safetensors \
        --task-options vocabulary_file $BERT/vocab.txt \
        --data-dir $DJAX_DATA --checkpoints $SCRATCH/relay-adam --resume

The score is the mean test accuracy of the workers at the last of 10 evaluations, the
paper's with the standard deviation of 3 seeds. Texts have at most 200 tokens. The
paper's code tells neither the number of workers, nor epochs, batch sizes or learning
rates: 16 workers of 32 texts, 10 epochs and the learning rates below are ours; `--tune`
tries the grids.

Expect Relay-Adam above D-PSGD with Adam and with quasi-global Adam, and near the
centralized one.
"""

from collections.abc import Sequence
from typing import Any

from ..lib import papers
from ..lib.papers import Row, Table

GRID = (1e-6, 5e-6, 1e-5, 5e-5)
TABLE = Table(
    "Table 4: AG News, mean test accuracy of the workers in %",
    """
    --task ag_news --model distilbert --optimizer adam --batch-size 32 --epochs 10
    --evaluations 10 --warmup 0.1 --decay-at
    """,
    workers=16,
    smoke="""
    --mock --task-options length 32 --model-options width 0.125 layers 2
    --batch-size 4 --epochs 1 --steps-per-epoch 3 --evaluations 1
    """,
    rows=(
        Row(
            "Adam, all-reduce",
            "--algorithm all_reduce_sgd --split iid",
            1e-5,
            expected="94.2 ± 0.1",
            tried=GRID,
        ),
        Row(
            "Relay-Adam, chain",
            "--algorithm relay_sgd --topology chain --split dirichlet:0.1",
            1e-5,
            expected="93.2 ± 0.1 (93.11 93.15 93.35)",
            tried=GRID,
        ),
        Row(
            "D-PSGD Adam, ring",
            "--algorithm dpsgd --topology ring --split dirichlet:0.1",
            1e-5,
            expected="87.3 ± 0.6 (87.84 87.40 86.64)",
            tried=GRID,
        ),
        Row(
            "quasi-global Adam, ring",
            "--algorithm quasi_global_adam --topology ring --split dirichlet:0.1",
            1e-5,
            expected="88.3 ± 0.7 (89.04 88.24 87.71)",
            tried=GRID,
        ),
    ),
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
