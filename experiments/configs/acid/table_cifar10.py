"""CIFAR-10 and ResNet-18: accuracy by graph, number of workers, and rate.

Nabli, Belilovsky and Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289.

Under mpirun, workers compute in real time and do not wait for each other. Without
mpirun, they are simulated on virtual clocks. Settings are those of the published
program. Each worker has all the data, in an order of its own, and all workers together
see the data 300 times. The learning rate 0.1 is meant for 256 samples in a step of all
workers together. It grows to the rate for the true number of samples during the first 5
epochs, and is decayed after half and three quarters of the training. The norm of a
gradient is clipped at 1. The score is the test accuracy of the averaged model. Its
batch normalization statistics are recomputed; the published program took those of
worker 0. The published program contains no results to compare with.

Expect equal accuracies for all methods if there are few workers or the graph is
complete. On large rings, expect A²CiD² at rate 1 at or above its baseline at rate 2.
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
    """Makes the rows of all methods, graphs and numbers of workers.

    AR-SGD has one row for each number of workers, since it averages all workers. A²CiD²
    has no row on complete graphs, where it equals its baseline.
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
    smoke={"model_options": {"width": 0.125, "blocks": (1, 1)}},
    score="averaged",
    rows=tuple(
        make_rows(COMMON, (4, 8, 16, 32, 64), ("complete", "exponential", "ring"))
    ),
)
