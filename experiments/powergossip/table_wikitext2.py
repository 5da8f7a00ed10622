r"""WikiText-2 and a three-layer LSTM on a ring of 16: perplexity against bytes.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.table_wikitext2            # lists the rows
    python -m experiments.prepare wikitext2                      # says where files go
    mpirun -n 16 python -m experiments.powergossip.table_wikitext2 \
        --method "PowerGossip, 16 iterations"
    python -m experiments.powergossip.table_wikitext2 --smoke    # a minute, random data

With Slurm:

    #!/bin/bash
    #SBATCH --nodes=4 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=8
    #SBATCH --time=08:00:00 --signal=TERM@120 --requeue
    srun python -m experiments.powergossip.table_wikitext2 \
        --method "PowerGossip, 16 iterations" --seeds 10 \
        -- --data-dir $DJAX_DATA --checkpoints $SCRATCH/power-wikitext-10 --resume

Settings are those of :mod:`experiments.powergossip.settings`. Every worker has a
sixteenth of the text, always the same. Words are lower-cased and split at blanks, there
by spaCy. The score is the mean held-out perplexity of the workers' models. No result of
the paper could be read.

Expect PowerGossip, untuned, to be within some percent of D-PSGD for 1/35 to 1/120 of
the bytes.
"""

from collections.abc import Sequence
from typing import Any

from ..lib import papers
from ..lib.papers import Table
from .rows import make_rows
from .settings import WIKITEXT2

TABLE = Table(
    "WikiText-2, mean held-out perplexity of the workers",
    """
    --task wikitext2 --model lstm --split contiguous --topology ring --batch-size 64
    --epochs 90 --evaluations 90 --clip-norm 0.4
    --optimizer-options momentum None nesterov False
    --warmup 0.05556 --warmup-from 1.25 --rate-at-end --decay-at 0.66667 0.88889
    """,
    workers=16,
    smoke="""
    --mock --model-options width 0.125 --batch-size 4 --epochs 1 --steps-per-epoch 3
    --evaluations 1
    """,
    rows=make_rows(WIKITEXT2),
    score="mean",
    accuracy=False,
)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    return papers.main(__file__, __doc__, TABLE, arguments)


if __name__ == "__main__":
    main()
