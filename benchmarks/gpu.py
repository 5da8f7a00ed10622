"""How much time the mechanisms take on GPUs.

    mpirun -n 2 python -m benchmarks.gpu             # ranks may share one GPU
    python -m benchmarks.gpu --mesh                  # one process, a worker a GPU
    MPI4JAX_USE_CUDA_MPI=1 mpirun -n 2 python -m benchmarks.gpu --name gpu_cuda_aware

1. A step of ResNet-50 that computes in bfloat16, with SGD, and with each mechanism.
2. Each mechanism alone, in units of a pass: a program that reads and writes the
   parameters once. The bandwidth that this pass reaches is shown, too.

Messages are sent from host memory, unless the MPI is CUDA-aware and the third command
is used. That command writes a JSON file of its own, to be compared with the first.
`benchmarks.overlap` measures the averaging thread of A²CiD² beside a busy GPU, by the
same command as on a CPU.

The script also runs without a GPU, but slowly; `--width 0.25 --image-size 64` makes the
network small.
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from djax import communicators
from experiments.lib import models

from . import contest, field, images


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    mesh: bool = False
    """Workers are the devices of this process, in place of MPI's ranks."""
    batch_size: int = 32
    """Samples of a worker's gradient."""
    image_size: int = 224
    """Height and width of the images."""
    width: float = 1.0
    """Factor by which ResNet-50's numbers of channels are multiplied."""
    steps: int = 5
    """Steps of one run."""
    name: str = "gpu"
    """Name of the JSON file, without its suffix."""


def prepare(config: Config, communicator: Any, mechanism: Any, train: bool):
    """Makes a function that runs some steps of all workers of this process."""
    network = models.resnet50(
        1000, stem="imagenet", width=config.width, dtype=jnp.bfloat16
    )
    start = images.start(network, config.image_size)
    gradient_fn = images.make_gradient(network)
    data = images.batch((1, config.steps, config.batch_size), config.image_size)
    if not train:
        data = jnp.zeros((1, config.steps))
    local = len(communicator.local_ranks)
    data = jax.tree.map(lambda x: jnp.repeat(x, local, axis=0), data)
    base = optax.sgd(1e-3) if train else optax.set_to_zero()
    optimizer = optax.chain(base, mechanism)

    def nothing(params, model_state, batch):
        return params, model_state, ()

    return field.training(
        optimizer,
        communicator,
        communicators.replicate(communicator, start),
        gradient_fn if train else nothing,
        data,
    )


def measure(config: Config, communicator: Any) -> list[dict[str, Any]]:
    """Times each mechanism in a training step and alone; returns a record for each."""
    ranks = getattr(communicator, "host_comm", None)
    barrier = ranks.Barrier if ranks else lambda: None
    records = []
    for train in (False, True):
        contestants = field.mechanisms(communicator)
        if not train:
            del contestants["none"]
            contestants["a pass"] = field.a_pass()
        runs = {
            name: prepare(config, communicator, mechanism, train)
            for name, mechanism in contestants.items()
        }
        times = contest.in_turns(runs, config.repeats, barrier)
        unit = times["none" if train else "a pass"]
        records += [
            {
                "mechanism": name,
                "train": train,
                "milliseconds": (1e3 * taken / config.steps).tolist(),
                "ratio": (taken / unit).tolist(),
            }
            for name, taken in times.items()
        ]
    return records


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    devices = jax.device_count()
    communicator = communicators.mesh(devices) if config.mesh else communicators.mpi()
    if communicator.size < 2:
        raise SystemExit(
            "gpu needs two workers: mpirun -n 2 python -m benchmarks.gpu, or --mesh "
            "with two devices."
        )
    records = measure(config, communicator)
    if 0 not in communicator.local_ranks:
        return
    network = models.resnet50(1000, stem="imagenet", width=config.width)
    params, _ = images.shapes(network, config.image_size)
    size = sum(4 * x.size for x in jax.tree.leaves(params))
    aware = os.environ.get("MPI4JAX_USE_CUDA_MPI", "0") not in ("", "0")
    alone, trained = (
        [
            [
                record["mechanism"],
                contest.spread(record["milliseconds"]),
                contest.spread(record["ratio"]),
            ]
            for record in records
            if record["train"] == train
        ]
        for train in (False, True)
    )
    (one,) = (r for r in records if r["mechanism"] == "a pass")
    bandwidth = 2 * size / np.median(one["milliseconds"]) / 1e6
    place = f"{communicator.size} workers, " + (
        "messages from GPU memory" if aware else "messages from host memory"
    )
    tables = [
        (
            f"alone, {place}; a pass reaches {bandwidth:.0f} GB/s",
            ["", "ms", "passes"],
            alone,
        ),
        (
            f"ResNet-50 in bfloat16, batches of {config.batch_size}, {place}",
            ["", "ms a step", "/ none"],
            trained,
        ),
    ]
    contest.publish(config.name, tables, records, config.output)


if __name__ == "__main__":
    main()
