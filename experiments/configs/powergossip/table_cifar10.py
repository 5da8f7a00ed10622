"""CIFAR-10 and ResNet-20 on a ring of 8: quality against bytes.

Vogels, Karimireddy and Jaggi, PowerGossip, 2020, https://arxiv.org/abs/2008.01425.

Settings, including the grids that were searched, are those of the published code;
:mod:`experiments.powergossip.configurations` counts the bytes. In each epoch all data
are dealt out again, in 48 full batches for each worker; the published code has a 49th
batch that is not full. The score is the mean test accuracy of the workers. The metrics
also have the accuracy of the averaged model, with recomputed batch normalization
statistics. No result of the paper could be read.

The optimizers differ from the published code in these points:

* Weight decay uses a worker's model before the averaging; in the published code, after.
* No parameter of a normalization decays; in the published code those of the first layer
  and of the downsampling (224 numbers) do.
* PowerGossip also iterates in the first step, where all models are equal.
* All workers share Moniqua's noise, as in its paper; in the published code they do not.
* top-k sends indices of 32 bits; in the published code they have 64.
* all-reduce averages gradients; in the published code it averages models. This makes a
  difference only if gradients are clipped, as in the runs on WikiText-2.

Expect untuned PowerGossip to be as good as D-PSGD, for a fiftieth of the bytes.
"""

import functools
from typing import Any

from ...lib.config import Config
from ...lib.tables import Choice, Row, Table

COMMON = (
    Config(task="cifar10", model="resnet20", split="reshuffled", topology="ring")
    .replace(workers=8, batch_size=128, epochs=300, evaluations=60)
    .replace(warmup_from=0.1, warmup=5 / 300, decay_at=(150 / 300, 225 / 300))
    .replace(optimizer_options={"momentum": 0.9, "nesterov": True})
    .replace(weight_decay=1e-4, decayed="all_but_norms")
    # The published loop calls `scheduler.step(epoch + (i + 1) / batches)` before step
    # i, so that the first step has the learning rate 0.1043 and not 0.1.
    .replace(rate_at_end=True)
)
SEEDS = (10, 20, 30, 40, 50, 60)
ALL_REDUCE: dict[str, Any] = {"algorithm": "all_reduce_sgd"}
# The published code averages models before the step's update.
DPSGD: dict[str, Any] = {"algorithm": "dpsgd", "overlap": True}
POWER = DPSGD | {"algorithm": "power_gossip"}
RANDOM = POWER | {"warm_start": False}
CHOCO_SIGN = DPSGD | {"algorithm": "choco_sgd", "compressor": "sign"}
TOP_1 = {"compressor": "top_k", "compressor_options": {"fraction": 0.01}}
CHOCO_TOP = CHOCO_SIGN | TOP_1
DEEP_SQUEEZE = DPSGD | {"algorithm": "deep_squeeze", "compressor": "sign"}
MONIQUA = DPSGD | {"algorithm": "moniqua"}
SHALLOW = {"model_options": {"width": 0.125, "blocks": (1,)}}
"""Options of smoke tests: a single block of a residual network."""
RATE = 1.308
"""The best consensus rate on a ring of 8, for all methods whose rate is not tuned."""


def row(
    common: Config,
    method: str,
    options: dict[str, Any],
    peak: float,
    tried: tuple[float, ...] = (),
    seeds: tuple[int, ...] = SEEDS,
    **more: Any,
) -> Row:
    """Makes a row from learning rates in the form in which the published code has them.

    There, `peak` and the rates `tried` are multiples of the rate before the warm-up.
    """
    first = common.base.warmup_from
    rates = [round(factor * first, 6) for factor in (peak, *tried)]
    config = common.replace(**options, **more, learning_rate=rates[0])
    return Row(method, config, tried=tuple(rates[1:]), seeds=seeds)


_row = functools.partial(row, COMMON)
UNTUNED: dict[str, Any] = {"consensus_rate": RATE}
FEWER = UNTUNED | {"seeds": SEEDS[:4]}
TABLE = Table(
    "CIFAR-10, mean test accuracy of the workers in %",
    prepare="cifar10 --download",
    example=Choice("PowerGossip, 1 iteration"),
    smoke=SHALLOW,
    score="mean",
    rows=(
        _row("all-reduce", ALL_REDUCE, 11.3, tried=(8, 11.3, 16)),
        _row("D-PSGD", DPSGD, 11.3, tried=(8, 11.3, 16), **UNTUNED),
        _row("CHOCO, sign", CHOCO_SIGN, 16, consensus_rate=0.45),
        _row("CHOCO, sign, untuned", CHOCO_SIGN, 11.3, **UNTUNED),
        _row("CHOCO, top 1 %", CHOCO_TOP, 11.3, consensus_rate=0.0375),
        _row("DeepSqueeze, sign", DEEP_SQUEEZE, 4.8, consensus_rate=0.01),
        _row("Moniqua, 2 bits", MONIQUA, 4, theta=0.25, consensus_rate=0.005),
        # PowerGossip was not tuned: it has the learning rate of D-PSGD.
        _row("PowerGossip, 1 iteration", POWER, 11.3, iterations=1, **UNTUNED),
        _row("PowerGossip, 2 iterations", POWER, 11.3, iterations=2, **UNTUNED),
        _row("PowerGossip, 1 it., random", RANDOM, 11.3, iterations=1, **FEWER),
        _row("PowerGossip, 2 it., random", RANDOM, 11.3, iterations=2, **FEWER),
    ),
)
