"""CIFAR-10 and ResNet-18: accuracy by graph, number of workers, and rate.

Nabli, Belilovsky and Oyallon, A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning, 2023, https://arxiv.org/abs/2306.08289.

Under mpirun workers do not wait for each other; without, the same is simulated on
virtual clocks. Settings are those of the published program. Every worker has all the
data, in an order of its own; together they see it 300 times. The learning rate of 0.1
is for batches of 256 samples in all, and grows to that for the true number during the
first 5 epochs; it is decayed after half and three quarters of the training. The norm of
a gradient is clipped at 1. The score is the test accuracy of the averaged model, whose
statistics of the normalizations are recomputed; the program took those of worker 0. It
holds no result that could be put beside.

Expect all methods alike where there are few workers or the graph is complete, and on
large rings A²CiD² at rate 1 at or above its baseline at rate 2.
"""

from collections.abc import Iterator, Sequence

from ...lib.config import Config
from ...lib.tables import Choice, Row, Table

COMMON = (
    Config(task="cifar10", model="resnet18", split="whole")
    .replace(batch_size=128, epochs=300, evaluations=20)
    .replace(learning_rate=0.1, linear_scaling=256, warmup_from=0.1)
    .replace(warmup=5 / 300, decay_at=(0.5, 0.75), clip_norm=1.0)
    .replace(optimizer_options={"momentum": 0.9, "nesterov": False})
    .replace(weight_decay=5e-4, decayed="matrices")
)
METHODS = {
    "AR-SGD": {"algorithm": "all_reduce_sgd"},
    "baseline, rate 1": {"algorithm": "adpsgd", "rate": 1.0},
    "baseline, rate 2": {"algorithm": "adpsgd", "rate": 2.0},
    "A²CiD², rate 1": {"algorithm": "a2cid2", "rate": 1.0},
    "A²CiD², rate 2": {"algorithm": "a2cid2", "rate": 2.0},
}


def make_rows(
    common: Config,
    sizes: Sequence[int],
    graphs: Sequence[str],
    seeds: tuple[int, ...] = (1, 2, 3),
    methods: Sequence[str] = tuple(METHODS),
) -> Iterator[Row]:
    """All methods on all graphs of all sizes.

    Args:
      common: what all rows have in common.
      sizes: numbers of workers.
      graphs: names of topologies.
      seeds: of the runs.
      methods: of `METHODS`.

    Yields:
      The rows. AR-SGD averages all workers, as on a complete graph, where A²CiD² is
      its baseline.
    """
    for size in sizes:
        for method in methods:
            config = common.replace(workers=size, **METHODS[method])
            if method == "AR-SGD":
                yield Row(method, config, f"complete of {size}", seeds=seeds)
                continue
            for graph in graphs:
                if not (graph == "complete" and method.startswith("A²CiD²")):
                    over = config.replace(topology=graph)
                    yield Row(method, over, f"{graph} of {size}", seeds=seeds)


TABLE = Table(
    "CIFAR-10, test accuracy of the averaged model in %",
    prepare="cifar10 --download",
    example=Choice("A²CiD², rate 1", "ring of 16"),
    hours=2,
    score="averaged",
    rows=tuple(
        make_rows(COMMON, (4, 8, 16, 32, 64), ("complete", "exponential", "ring"))
    ),
)
