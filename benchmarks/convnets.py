"""Simulated workers with convolutions, against as many gradients of one.

    python -m benchmarks.convnets

ResNet-20 on images of 32 x 32, batches of 16, D-PSGD on a ring. A step of n simulated
workers (`djax.simulation.make_steps` with `dispatch=True`) stands against n calls of
one jitted gradient, with nothing else.

Aim: at most 1.1 times as long.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import optax
import tyro

import djax
from djax import (
    communicators,
    topologies,
)
from experiments.lib import models

from . import contest, field, images

AIM = 1.1


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    workers: tuple[int, ...] = (8, 16, 32)
    """Numbers of workers."""
    batch_size: int = 16
    """Samples of a gradient."""
    repeats: int = 7
    """How often, all contestants in turns."""
    output: pathlib.Path = contest.RESULTS
    """Where the JSON goes."""


def measure(config: Config, n: int) -> dict[str, Any]:
    """The record of n workers."""
    network = models.resnet(10, depth=20)
    params, model_state = images.start(network, 32)
    gradient_fn = images.make_gradient(network)
    data = images.batch((n, 1, config.batch_size), 32)

    communicator = communicators.simulated(n)
    gossip = djax.gossip(topologies.ring(n), communicator)
    optimizer = optax.chain(optax.sgd(0.01), gossip)
    start = communicators.replicate(communicator, (params, model_state))
    simulated = field.training(
        optimizer, communicator, start, gradient_fn, data, dispatch=True
    )
    gradient = jax.jit(gradient_fn)
    batches = [jax.tree.map(lambda x, i=i: x[i, 0], data) for i in range(n)]

    def gradients():
        return [gradient(params, model_state, batch)[0] for batch in batches]

    contestants = {"simulated": simulated, "gradients": gradients}
    seconds = contest.in_turns(contestants, config.repeats)
    return {
        "workers": n,
        "seconds": {name: times.tolist() for name, times in seconds.items()},
        "ratio": (seconds["simulated"] / seconds["gradients"]).tolist(),
    }


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    records = [measure(config, n) for n in config.workers]
    rows = [
        [
            f"{record['workers']} workers",
            *(contest.spread(record["seconds"][k]) for k in ("gradients", "simulated")),
            contest.spread(record["ratio"]),
            contest.verdict(np.median(record["ratio"]), AIM),
        ]
        for record in records
    ]
    title = f"ResNet-20, batches of {config.batch_size}"
    columns = ["", "n gradients, s", "a simulated step, s", "ratio", "aim"]
    contest.publish("convnets", [(title, columns, rows)], records, config.output)


if __name__ == "__main__":
    main()
