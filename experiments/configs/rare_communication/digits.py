r"""Methods that average every 22 steps, on handwritten digits whose classes differ.

    python -m experiments.rare_communication.digits           # 20 minutes
    python -m experiments.rare_communication.digits --smoke   # a minute

Workers on slow networks average rarely. If their data differ, they drift apart
meanwhile. There are two remedies: an outer optimizer, which steps along what all
workers have learnt (DiLoCo, SlowMo, NoLoCo), and a correction of every local step (LED,
K-GT). This study compares them at the same number of averagings. It also puts DiLoCo
over other averagings than all-reduce: over gossip on a ring, over PowerGossip's
compressed messages, and over RelaySum on double binary trees. Compressed messages are
small, so that PowerGossip is also shown with an averaging in every second step.

8 workers have 1,437 digits of 8 x 8 pixels, whose classes are split by a Dirichlet
distribution with alpha 0.1. They train a small MLP for 40 epochs of 11 steps, with
batches of 16 and SGD with Nesterov momentum 0.9. They average 20 times, after every
second epoch. D-PSGD in every step is the baseline. The learning rate warms up over a
twentieth of the training, and falls to a tenth after 50 and 75 % of it, smoothly:
corrections still have the size of the old updates when the learning rate falls.

Every method is tuned on the same grid of 4 learning rates, each with 3 settings of the
method, on the first seed. Plain all-reduce has nothing else to set. The settings of the
outer optimizers are the pairs of learning rate and momentum that are the defaults of
DiLoCo, SlowMo and NoLoCo. The score is the mean test accuracy of the workers at the
last two evaluations. There are 3 seeds.

Expect DiLoCo and SlowMo to come within a point of D-PSGD in every step, for 1/44 of the
bytes, and D-PSGD itself to lose 10 points if it averages as rarely.
"""

from ...lib.config import Config
from ...lib.tables import Row, Study, Table

PERIOD = 22
COMMON = (
    Config(task="digits", split="dirichlet:0.1", workers=8, batch_size=16)
    .replace(epochs=40, evaluations=20)
    .replace(warmup=0.05, decay_at=(0.5, 0.75), decay_over=0.1)
)
DILOCO = {"outer": "diloco", "outer_period": PERIOD}
SLOWMO = {"outer": "slowmo", "outer_period": PERIOD, "algorithm": "all_reduce_sgd"}
NOLOCO = {"outer": "noloco", "outer_period": PERIOD, "topology": "random_matchings"}
LOCAL = {"local_steps": PERIOD}
TREES = {"algorithm": "relay_sgd", "topology": "double_binary_trees"}
POWER = {"algorithm": "power_gossip", "iterations": 2}

OUTER_OPTIMIZERS = tuple(
    {"outer_learning_rate": rate, "outer_momentum": momentum}
    for rate, momentum in ((0.7, 0.9), (1.0, 0.7), (0.7, 0.5))
)
CONSENSUS_RATES = tuple({"consensus_rate": rate} for rate in (1.0, 0.75, 0.5))
DUAL_RATES = tuple({"dual_rate": share / PERIOD} for share in (1.0, 0.5, 0.25))
TRACKING_RATES = tuple({"k_gt_rate": rate} for rate in (1.0, 0.5, 0.25))

METHODS = {
    "D-PSGD, every step": ({}, CONSENSUS_RATES),
    "D-PSGD": (LOCAL, CONSENSUS_RATES),
    "all-reduce": (LOCAL | {"algorithm": "all_reduce_sgd"}, ({},)),
    "DiLoCo": (DILOCO | {"algorithm": "all_reduce_sgd"}, OUTER_OPTIMIZERS),
    "SlowMo": (SLOWMO, OUTER_OPTIMIZERS),
    "NoLoCo": (NOLOCO, OUTER_OPTIMIZERS),
    "LED": (LOCAL | {"algorithm": "led"}, DUAL_RATES),
    "K-GT": (LOCAL | {"algorithm": "k_gt"}, TRACKING_RATES),
    "DiLoCo over gossip": (DILOCO, OUTER_OPTIMIZERS),
    "DiLoCo over PowerGossip": (DILOCO | POWER, OUTER_OPTIMIZERS),
    "DiLoCo over PowerGossip, every 2 steps": (
        DILOCO | POWER | {"outer_period": 2},
        OUTER_OPTIMIZERS,
    ),
    "DiLoCo over RelaySum": (DILOCO | TREES, OUTER_OPTIMIZERS),
}
"""The options of each method, and the settings among which it is tuned."""

STUDY = Study(
    Table(
        "Rare communication on digits: mean test accuracy of the workers in %",
        score="mean",
        last=2,
        smoke={"epochs": 8, "evaluations": 2},  # Of 3 steps each: more than a period.
        rows=tuple(
            Row(method, COMMON.replace(**options))
            for method, (options, _) in METHODS.items()
        ),
    ),
    rates=(0.05, 0.1, 0.2, 0.4),
    variants={method: variants for method, (_, variants) in METHODS.items()},
)
