"""What simulating costs networks with convolutions.

    python -m benchmarks.convnets

D-PSGD on a ring trains ResNet-20s on images of 32 x 32, with batches of 16. A step of n
simulated workers (`djax.simulation.make_steps` with `dispatch=True`) is compared with n
calls of one jitted gradient and nothing else.

Aim: the step takes at most 1.1 times as long as the gradients.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import tyro

import djax
from djax import communicators, topologies
from experiments.lib import models

from . import contest, field, images

AIM = 1.1


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    workers: tuple[int, ...] = (8, 16, 32)
    """Numbers of workers."""
    batch_size: int = 16
    """Samples of a gradient."""


def measure(config: Config, n: int) -> dict[str, Any]:
    """Times steps of n workers against n gradients; returns the record of both."""
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
