r"""Throughput, and loss against real time, with one of four workers 4 x as slow.

Section 3.3 of the paper promises that workers never wait: Nabli, Belilovsky and
Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289. Here this is measured in
seconds instead of virtual time.

    mpirun -n 4 python -m experiments.acid.wall_clock           # 3 seeds
    mpirun -n 4 python -m experiments.acid.wall_clock --smoke   # seconds

Four processes on a ring learn handwritten digits by SGD with momentum; the samples are
split evenly. Before each gradient a process sleeps for 20 ms, the slow one for 80 ms.
The sleep stands for a GPU that computes while the processor is free. AR-SGD makes a
blocking all-reduce after each gradient. AD-PSGD and A²CiD² average once per gradient in
the background. The method called "solo" never averages.

Expect the three fast workers of the asynchronous methods to compute as many gradients
as with solo, and all four workers of AR-SGD as few as the slow one. The run takes 5
minutes on 2 cores.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import communicators, topologies

from ..lib import errors, evaluation, figures, runtime, tasks
from . import stragglers

WORKERS, BATCH_SIZE, WAIT, SLOWER = 4, 16, 0.02, 4
RING, BASE = topologies.ring(WORKERS), optax.sgd(0.05, momentum=0.9)
METHODS = {"solo": "tab:green", **stragglers.METHODS}


def make_task(communicator: djax.Communicator, wait: float, seed: int) -> tasks.Task:
    """Makes the task of the digits, with a pause of `wait` seconds at each gradient."""
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
    communicator: djax.Communicator,
    params: Any,
    steps: int,
    evaluations: int,
) -> figures.Record:
    """Trains synchronously, with an all-reduce of the gradients in each step.

    Models are evaluated at the end, so that evaluations do not count in the time.
    """
    optimizer = optax.chain(djax.on_updates(djax.all_reduce(communicator)), BASE)
    batches = task.batches(0, steps)

    @jax.jit
    @communicator.spmd
    def update(grads, params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(params, state, t):
        own, batch = jax.tree.map(lambda x: x[0], (params, batches))
        batch = jax.tree.map(lambda x: x[t], batch)
        grads, _, _ = jax.block_until_ready(task.gradient_fn(own, (), batch))
        grads = jax.tree.map(lambda x: x[None], grads)
        return jax.block_until_ready(update(grads, params, state))

    state = jax.jit(communicator.spmd(optimizer.init))(params)
    step(params, state, 0)  # Compiles.
    kept, start = [], time.perf_counter()
    for t in range(steps):
        params, state = step(params, state, t)
        if (t + 1) * evaluations // steps > len(kept):
            kept.append((time.perf_counter() - start, params))
    assess = evaluation.make_assess(task, communicator)
    found = [assess(model) for _, model in kept]
    return {
        "gradients_per_second": [steps / kept[-1][0]] * WORKERS,
        "times": [moment for moment, _ in kept],
        "loss": figures.column(found, "averaged_loss"),
        "accuracy": figures.column(found, "mean"),
    }


def without_waiting(
    task: tasks.Task,
    communicator: djax.Communicator,
    params: Any,
    method: str,
    seconds: float,
    evaluations: int,
) -> figures.Record:
    """Trains asynchronously for some seconds; at rate 0, each worker trains alone."""
    acid = djax.acid(BASE, djax.acid_constants(RING))
    job = runtime.Live(
        task,
        communicator,
        params,
        acid if method == "A²CiD²" else djax.adpsgd(BASE),
        RING,
        runtime.Runtime(seconds=seconds, max_backlog=None),
        rate=0.0 if method == "solo" else 1.0,
        steps=10**6,
        seed=0,
        jit=False,
    )
    history = list(job.train(evaluations, lambda epochs: None))
    return {
        "gradients_per_second": job.report.gradients_per_second.tolist(),
        "averagings_per_gradient": job.report.realized_rate.tolist(),
        "times": figures.column(history, "time"),
        "loss": figures.column(history, "averaged_loss"),
        "accuracy": figures.column(history, "mean"),
    }


def compute(
    communicator: djax.Communicator, seconds: float, evaluations: int, seeds: int
) -> Iterator[figures.Record]:
    """Trains with every method and seed, without and with a slow worker."""
    (rank,) = communicator.local_ranks
    todo = list(itertools.product(range(seeds), (1, SLOWER)))
    for seed, slower in tqdm(todo, desc="wall_clock", disable=rank > 0):
        task = make_task(communicator, WAIT * (slower if rank == 3 else 1), seed)
        model = task.init(jax.random.key(seed))
        job = task, communicator, communicators.replicate(communicator, model)
        for method in METHODS:
            if method == "AR-SGD":
                steps = round(seconds / (WAIT * slower))
                found = all_reduce(*job, steps, min(steps, evaluations))
            else:
                found = without_waiting(*job, method, seconds, evaluations)
            yield {"method": method, "slower": slower, "seed": seed, **found}


def _speeds(records: list[figures.Record], method: str, slower: int) -> np.ndarray:
    """Returns the gradients per second of each run, `float64[seeds, workers]`."""
    found = figures.select(records, method=method, slower=slower)
    return np.array(figures.column(found, "gradients_per_second"))


def make_table(records: list[figures.Record]):
    """Shows throughputs, averaged over the seeds."""
    rows = []
    for slower, method in itertools.product((1, SLOWER), METHODS):
        speeds, rate = _speeds(records, method, slower), None
        speed, alone = speeds.mean(0), _speeds(records, "solo", slower).mean(0)
        if method in ("AD-PSGD", "A²CiD²"):
            runs = figures.select(records, method=method, slower=slower)
            rates = figures.column(runs, "averagings_per_gradient")
            rate = float(np.mean(np.average(rates, axis=1, weights=speeds)))
        row = ["equal" if slower == 1 else f"one {slower} x slower", method]
        row += [float(speed[:3].mean()), float(speed[3])]
        rows.append([*row, f"{(speed / alone)[:3].mean():.1%}", rate])
    columns = ["speeds", "", "gradients/s of the first three", "of the last"]
    columns += ["share of solo", "averagings per gradient (asked: 1)"]
    return figures.table("Throughput of 4 workers on a ring", columns, rows)


def draw(records: list[figures.Record]):
    """Draws throughputs, and loss against time without and with the slow worker."""
    figure, ((bars, *panels),) = figures.panels((13, 4), 1, 3)
    bars.grid(False)
    for k, (method, color) in enumerate(METHODS.items()):
        speed = _speeds(records, method, SLOWER).mean(0)
        bars.bar(np.arange(4) + 0.2 * k - 0.3, speed, 0.2, color=color, label=method)
    bars.set(title="throughput", xlabel="worker; 3 is 4 x slower", xticks=range(4))
    bars.set(ylabel="gradients per second", ylim=(0, 1.4 / WAIT))
    bars.legend(ncols=2)
    for axes, slower in zip(panels, (1, SLOWER), strict=True):
        for r in figures.select(records, slower=slower):
            if r["method"] != "solo":
                label = r["method"] if r["seed"] == 0 else None
                style = {"color": METHODS[r["method"]], "label": label, "lw": 1}
                axes.plot(r["times"], r["loss"], **style)
        title = "equal speeds" if slower == 1 else "one worker 4 x slower"
        axes.set(xlabel="seconds", yscale="log", title=title)
    panels[0].set_ylabel("held-out loss of the averaged model")
    panels[0].sharey(panels[1])
    panels[0].legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; all ranks compute, and rank 0 writes the results."""
    with errors.heard_once():
        config = figures.configure(__file__, __doc__, arguments)
    with errors.one_line_errors(errors.UsageError):
        if communicators.launcher_size() != WORKERS:
            raise errors.UsageError(
                "wall_clock has four workers: mpirun -n 4 python -m "
                "experiments.acid.wall_clock"
            )
    communicator = communicators.mpi()
    sizes = (0.5, 3, 1) if config.smoke else (10.0, 25, 3)
    records = list(compute(communicator, *sizes))
    if communicator.rank() == 0:
        tables = [make_table(records)]
        figures.publish(__file__, config, records, tables, draw(records))


if __name__ == "__main__":
    main()
