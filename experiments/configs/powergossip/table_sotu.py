r"""The paper's language task on the State of the Union: perplexity against bytes.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.table_sotu           # an hour
    python -m experiments.powergossip.table_sotu --smoke   # a minute

The paper's protocol: a ring, every worker with its consecutive part of the text, here
an era of its own; an LSTM whose decoder is its embedding, gradients through 30 words,
clipped at norm 0.4, SGD without momentum, linear warm-up, decays after two thirds and
eight ninths of the training, averaging before the step's update; 3 seeds. Scaled down:
8 workers in place of 16, presidents' speeches in place of WikiText-2, the 1,000 most
frequent words, one layer of 64 in place of three of 650, 3 epochs of batches of 16 rows
in place of 90 of 64. Every method is tuned on the same grid of learning rates, and
those that need a consensus rate on a grid of these, too, with the first seed;
PowerGossip is not tuned: it takes D-PSGD's learning rate. Both are shown with averaging
after the update, too.

The texts are those of the package sotu. Expect PowerGossip within 2 % of D-PSGD's
perplexity: with 1 iteration, for 1/42 of the bytes, where averaging comes before the
update, with 2, for 1/31, where it comes after. And expect the order to matter more than
the method: where the mixing matrix has an eigenvalue :math:`\lambda` and the loss a
curvature :math:`h`, the step :math:`x \gets W x - \gamma H x` is stable for
:math:`\gamma h < 1 + \lambda`, 2/3 with this ring's smallest eigenvalue -1/3;
:math:`x \gets W (x - \gamma H x)` is for all :math:`\gamma h < 2`.
"""

from ...lib.config import Config
from .table_fashion_mnist import consensus_rates, make_methods, make_study

COMMON = (
    Config(task="sotu", task_options={"vocabulary": 1000, "length": 30}, model="lstm")
    .replace(model_options={"layers": 1, "hidden": 64, "dropout": 0.0})
    .replace(split="contiguous", topology="ring", workers=8)
    .replace(batch_size=16, epochs=3, evaluations=1, clip_norm=0.4)
    .replace(learning_rate=10.0, warmup=0.05556, decay_at=(0.66667, 0.88889))
    .replace(optimizer_options={"momentum": None, "nesterov": False})
)
STUDY = make_study(
    "PowerGossip on the State of the Union: mean held-out perplexity of workers",
    COMMON,
    make_methods(before=(1, 2, 4), after=(1, 2)),
    rates=(5.0, 10.0, 20.0, 40.0),
    variants={
        "CHOCO, sign": consensus_rates(0.2, 0.5, 0.8),
        "CHOCO, top 1 %": consensus_rates(0.01, 0.05, 0.2),
        "DeepSqueeze, sign": consensus_rates(0.02, 0.1, 0.4),
        "Moniqua, 2 bits": (
            {"consensus_rate": 0.01, "theta": 0.25},
            {"consensus_rate": 0.1, "theta": 0.25},
            {"consensus_rate": 0.1, "theta": 1.0},
        ),
    },
    accuracy=False,
)
