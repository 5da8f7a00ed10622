r"""Tests on a ring of 64 whether A²CiD² acts like doubling the communication rate.

A²CiD² at rate 1 is compared with the baseline at rates 1 and 2. Nabli, Belilovsky and
Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289, write that "A²CiD² acts like
doubling the communication rate" for ImageNet.

    python -m experiments.acid.training           # 5 seeds, 3 step sizes
    python -m experiments.acid.training --smoke   # seconds

There are two problems, both trained by SGD without momentum or weight decay. In the
first an MLP learns handwritten digits, whose classes are split among the workers by a
Dirichlet distribution with alpha 0.1. In the second, random quadratics of heterogeneity
1 are minimized with noisy gradients. For a given seed all methods compute gradients of
the same samples at the same times, 100 for each worker on average. Each worker's model
is evaluated on the data of all workers together, and these losses are averaged. (On its
own data alone, a worker would look better the less it averages.)

Expect the loss of A²CiD² at rate 1 to be at or below that of the baseline at rate 2.
The exception is the largest step size on the quadratics, where the workers differ by
noise, which the momentum spreads. The run takes 4 minutes on 2 cores.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import asynchronous, communicators, topologies

from ..lib import figures, tasks

METHODS = {
    "baseline, rate 1": (1.0, False),
    "baseline, rate 2": (2.0, False),
    "A²CiD², rate 1": (1.0, True),
}
"""For each method, the averagings of a worker per gradient, and whether A²CiD²'s
momentum is used."""
COLORS = dict(zip(METHODS, ("tab:gray", "black", "tab:blue"), strict=True))
QUADRATICS = functools.partial(tasks.quadratics, heterogeneity=1.0, noise=1.0)
PROBLEMS = {
    "digits": ("dirichlet:0.1", tasks.digits),
    "quadratics": ("iid", QUADRATICS),
}
"""For each problem, the split of the samples and the function that makes the task."""
STEP_SIZES = (0.05, 0.1, 0.2)
BATCH_SIZE, POINTS = 8, 20


def set_up(
    method: str,
    base: optax.GradientTransformation,
    size: int,
    gradients: int,
    seed: int,
) -> tuple[asynchronous.EventTransformation, asynchronous.Events]:
    """Makes one of the methods on a ring, and draws its events on virtual clocks.

    Each of `size` workers computes `gradients` gradients on average.
    """
    rate, accelerated = METHODS[method]
    ring = topologies.ring(size)
    constants = djax.acid_constants(ring, rate)
    algorithm = djax.acid(base, constants) if accelerated else djax.adpsgd(base)
    events = asynchronous.draw_events(ring, rate, gradients=size * gradients, seed=seed)
    return algorithm, events


def simulate(
    task: tasks.Task,
    algorithm: asynchronous.EventTransformation,
    events: asynchronous.Events,
    params: Any,
    count: int,
) -> Iterator[asynchronous.Snapshot]:
    """Trains on virtual clocks, and takes `count` snapshots at evenly spaced times."""
    return asynchronous.simulate(
        algorithm,
        events,
        params,
        task.gradient_fn,
        lambda epoch: task.epoch(epoch + 1),
        times=np.linspace(0, events.duration, count + 1)[1:].tolist(),
        model_state=jax.tree.map(jnp.asarray, task.model_state),
    )


def total_loss(task: tasks.Task) -> Callable[[Any], jax.Array]:
    """Makes the function that evaluates each worker's model on all workers' data.

    Its loss is the mean over all workers' batches in the first step of the first epoch.
    For quadratics it is the suboptimality. The function takes `params` with a leading
    axis of workers, and returns `float[workers]`.
    """
    data = jax.tree.map(lambda x: jnp.asarray(x[:, 0]), task.epoch(1))

    def one(params):
        if task.score == "suboptimality":
            return task.assess(params)["suboptimality"]
        losses = jax.vmap(lambda batch: task.gradient_fn(params, (), batch)[2]["loss"])
        return losses(data).mean()

    return jax.jit(lambda params: jax.lax.map(one, params))


def compute(
    size: int, step_sizes: Sequence[float], gradients: int, seeds: int
) -> Iterator[figures.Record]:
    """Trains with every method, step size and seed on all problems.

    Each worker computes `gradients` gradients on average.
    """
    communicator = communicators.simulated(size)
    todo = list(itertools.product(PROBLEMS, step_sizes, range(seeds)))
    for problem, step_size, seed in tqdm(todo, desc="training", unit="seed"):
        split, make = PROBLEMS[problem]
        task = make(tasks.Setting(size, range(size), split, BATCH_SIZE, seed))
        loss, base = total_loss(task), optax.sgd(step_size)
        params = communicators.replicate(communicator, task.init(jax.random.key(seed)))
        for method in METHODS:
            algorithm, events = set_up(method, base, size, gradients, seed)
            snapshots = [
                (x.time, float(loss(x.params).mean()), float(x.consensus_distance))
                for x in simulate(task, algorithm, events, params, POINTS)
            ]
            times, losses, distances = zip(*snapshots, strict=True)
            yield {
                "problem": problem,
                "method": method,
                "step_size": step_size,
                "seed": seed,
                "times": times,
                "loss": losses,
                "consensus_distance": distances,
                "averagings": int(events.averaging_counts.sum()) // 2,
            }


def make_tables(records: list[figures.Record]):
    """Shows the final losses."""
    rows = []
    step_sizes = figures.distinct(records, "step_size")
    for problem, step_size in itertools.product(PROBLEMS, step_sizes):
        mine = figures.select(records, problem=problem, step_size=step_size)
        losses = [figures.column(mine, "loss", method=method) for method in METHODS]
        final = np.array(losses)[..., -1]  # [methods, seeds]
        shown = [f"{x.mean():.4g} ± {x.std():.1g}" for x in final]
        _, twice, acid = final
        wins = f"{(acid <= twice).sum()} of {len(acid)}"
        rows.append([f"{problem}, step {step_size:g}", *shown, wins])
    title = "Final loss of the workers' models on all data, mean ± deviation of seeds"
    return [figures.table(title, ["", *METHODS, "A²CiD² ≤ twice the rate"], rows)]


def draw(records: list[figures.Record]):
    """Draws loss and consensus distance against time, at the middle step size."""
    step_sizes = figures.distinct(records, "step_size")
    step_size = step_sizes[len(step_sizes) // 2]
    shown = figures.select(records, step_size=step_size)
    figure, panels = figures.panels((12, 6.4), 2, len(PROBLEMS), sharex="col")
    for (above, below), problem in zip(panels.T, PROBLEMS, strict=True):
        for axes, key in ((above, "loss"), (below, "consensus_distance")):
            for method, color in COLORS.items():
                runs = figures.select(shown, problem=problem, method=method)
                times = np.mean(figures.column(runs, "times"), 0)
                values = np.array(figures.column(runs, key))
                axes.semilogy(times, values.mean(0), color=color, label=method)
                low, high = values.min(0), values.max(0)
                axes.fill_between(times, low, high, color=color, alpha=0.2, lw=0)
            axes.set_ylabel(key.replace("_", " "))
        above.set_title(f"{problem}, step {step_size:g}")
        below.set_xlabel("time")
    panels[0, 0].legend()
    return figure


main = figures.script(
    __name__, full=(64, STEP_SIZES, 100, 5), smoke=(4, STEP_SIZES[:1], 3, 1)
)

if __name__ == "__main__":
    main()
