r"""Throughput, and loss against real time, with one worker of four 4 x as slow.

Nabli, Belilovsky and Oyallon, A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning, 2023, https://arxiv.org/abs/2306.08289: what its Section
3.3 promises, workers that never wait, in seconds instead of virtual time.

    mpirun -n 4 python -m experiments.acid.wall_clock           # 3 seeds
    mpirun -n 4 python -m experiments.acid.wall_clock --smoke   # seconds

Four processes on a ring learn handwritten digits, split evenly, by SGD with momentum. A
gradient waits for 20 ms before it is computed, in place of a GPU that leaves the
processor free; the slow worker's waits for 80 ms. AR-SGD is a blocking all-reduce
between two gradients; AD-PSGD and A²CiD² average once per gradient, in the background;
"solo" never averages.

Expect the three fast workers of the asynchronous methods to compute as many gradients
as solo, and all four of AR-SGD as few as the slow one. 5 minutes on 2 cores.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
import tqdm
from matplotlib.figure import Figure

import djax
from djax import (
    communicators,
    topologies,
)

from ..lib import checkpoints, errors, evaluation, figures, runtime, tasks

WORKERS, BATCH_SIZE, WAIT, SLOWER = 4, 16, 0.02, 4
RING = topologies.ring(WORKERS)
METHODS = {
    "solo": "tab:green",
    "AR-SGD": "tab:gray",
    "AD-PSGD": "black",
    "A²CiD²": "tab:blue",
}


def make_task(communicator: djax.Communicator, wait: float, seed: int) -> tasks.Task:
    """The digits, with a gradient that takes its time.

    Args:
      communicator: of MPI.
      wait: seconds, of this process's gradients.
      seed: of the split and the batches.
    """
    local = communicator.local_ranks
    task = tasks.digits(tasks.Setting(WORKERS, local, "iid", BATCH_SIZE, seed))
    program = jax.jit(task.gradient_fn)
    batch = jax.tree.map(lambda x: x[0, 0], task.batches(0, 1))
    program(task.init(jax.random.key(0)), (), batch)  # Compiles before the clock runs.

    def gradient_fn(params, model_state, batch):
        time.sleep(wait)
        return program(params, model_state, batch)

    return task._replace(gradient_fn=gradient_fn)


def all_reduce(
    task: tasks.Task,
    base: optax.GradientTransformation,
    communicator: djax.Communicator,
    params: Any,
    steps: int,
    evaluations: int,
) -> dict[str, Any]:
    """Synchronous training.

    Args:
      task: what is learned.
      base: what is done with the mean of the gradients.
      communicator: of MPI.
      params: the first model, with a leading axis of 1.
      steps: how many.
      evaluations: how many; what they evaluate is kept until the end.

    Returns:
      A record.
    """
    optimizer = optax.chain(djax.on_updates(djax.all_reduce(communicator)), base)

    @jax.jit
    @communicator.spmd
    def update(grads, params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(params, state, batches, t):
        own, batch = jax.tree.map(lambda x: x[0], (params, batches))
        batch = jax.tree.map(lambda x: x[t], batch)
        grads, _, _ = jax.block_until_ready(task.gradient_fn(own, (), batch))
        return update(jax.tree.map(lambda x: x[None], grads), params, state)

    state = jax.jit(communicator.spmd(optimizer.init))(params)
    batches = task.epoch(1)
    jax.block_until_ready(step(params, state, batches, 0))  # Compiles.
    kept, start = [], time.perf_counter()
    for count in range(steps):
        epoch, t = divmod(count, task.steps_per_epoch)
        if epoch and t == 0:
            batches = task.epoch(epoch + 1)
        params, state = jax.block_until_ready(step(params, state, batches, t))
        if (count + 1) * evaluations // steps > len(kept):
            kept.append((time.perf_counter() - start, params))
    assess = evaluation.make_assess(task, communicator)
    found = [assess(model) for _, model in kept]
    return {
        "gradients_per_second": [steps / kept[-1][0]] * WORKERS,
        "times": [moment for moment, _ in kept],
        "loss": [scores["averaged_loss"] for scores in found],
        "accuracy": [scores["mean"] for scores in found],
    }


def wait_less(
    task: tasks.Task,
    algorithm: djax.asynchronous.EventTransformation,
    rate: float,
    communicator: djax.Communicator,
    params: Any,
    seconds: float,
    evaluations: int,
) -> dict[str, Any]:
    """Asynchronous training, or everybody by itself.

    Args:
      task: what is learned.
      algorithm: what every worker does.
      rate: averagings per gradient.
      communicator: of MPI.
      params: the first model, with a leading axis of 1.
      seconds: after which it ends.
      evaluations: how many.

    Returns:
      A record.
    """
    job = runtime.Live(
        task,
        algorithm,
        communicator,
        RING,
        runtime.Runtime(seconds=seconds, max_backlog=None),
        checkpoints.Saving(),
        rate=rate,
        steps=10**6,
        seed=0,
        jit=False,
    )
    history = job.train(params, evaluations, lambda record: None, lambda epochs: None)
    return {
        "gradients_per_second": job.report.gradients_per_second.tolist(),
        "averagings_per_gradient": job.report.realized_rate.tolist(),
        "times": [record["time"] for record in history.history],
        "loss": [record["averaged_loss"] for record in history.history],
        "accuracy": [record["mean"] for record in history.history],
    }


def compute(
    communicator: djax.Communicator, seconds: float, evaluations: int, seeds: int
) -> list[dict[str, Any]]:
    """All runs.

    Args:
      communicator: of MPI, with four ranks.
      seconds: of each run.
      evaluations: in each run.
      seeds: how many.

    Returns:
      A record for each seed, speed of the last worker, and method.
    """
    (rank,) = communicator.local_ranks
    base, records = optax.sgd(0.05, momentum=0.9), []
    adpsgd, acid = djax.adpsgd(base), djax.acid(base, djax.acid_constants(RING))
    methods = {"solo": (adpsgd, 0.0), "AD-PSGD": (adpsgd, 1.0), "A²CiD²": (acid, 1.0)}
    todo = [(seed, slower) for seed in range(seeds) for slower in (1, SLOWER)]
    for seed, slower in tqdm.tqdm(todo, desc="wall_clock", disable=rank > 0):
        task = make_task(communicator, WAIT * (slower if rank == 3 else 1), seed)
        model = task.init(jax.random.key(seed))
        params = communicators.replicate(communicator, model)
        for method in METHODS:
            if method == "AR-SGD":
                steps = round(seconds / (WAIT * slower))
                found = all_reduce(
                    task, base, communicator, params, steps, min(steps, evaluations)
                )
            else:
                found = wait_less(
                    task, *methods[method], communicator, params, seconds, evaluations
                )
            records.append({"method": method, "slower": slower, "seed": seed, **found})
    return records


def throughput(
    records: Sequence[dict[str, Any]], method: str, slower: int
) -> np.ndarray:
    """Gradients a second of each worker, the mean over the seeds.

    Args:
      records: of :func:`compute`.
      method: a key of `METHODS`.
      slower: how much the last worker is.
    """
    found = [
        record["gradients_per_second"]
        for record in records
        if (record["method"], record["slower"]) == (method, slower)
    ]
    return np.mean(found, axis=0)


def show(records: Sequence[dict[str, Any]]):
    """The table of throughputs.

    Args:
      records: of :func:`compute`.
    """
    rows = []
    for slower in (1, SLOWER):
        alone = throughput(records, "solo", slower)
        for method in METHODS:
            speed = throughput(records, method, slower)
            share = (speed / alone)[:3].mean()
            rates = [
                np.average(
                    record["averagings_per_gradient"],
                    weights=record["gradients_per_second"],
                )
                for record in records
                if (record["method"], record["slower"]) == (method, slower)
                and method in ("AD-PSGD", "A²CiD²")
            ]
            rows.append(
                [
                    "equal" if slower == 1 else f"one {slower} x slower",
                    method,
                    float(speed[:3].mean()),
                    float(speed[3]),
                    f"{share:.1%}",
                    float(np.mean(rates)) if rates else None,
                ]
            )
    columns = [
        "speeds",
        "",
        "gradients/s of the first three",
        "of the last",
        "share of solo",
        "averagings per gradient (asked: 1)",
    ]
    return figures.table("Throughput of 4 workers on a ring", columns, rows)


def draw(records: Sequence[dict[str, Any]]) -> Figure:
    """Throughputs, and loss against time without and with the slow worker.

    Args:
      records: of :func:`compute`.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    bars, *panels = figure.subplots(1, 3)
    for k, (method, color) in enumerate(METHODS.items()):
        speed = throughput(records, method, SLOWER)
        bars.bar(np.arange(4) + 0.2 * k - 0.3, speed, 0.2, color=color, label=method)
    bars.set(
        xlabel="worker; 3 is 4 x slower",
        ylabel="gradients per second",
        xticks=range(4),
        title="throughput",
        ylim=(0, 1.4 / WAIT),
    )
    bars.legend(ncols=2)
    for axes, slower in zip(panels, (1, SLOWER), strict=True):
        for record in records:
            if record["slower"] == slower and record["method"] != "solo":
                axes.plot(
                    record["times"],
                    record["loss"],
                    color=METHODS[record["method"]],
                    label=record["method"] if record["seed"] == 0 else None,
                    lw=1,
                )
        title = "equal speeds" if slower == 1 else "one worker 4 x slower"
        axes.set(xlabel="seconds", yscale="log", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("held-out loss of the averaged model")
    panels[0].sharey(panels[1])
    panels[0].legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    with errors.heard_once():
        config = figures.configure(__file__, __doc__, arguments)
    with errors.one_line_errors(errors.UsageError):
        if communicators.launcher_size() != WORKERS:
            raise errors.UsageError(
                "wall_clock has four workers: mpirun -n 4 python -m "
                "experiments.acid.wall_clock"
            )
    communicator = communicators.mpi()
    seconds, evaluations, seeds = (1.0, 3, 1) if config.smoke else (10.0, 25, 3)
    records = compute(communicator, seconds, evaluations, seeds)
    if communicator.rank() == 0:
        figures.publish(__file__, config, records, [show(records)], draw(records))


if __name__ == "__main__":
    main()
