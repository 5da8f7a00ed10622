r"""The paper's language task on the State of the Union: perplexity against bytes.

Vogels, Karimireddy and Jaggi, PowerGossip, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.table_sotu           # an hour
    python -m experiments.powergossip.table_sotu --smoke   # a minute

The protocol is the paper's: a ring whose workers have consecutive parts of the text
(here each part is an era), an LSTM whose decoder is the transpose of its embedding,
gradients through 30 words that are clipped at norm 0.4, SGD without momentum, linear
warm-up, decays after two thirds and eight ninths of the training, and averaging before
the step's update. There are 3 seeds. The task is scaled down: 8 workers replace 16,
presidents' speeches with the 1,000 most frequent words replace WikiText-2, one layer of
64 units replaces three of 650, and 3 epochs of batches of 16 rows replace 90 epochs of
64 rows. Every method is tuned on the same grid of learning rates with the first seed.
Methods that need a consensus rate are also tuned on a grid of consensus rates.
PowerGossip is not tuned: it uses the learning rate of D-PSGD. Both PowerGossip and
D-PSGD are also shown with averaging after the update.

The texts are those of the package sotu. Expect PowerGossip within 2 % of D-PSGD's
perplexity: with 1 iteration, for 1/42 of the bytes, if averaging comes before the
update; with 2 iterations, for 1/31 of the bytes, if it comes after. Expect this order
to matter more than the method, for the following reason. Let the mixing matrix have an
eigenvalue :math:`\lambda` and the loss a curvature :math:`h`. The step
:math:`x \gets W x - \gamma H x` is stable for :math:`\gamma h < 1 + \lambda`, which is
2/3 for this ring's smallest eigenvalue -1/3. The step
:math:`x \gets W (x - \gamma H x)` is stable for all :math:`\gamma h < 2`.
"""

from ...lib.config import Config
from .table_fashion_mnist import make_study

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
    before=(1, 2, 4),
    after=(1, 2),
    rates=(5.0, 10.0, 20.0, 40.0),
    consensus_rates={
        "CHOCO, sign": (0.2, 0.5, 0.8),
        "CHOCO, top 1 %": (0.01, 0.05, 0.2),
        "DeepSqueeze, sign": (0.02, 0.1, 0.4),
        "Moniqua, 2 bits": (0.01, 0.1),
    },
    smoke={"model_options": {"width": 0.125, "layers": 1}},
    accuracy=False,
)
