"""A gradient in the asynchronous simulator, and the same in the synchronous one.

    python -m benchmarks.async_simulator

64 workers on a ring learn handwritten digits, 200 gradients each, by SGD with momentum.
Both simulators compute the same gradients of the same batches, in turns, several times;
compilation and the loading of data are left out, which is why the data of one epoch are
used again and again. The synchronous one runs no mechanism: what stands against it is
the gradient and the base optimizer alone.

Aim: at one averaging a gradient, at most 2 x the time. What the events cost comes from
memory: a second copy of the model, a third that gradients are taken at, and two models
in an averaging.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import tyro

import djax
from djax import (
    asynchronous,
    communicators,
    simulation,
    topologies,
)
from experiments.lib import tasks

from . import contest

AIM = 2.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    workers: int = 64
    """Number of workers."""
    gradients: int = 200
    """Gradients of each, on average."""
    batch_size: int = 22
    """Samples of a gradient: with 64 workers, all that each has."""
    repeats: int = 7
    """How often, after once that compiles."""
    output: pathlib.Path = contest.RESULTS
    """Where the JSON goes."""


def synchronous(
    config: Config, task: tasks.Task, params: Any
) -> Callable[[], Callable[[], tuple[int, Any]]]:
    """Makes a run of the synchronous simulator: the number of gradients, and models."""
    communicator = communicators.simulated(config.workers)
    base = optax.sgd(0.05, momentum=0.9)
    steps = simulation.make_steps(task.gradient_fn, base, communicator)
    epochs = -(-config.gradients // task.steps_per_epoch)
    batches = jax.tree.map(
        lambda x: jax.numpy.tile(x, (1, epochs) + (1,) * (x.ndim - 2)), task.epoch(1)
    )

    def run():
        workers = simulation.init_workers(base, communicator, params)
        return lambda: (
            config.workers * epochs * task.steps_per_epoch,
            steps(workers, batches)[0].params,
        )

    return run


def asynchronously(
    config: Config, task: tasks.Task, params: Any, rate: float, accelerated: bool
) -> Callable[[], Callable[[], tuple[int, Any]]]:
    """Makes a run of the asynchronous one, the second half of its time."""
    ring = topologies.ring(config.workers)
    base = optax.sgd(0.05, momentum=0.9)
    constants = djax.acid_constants(ring, rate)
    algorithm = djax.acid(base, constants) if accelerated else djax.adpsgd(base)
    events = asynchronous.draw_events(
        ring, rate, gradients=2 * config.workers * config.gradients
    )

    def run():
        moments = asynchronous.simulate(
            algorithm,
            events,
            params,
            task.gradient_fn,
            lambda epoch: task.epoch(1),
            times=[events.duration / 2],
        )
        jax.block_until_ready(next(moments).params)

        def rest():
            moment = next(moments)
            return len(moment.metrics["loss"]), moment.params

        return rest

    return run


def measure(config: Config) -> list[dict[str, Any]]:
    """Seconds of a gradient, all contestants in turns.

    Args:
      config: what is measured.

    Returns:
      A record for each contestant, the synchronous simulator first.
    """
    setting = tasks.Setting(
        config.workers, range(config.workers), "iid", config.batch_size, 0
    )
    task = tasks.digits(setting)
    data = task.epoch(1)
    task = task._replace(batches=lambda start, stop: data)
    model = task.init(jax.random.key(0))
    params = communicators.replicate(communicators.simulated(config.workers), model)
    contestants = {"synchronous": synchronous(config, task, params)}
    for rate in (1.0, 2.0):
        for name, accelerated in (("AD-PSGD", False), ("A²CiD²", True)):
            contestants[f"{name}, rate {rate:g}"] = asynchronously(
                config, task, params, rate, accelerated
            )
    seconds = {name: [] for name in contestants}
    for repeat in range(config.repeats + 1):
        for name, prepare in contestants.items():
            run = prepare()
            start = time.perf_counter()
            count, models = run()
            jax.block_until_ready(models)
            if repeat:
                seconds[name].append((time.perf_counter() - start) / count)
    baseline = np.array(seconds["synchronous"])
    return [
        {
            "contestant": name,
            "parameters": sum(x.size for x in jax.tree.leaves(model)),
            "microseconds": (1e6 * np.array(times)).tolist(),
            "ratio": float(np.median(np.array(times) / baseline)),
            "aim": AIM if name.endswith("rate 1") else None,
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    records = measure(config)
    rows = [
        [
            record["contestant"],
            contest.spread(record["microseconds"]),
            f"{record['ratio']:.2f}",
            contest.verdict(record["ratio"], AIM) if record["aim"] else None,
        ]
        for record in records
    ]
    title = (
        f"{config.workers} workers, {records[0]['parameters']} parameters, batches of "
        f"{config.batch_size}"
    )
    columns = ["", "µs a gradient", "ratio, median", "aim"]
    contest.publish("async_simulator", [(title, columns, rows)], records, config.output)


if __name__ == "__main__":
    main()
