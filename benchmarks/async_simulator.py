"""How much longer a gradient takes in the asynchronous simulator than in the other.

    python -m benchmarks.async_simulator

64 workers on a ring learn handwritten digits, 200 gradients each, by SGD with momentum.
The synchronous simulator and the asynchronous one compute the same gradients of the
same batches, in turns, several times. Compilation and the loading of data are not
timed; for this reason every epoch has the same data. The synchronous simulator runs no
mechanism, so that its time is that of the gradient and the base optimizer alone.

Aim: at one averaging per gradient, at most 2 times the synchronous time. The extra time
is memory traffic: a second copy of the model, a third model at which the gradient is
taken, and two models in each averaging.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import tyro

import djax
from djax import asynchronous, communicators, simulation, topologies
from experiments.lib import tasks

from . import contest

AIM = 2.0


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    workers: int = 64
    """Number of workers."""
    gradients: int = 200
    """Gradients of each worker, on average."""
    batch_size: int = 22
    """Samples of a gradient; with 64 workers, 22 are all that a worker has."""


def synchronous(
    config: Config, task: tasks.Task, params: Any
) -> Callable[[], Callable[[], tuple[int, Any]]]:
    """Makes runs of the synchronous simulator.

    Returns:
      A function without arguments that prepares a run. It returns a function that runs
      and returns the number of gradients and the models.
    """
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
    """Makes runs of the asynchronous simulator.

    The first half of the events is simulated while a run is prepared, so that
    compilation is not timed; the second half is the run.

    Returns:
      What :func:`synchronous` returns.
    """
    ring = topologies.ring(config.workers)
    base = optax.sgd(0.05, momentum=0.9)
    constants = djax.acid_constants(ring, rate)
    algorithm = djax.acid(base, constants) if accelerated else djax.adpsgd(base)
    events = asynchronous.draw_events(
        ring, rate, gradients=2 * config.workers * config.gradients
    )

    def run():
        snapshots = asynchronous.simulate(
            algorithm,
            events,
            params,
            task.gradient_fn,
            lambda epoch: task.epoch(1),
            times=[events.duration / 2],
        )
        jax.block_until_ready(next(snapshots).params)

        def rest():
            snapshot = next(snapshots)
            return len(snapshot.metrics["loss"]), snapshot.params

        return rest

    return run


def measure(config: Config) -> list[dict[str, Any]]:
    """Measures the seconds of a gradient, all contestants in turns.

    Args:
      config: the options of the command line.

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
