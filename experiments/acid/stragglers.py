r"""How much longer training takes if one worker is four times as slow.

AR-SGD is compared with asynchronous methods, whose fast workers need not wait and
compute more gradients: Nabli, Belilovsky and Oyallon, A²CiD², 2023,
https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.stragglers           # 5 seeds
    python -m experiments.acid.stragglers --smoke   # seconds

16 workers on a ring learn handwritten digits by SGD with momentum; the samples are
split evenly. In AR-SGD (synchronous all-reduce) all workers wait for the slowest one.
Its all-reduce takes no time here, which favours AR-SGD. In AD-PSGD and A²CiD² no worker
waits. All methods draw the times of gradients from the same virtual clocks, with a
standard deviation of 0.3 of the mean. All workers have the same speed, or one of them
has a quarter of it.

Expect AR-SGD to take two and a half times as long with the slow worker. (It is not four
times, because workers of equal speed also wait for the slowest of 16 random times.)
Expect the asynchronous ones to take hardly longer. The run takes 2 minutes on 2 cores.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import asynchronous, communicators, simulation, topologies

from ..lib import evaluation, figures, tasks
from .training import simulate

METHODS = {"AR-SGD": "tab:gray", "AD-PSGD": "black", "A²CiD²": "tab:blue"}
SLOWEST = (1.0, 0.25)
"""Speeds of the slowest worker, relative to the others."""
VARIATION, BATCH_SIZE, GOAL = 0.3, 16, 0.9
BASE = optax.sgd(0.05, momentum=0.9)


def all_reduce(
    task: tasks.Task,
    communicator: djax.Communicator,
    params: Any,
    rounds: asynchronous.Rounds,
) -> Iterator[tuple[float, Any]]:
    """Trains synchronously, and yields the time and the models after each epoch."""
    optimizer = optax.chain(djax.on_updates(djax.all_reduce(communicator)), BASE)
    workers = simulation.init_workers(optimizer, communicator, params)
    steps = simulation.make_steps(task.gradient_fn, optimizer, communicator)
    ends = rounds.end[task.steps_per_epoch - 1 :: task.steps_per_epoch]
    for epoch, end in enumerate(ends, 1):
        workers, _ = steps(workers, task.epoch(epoch))
        yield float(end), workers.params


def train(
    task: tasks.Task, method: str, speeds: np.ndarray, gradients: int, seed: int
) -> figures.Record:
    """Trains once, and records the workers' mean accuracy at several times.

    The `speeds` are gradients per unit of time. A worker computes `gradients` on
    average. The `idle_share` is the part of their time in which workers wait.
    """
    size = len(speeds)
    communicator = communicators.simulated(size)
    params = communicators.replicate(communicator, task.init(jax.random.key(seed)))
    assess = evaluation.make_assess(task, communicator)
    clocks: Any = {"speeds": speeds, "variation": VARIATION, "seed": seed}
    if method == "AR-SGD":
        rounds = asynchronous.draw_rounds(size, gradients, **clocks)
        idle = rounds.idle_share
        snapshots = all_reduce(task, communicator, params, rounds)
    else:
        ring, count = topologies.ring(size), gradients // task.steps_per_epoch
        events = asynchronous.draw_events(ring, gradients=size * gradients, **clocks)
        acid = djax.acid(BASE, djax.acid_constants(ring))
        algorithm = acid if method == "A²CiD²" else djax.adpsgd(BASE)
        seen = simulate(task, algorithm, events, params, count)
        idle, snapshots = 0.0, ((x.time, x.params) for x in seen)
    found = [(0.0, assess(params)["mean"])]
    found += [(time, assess(models)["mean"]) for time, models in snapshots]
    times, accuracies = zip(*found, strict=True)
    return {"times": times, "accuracy": accuracies, "idle_share": idle}


def time_to_goal(record: figures.Record) -> float:
    """Interpolates when the accuracy reaches the goal; NaN if it does not."""
    times, accuracy = record["times"], np.array(record["accuracy"])
    reached = np.flatnonzero(accuracy >= GOAL)
    if not reached.size:
        return np.nan
    pair = slice(reached[0] - 1, reached[0] + 1)
    return float(np.interp(GOAL, accuracy[pair], times[pair]))


def compute(size: int, gradients: int, seeds: int) -> Iterator[figures.Record]:
    """Trains with every method and seed, without and with a slow worker."""
    todo = [(slowest, seed) for slowest in SLOWEST for seed in range(seeds)]
    for slowest, seed in tqdm(todo, desc="stragglers", unit="seed"):
        speeds = np.ones(size)
        speeds[0] = slowest
        task = tasks.digits(tasks.Setting(size, range(size), "iid", BATCH_SIZE, seed))
        for method in METHODS:
            head = {"method": method, "slowest": slowest, "seed": seed}
            yield head | train(task, method, speeds, gradients, seed)


def make_tables(records: list[figures.Record]):
    """Shows times to the goal, idle shares and final accuracies."""
    rows = []
    for method in METHODS:
        row = [method]
        for slowest in SLOWEST:
            runs = figures.select(records, method=method, slowest=slowest)
            times = np.array([time_to_goal(run) for run in runs])
            idle = np.mean(figures.column(runs, "idle_share"))
            final = np.mean([run["accuracy"][-1] for run in runs])
            row += [f"{times.mean():.4g} ± {times.std():.1g}", f"{idle:.1%}"]
            row.append(f"{final:.2%}")
        rows.append(row)
    columns = [f"time to {GOAL:.0%}", "idle", "final"]
    columns = ["", *columns, f"slow one: {columns[0]}", *columns[1:]]
    return [figures.table("Workers of equal speed, and one 4 x slower", columns, rows)]


def draw(records: list[figures.Record]):
    """Draws accuracy against time, without and with the slow worker."""
    figure, (panels,) = figures.panels((11, 4), 1, 2, sharex=True, sharey=True)
    end = max(r["times"][-1] for r in records if r["method"] != "AR-SGD")
    for axes, slowest in zip(panels, SLOWEST, strict=True):
        for r in figures.select(records, slowest=slowest):
            label = r["method"] if r["seed"] == 0 else None
            style = {"color": METHODS[r["method"]], "alpha": 0.7, "lw": 1}
            axes.plot(r["times"], r["accuracy"], label=label, **style)
        axes.set(xlabel="time", xlim=(0, 1.5 * end), ylim=(0.6, 1))
        axes.set_title("equal speeds" if slowest == 1 else "one worker 4 x slower")
    panels[0].set_ylabel("accuracy, mean of workers")
    panels[0].legend()
    return figure


main = figures.script(__name__, full=(16, 200, 5), smoke=(4, 22, 1))

if __name__ == "__main__":
    main()
