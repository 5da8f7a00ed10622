"""CIFAR-10 and ResNet-20 on a ring of 8: quality against bytes.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425.

The settings are those of the published code, the grids that it searched among them;
:mod:`experiments.powergossip.configurations` counts the bytes. All data are dealt out
anew in each epoch, in 48 full batches of each worker; the published code has a 49th
that is not full. The score is the mean test accuracy of the workers; that of the
averaged model, whose statistics of the normalizations are recomputed, is in the
metrics. No result of the paper could be read.

Where the optimizers differ from the published code: weight decay sees a worker's model
before it is averaged, there after; it spares all of the normalization's parameters,
there not those of the first layer and of the downsampling (224 numbers); PowerGossip
iterates in the first step too, where all models are equal, there not; Moniqua's noise
is shared by the workers, as in its paper, there not; top-k sends indices of 32 bits,
there of 64; all-reduce averages gradients, there models, which is the same but for the
clipping of gradients in WikiText-2's runs.

Expect PowerGossip, untuned, to be as good as D-PSGD for a fiftieth of the bytes.
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
CHOCO_SIGN = DPSGD | {"algorithm": "choco_sgd", "compressor": "sign"}
CHOCO_TOP = CHOCO_SIGN | {
    "compressor": "top_k",
    "compressor_options": {"fraction": 0.01},
}
DEEP_SQUEEZE = DPSGD | {"algorithm": "deep_squeeze", "compressor": "sign"}
MONIQUA = DPSGD | {"algorithm": "moniqua"}
RATE = 1.308
"""The best consensus rate on a ring of 8, for all methods that need not tune it."""


def row(
    common: Config,
    method: str,
    options: dict[str, Any],
    peak: float,
    tried: tuple[float, ...] = (),
    seeds: tuple[int, ...] = SEEDS,
    **more: Any,
) -> Row:
    """A row whose learning rates are told as in the published code.

    Args:
      common: the options of all rows.
      method: who averages.
      options: how.
      peak: of the learning rate, as a factor of where its warm-up starts.
      tried: the factors that were searched, if any.
      seeds: of the published runs.
      **more: further options.
    """
    first = common.base.warmup_from
    rates = [round(factor * first, 6) for factor in (peak, *tried)]
    config = common.replace(**options, **more, learning_rate=rates[0])
    return Row(method, config, tried=tuple(rates[1:]), seeds=seeds)


_row = functools.partial(row, COMMON)
TABLE = Table(
    "CIFAR-10, mean test accuracy of the workers in %",
    prepare="cifar10 --download",
    example=Choice("PowerGossip, 1 iteration"),
    smoke={"model_options": {"width": 0.125, "depth": 8}},
    score="mean",
    rows=(
        _row("all-reduce", ALL_REDUCE, 11.3, tried=(8, 11.3, 16)),
        _row("D-PSGD", DPSGD, 11.3, tried=(8, 11.3, 16), consensus_rate=RATE),
        _row("CHOCO, sign", CHOCO_SIGN, 16, consensus_rate=0.45),
        _row("CHOCO, sign, untuned", CHOCO_SIGN, 11.3, consensus_rate=RATE),
        _row("CHOCO, top 1 %", CHOCO_TOP, 11.3, consensus_rate=0.0375),
        _row("DeepSqueeze, sign", DEEP_SQUEEZE, 4.8, consensus_rate=0.01),
        _row("Moniqua, 2 bits", MONIQUA, 4, theta=0.25, consensus_rate=0.005),
        # Nothing was searched for PowerGossip: it has what D-PSGD has.
        *(
            _row(f"PowerGossip, {name}", POWER, 11.3, iterations=n, consensus_rate=RATE)
            for name, n in (("1 iteration", 1), ("2 iterations", 2))
        ),
        *(
            _row(
                f"PowerGossip, {n} it., random",
                POWER | {"iterations": n, "warm_start": False},
                11.3,
                seeds=SEEDS[:4],
                consensus_rate=RATE,
            )
            for n in (1, 2)
        ),
    ),
)
