r"""Time to an accuracy with one worker four times as slow: AR-SGD against asynchronous.

Nabli, Belilovsky and Oyallon, A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning, 2023, https://arxiv.org/abs/2306.08289, where it is an
advantage that fast workers compute more gradients.

    python -m experiments.acid.stragglers           # 5 seeds
    python -m experiments.acid.stragglers --smoke   # seconds

16 workers on a ring learn handwritten digits, split evenly, by SGD with momentum. In
AR-SGD (synchronous all-reduce) everyone waits for the slowest; its all-reduce takes no
time here, which favours it. AD-PSGD and A²CiD² never wait. A gradient takes the same
time in all methods, drawn from the same virtual clocks (standard deviation 0.3 of its
mean), with and without one worker of a quarter of the speed.

Expect AR-SGD to take two and a half times as long with the slow worker (it waits for
the slowest of 16 also among equals), and the asynchronous methods hardly longer than
without it. 2 minutes on 2 cores.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import djax
from djax import (
    asynchronous,
    communicators,
    simulation,
    topologies,
)

from ..lib import evaluation, figures, tasks

METHODS = {"AR-SGD": "tab:gray", "AD-PSGD": "black", "A²CiD²": "tab:blue"}
VARIATION, BATCH_SIZE, GOAL = 0.3, 16, 0.9


def train(
    task: tasks.Task, method: str, speeds: np.ndarray, gradients: int, seed: int
) -> dict[str, Any]:
    """One run.

    Args:
      task: what is learned.
      method: a key of `METHODS`.
      speeds: gradients of each worker per unit of time.
      gradients: of a worker, on average.
      seed: of the clocks and the start.

    Returns:
      The mean accuracy of the workers at several times, and the idle share.
    """
    size = len(speeds)
    communicator = communicators.simulated(size)
    params = communicators.replicate(communicator, task.init(jax.random.key(seed)))
    assess = evaluation.make_assess(task, communicator)
    base = optax.sgd(0.05, momentum=0.9)
    clocks = {"speeds": speeds, "variation": VARIATION, "seed": seed}
    times, accuracies = [0.0], [assess(params)["mean"]]
    if method == "AR-SGD":
        rounds = asynchronous.draw_rounds(size, gradients, **clocks)
        optimizer = optax.chain(djax.on_updates(djax.all_reduce(communicator)), base)
        workers = simulation.init_workers(optimizer, communicator, params)
        steps = simulation.make_steps(task.gradient_fn, optimizer, communicator)
        for epoch in range(gradients // task.steps_per_epoch):
            workers, _ = steps(workers, task.epoch(epoch + 1))
            times.append(float(rounds.end[(epoch + 1) * task.steps_per_epoch - 1]))
            accuracies.append(assess(workers.params)["mean"])
        idle = rounds.idle_share
    else:
        ring = topologies.ring(size)
        acid = method == "A²CiD²"
        algorithm = (
            djax.acid(base, djax.acid_constants(ring)) if acid else djax.adpsgd(base)
        )
        events = asynchronous.draw_events(ring, gradients=size * gradients, **clocks)
        looks = gradients // task.steps_per_epoch
        for moment in asynchronous.simulate(
            algorithm,
            events,
            params,
            task.gradient_fn,
            lambda epoch: task.epoch(epoch + 1),
            times=np.linspace(0, events.duration, looks + 1)[1:].tolist(),
            model_state=jax.tree.map(jnp.asarray, task.model_state),
        ):
            times.append(moment.time)
            accuracies.append(assess(moment.params)["mean"])
        idle = 0.0
    return {"times": times, "accuracy": accuracies, "idle_share": idle}


def time_to_goal(record: dict[str, Any], goal: float) -> float:
    """When the accuracy reaches the goal, interpolated; NaN if it does not.

    Args:
      record: of :func:`compute`.
      goal: an accuracy.
    """
    times, accuracy = np.array(record["times"]), np.array(record["accuracy"])
    if not (accuracy >= goal).any():
        return float("nan")
    k = int((accuracy >= goal).argmax())
    share = (goal - accuracy[k - 1]) / (accuracy[k] - accuracy[k - 1])
    return float(times[k - 1] + share * (times[k] - times[k - 1]))


def compute(size: int, gradients: int, seeds: int) -> list[dict[str, Any]]:
    """All runs.

    Args:
      size: number of workers.
      gradients: of a worker, on average.
      seeds: how many.

    Returns:
      A record for each slowest worker's speed, method and seed.
    """
    records = []
    todo = [(slowest, seed) for slowest in (1.0, 0.25) for seed in range(seeds)]
    for slowest, seed in tqdm(todo, desc="stragglers", unit="seed"):
        speeds = np.ones(size)
        speeds[0] = slowest
        setting = tasks.Setting(size, range(size), "iid", BATCH_SIZE, seed)
        task = tasks.digits(setting)
        for method in METHODS:
            result = train(task, method, speeds, gradients, seed)
            head = {"method": method, "slowest": slowest, "seed": seed}
            records.append({**head, **result})
    return records


def show(records: Sequence[dict[str, Any]], goal: float):
    """The table of times.

    Args:
      records: of :func:`compute`.
      goal: an accuracy.
    """
    rows = []
    for method in METHODS:
        row: list[Any] = [method]
        for slowest in (1.0, 0.25):
            runs = [
                r for r in records if r["method"] == method and r["slowest"] == slowest
            ]
            times = np.array([time_to_goal(run, goal) for run in runs])
            idle = np.mean([run["idle_share"] for run in runs])
            final = np.mean([run["accuracy"][-1] for run in runs])
            row += [f"{times.mean():.4g} ± {times.std():.1g}", f"{idle:.1%}"]
            row.append(f"{final:.2%}")
        rows.append(row)
    columns = ["", f"time to {goal:.0%}", "idle", "final"]
    columns += [f"slow one: time to {goal:.0%}", "idle", "final"]
    return figures.table("Workers of equal speed, and one 4 x slower", columns, rows)


def draw(records: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy against time, without and with the slow worker.

    Args:
      records: of :func:`compute`.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    end = max(r["times"][-1] for r in records if r["method"] != "AR-SGD")
    for axes, slowest in zip(panels, (1.0, 0.25), strict=True):
        for record in records:
            if record["slowest"] == slowest:
                axes.plot(
                    record["times"],
                    record["accuracy"],
                    color=METHODS[record["method"]],
                    label=record["method"] if record["seed"] == 0 else None,
                    alpha=0.7,
                    lw=1,
                )
        axes.set(xlabel="time", xlim=(0, 1.5 * end), ylim=(0.6, 1))
        axes.set_title("equal speeds" if slowest == 1 else "one worker 4 x slower")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, mean of workers")
    panels[0].legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    config = figures.configure(__file__, __doc__, arguments)
    size, gradients, seeds = (4, 22, 1) if config.smoke else (16, 200, 5)
    records = compute(size, gradients, seeds)
    figures.publish(__file__, config, records, [show(records, GOAL)], draw(records))
    return records


if __name__ == "__main__":
    main()
