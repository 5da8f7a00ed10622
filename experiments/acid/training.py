r"""Training curves on the ring of 64: A²CiD² at rate 1, the baseline at rates 1 and 2.

Nabli, Belilovsky and Oyallon, A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning, 2023, https://arxiv.org/abs/2306.08289: "A²CiD² acts like
doubling the communication rate", there on ImageNet.

    python -m experiments.acid.training           # 5 seeds, 3 step sizes
    python -m experiments.acid.training --smoke   # seconds

Here an MLP learns handwritten digits, whose classes a Dirichlet distribution of alpha
0.1 splits among the workers, and random quadratics of heterogeneity 1 are minimized
with noisy gradients; by SGD without momentum or decay. Within a seed all methods
compute the same gradients at the same times, 100 a worker on average. The loss is that
on all workers' data together, of each worker's own model, averaged over workers: on its
own data alone a worker looks the better the less it averages.

Expect A²CiD² at rate 1 at or below the baseline at rate 2, except where the step is so
large that noise, not disagreement, is what the momentum spreads: on the quadratics at
the largest step. 4 minutes on 2 cores.
"""

from collections.abc import Callable, Sequence
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
    topologies,
)

from ..lib import figures, tasks

METHODS = {
    "baseline, rate 1": (1.0, False),
    "baseline, rate 2": (2.0, False),
    "A²CiD², rate 1": (1.0, True),
}
COLORS = dict(zip(METHODS, ("tab:gray", "black", "tab:blue"), strict=True))
PROBLEMS = {
    "digits": {"split": "dirichlet:0.1", "options": {}},
    "quadratics": {
        "split": "iid",
        "options": {"heterogeneity": "1.0", "noise": "1.0"},
    },
}
STEP_SIZES = (0.05, 0.1, 0.2)
BATCH_SIZE, POINTS = 8, 20


def total_loss(task: tasks.Task) -> Callable[[Any], jax.Array]:
    """Makes the loss of all workers' models on everybody's data.

    Args:
      task: what is learned; the first step of its first epoch stands for the data. Of
        quadratics it is what the loss has above its least value.

    Returns:
      A function of `params` with a leading axis of workers, to `float[workers]`.
    """
    data = jax.tree.map(lambda x: jnp.asarray(x[:, 0]), task.epoch(1))

    def one(params):
        if task.score == "suboptimality":
            return task.assess(params)["suboptimality"]
        losses = jax.vmap(lambda batch: task.gradient_fn(params, (), batch)[2]["loss"])
        return losses(data).mean()

    return jax.jit(lambda params: jax.lax.map(one, params))


def train(
    task: tasks.Task,
    size: int,
    method: str,
    step_size: float,
    gradients: int,
    seed: int,
) -> dict[str, Any]:
    """One run.

    Args:
      task: what is learned.
      size: number of workers.
      method: a key of `METHODS`.
      step_size: of SGD.
      gradients: of a worker, on average.
      seed: of the clocks and the start.

    Returns:
      Its losses and consensus distances, at `POINTS` times.
    """
    rate, accelerated = METHODS[method]
    ring = topologies.ring(size)
    base = optax.sgd(step_size)
    constants = djax.acid_constants(ring, rate)
    algorithm = djax.acid(base, constants) if accelerated else djax.adpsgd(base)
    events = asynchronous.draw_events(ring, rate, gradients=size * gradients, seed=seed)
    communicator = communicators.simulated(size)
    params = communicators.replicate(communicator, task.init(jax.random.key(seed)))
    times = np.linspace(0, events.duration, POINTS + 1)[1:]
    loss = total_loss(task)
    moments = asynchronous.simulate(
        algorithm,
        events,
        params,
        task.gradient_fn,
        lambda epoch: task.epoch(epoch + 1),
        times=times.tolist(),
        model_state=jax.tree.map(jnp.asarray, task.model_state),
    )
    losses, distances = [], []
    for moment in moments:
        losses.append(float(loss(moment.params).mean()))
        distances.append(float(moment.consensus_distance))
    return {
        "times": times.tolist(),
        "loss": losses,
        "consensus_distance": distances,
        "averagings": int(events.averaging_counts.sum()) // 2,
    }


