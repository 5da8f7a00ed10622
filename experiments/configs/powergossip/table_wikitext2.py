"""WikiText-2 and a three-layer LSTM on a ring of 16: perplexity against bytes.

Vogels, Karimireddy and Jaggi, PowerGossip, 2020, https://arxiv.org/abs/2008.01425.

Settings, including the grids that were searched, are those of the published code;
:mod:`experiments.configs.powergossip.table_cifar10` lists the differences. Each worker
keeps the same sixteenth of the text throughout the training. Words are lower-cased and
split at blanks; the published code splits them by spaCy. The score is the mean held-out
perplexity of the workers' models. No result of the paper could be read.

Expect the perplexity of untuned PowerGossip to be within a few percent of D-PSGD's, for
1/35 to 1/120 of the bytes.
"""

import functools

from ...lib.config import Config
from ...lib.tables import Choice, Table
from . import table_cifar10 as cifar10

COMMON = (
    Config(task="wikitext2", model="lstm", split="contiguous", topology="ring")
    .replace(workers=16, batch_size=64, epochs=90, evaluations=90, clip_norm=0.4)
    .replace(warmup_from=1.25, warmup=5 / 90, decay_at=(60 / 90, 80 / 90))
    .replace(optimizer_options={"momentum": None, "nesterov": False})
    .replace(rate_at_end=True)
)
_row = functools.partial(cifar10.row, COMMON, seeds=cifar10.SEEDS[:2])
_power = functools.partial(_row, options=cifar10.POWER, peak=38)
TABLE = Table(
    "WikiText-2, mean held-out perplexity of the workers",
    prepare="wikitext2",
    example=Choice("PowerGossip, 16 iterations"),
    hours=8,
    smoke={"model_options": {"width": 0.125, "layers": 1}},
    score="mean",
    accuracy=False,
    rows=(
        _row("all-reduce", cifar10.ALL_REDUCE, 38, tried=(28, 38)),
        _row("D-PSGD", cifar10.DPSGD, 38, tried=(28, 38)),
        # The published code tried the consensus rates 0.01 and 0.1.
        _row("CHOCO, top 1 %", cifar10.CHOCO_TOP, 38, consensus_rate=0.01),
        # The published code tried the consensus rates 0.4, 0.6, 0.8 and 1.
        _row("CHOCO, sign", cifar10.CHOCO_SIGN, 38, consensus_rate=0.8),
        # The published code tried the consensus rates 0.1, 0.2, 0.4 and 0.8. It does
        # not say which one was chosen.
        _row(
            "DeepSqueeze, sign",
            cifar10.DEEP_SQUEEZE,
            28,
            tried=(28, 38),
            seeds=cifar10.SEEDS[:1],
            consensus_rate=0.1,
        ),
        *(_power(f"PowerGossip, {n} iterations", iterations=n) for n in (8, 16, 32)),
        _power("PowerGossip, 32 it., random", iterations=32, warm_start=False),
        *(
            _power(f"PowerGossip, rank {r}, {n} it.", rank=r, iterations=n)
            for r, n in ((8, 4), (4, 8), (2, 16))
        ),
    ),
)