def compute(
    size: int, step_sizes: Sequence[float], gradients: int, seeds: int
) -> list[dict[str, Any]]:
    """All runs.

    Args:
      size: number of workers.
      step_sizes: of SGD.
      gradients: of a worker, on average.
      seeds: how many.

    Returns:
      A record for each problem, step size, seed and method.
    """
    todo = [
        (name, step_size, seed)
        for name in PROBLEMS
        for step_size in step_sizes
        for seed in range(seeds)
    ]
    records = []
    for name, step_size, seed in tqdm(todo, desc="training", unit="seed"):
        problem = PROBLEMS[name]
        setting = tasks.Setting(size, range(size), problem["split"], BATCH_SIZE, seed)
        task = tasks.make_task(name, setting, problem["options"])
        for method in METHODS:
            result = train(task, size, method, step_size, gradients, seed)
            head = {"problem": name, "method": method, "step_size": step_size}
            records.append({**head, "seed": seed, **result})
    return records


def select(records, **values) -> list[dict[str, Any]]:
    """The records that have these values."""
    return [r for r in records if all(r[key] == value for key, value in values.items())]


def show(records: Sequence[dict[str, Any]], step_sizes: Sequence[float]):
    """The table of final losses.

    Args:
      records: of :func:`compute`.
      step_sizes: of SGD.
    """
    rows = []
    for problem in PROBLEMS:
        for step_size in step_sizes:
            final = {
                method: np.array(
                    [
                        r["loss"][-1]
                        for r in select(
                            records,
                            problem=problem,
                            step_size=step_size,
                            method=method,
                        )
                    ]
                )
                for method in METHODS
            }
            acid, twice = final["A²CiD², rate 1"], final["baseline, rate 2"]
            rows.append(
                [
                    f"{problem}, step {step_size:g}",
                    *(f"{x.mean():.4g} ± {x.std():.1g}" for x in final.values()),
                    f"{(acid <= twice).sum()} of {len(acid)}",
                ]
            )
    return figures.table(
        "Final loss of the workers' models on all data, mean ± deviation of seeds",
        ["", *METHODS, "A²CiD² ≤ twice the rate"],
        rows,
    )


def draw(records: Sequence[dict[str, Any]], step_size: float) -> Figure:
    """Loss and consensus distance of each problem against time.

    Args:
      records: of :func:`compute`.
      step_size: of the runs that are shown.
    """
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, len(PROBLEMS), sharex="col")
    for column, problem in enumerate(PROBLEMS):
        for row, key in enumerate(("loss", "consensus_distance")):
            axes = panels[row, column]
            for method, color in COLORS.items():
                runs = select(
                    records, problem=problem, step_size=step_size, method=method
                )
                times = np.mean([run["times"] for run in runs], 0)
                values = np.array([run[key] for run in runs])
                axes.semilogy(times, values.mean(0), color=color, label=method)
                axes.fill_between(
                    times, values.min(0), values.max(0), color=color, alpha=0.2, lw=0
                )
            axes.grid(alpha=0.3)
            axes.set_ylabel(key.replace("_", " "))
        panels[0, column].set_title(f"{problem}, step {step_size:g}")
        panels[1, column].set_xlabel("time")
    panels[0, 0].legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    config = figures.configure(__file__, __doc__, arguments)
    step_sizes = STEP_SIZES[:1] if config.smoke else STEP_SIZES
    size, gradients, seeds = (4, 3, 1) if config.smoke else (64, 100, 5)
    records = compute(size, step_sizes, gradients, seeds)
    figures.publish(
        __file__,
        config,
        records,
        [show(records, step_sizes)],
        draw(records, step_sizes[len(step_sizes) // 2]),
    )
    return records


if __name__ == "__main__":
    main()
