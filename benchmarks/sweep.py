"""A grid of learning rates and seeds in one program, against one run after another.

    python -m benchmarks.sweep

8 learning rates times 8 seeds of D-PSGD and of RelaySGD, each by 16 workers; a seed
draws the random quadratics. A run is a function of its learning rate and its problem,
and the grid is a `vmap` over all pairs of these. The grid is compared with 64 runs one
after another, without a pause in between, which find the same errors. These runs are
made in two ways:

* *one program*: all runs use one jitted function. It is compiled beforehand, and so is
  the grid;
* *a program a rate*: the optimizer is built anew for each learning rate, as scripts
  often do, and each is compiled. The time of the grid then includes its compilation.

Aim: the grid is at least 10 times as fast.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import djax
from djax import communicators, topologies
from experiments.lib.quadratics import random_quadratics

from . import contest, small_tasks

AIM = 10.0


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    workers: int = 16
    """Number of workers of a run."""
    steps: int = 500
    """Steps of a run."""


def make_run(config: Config, algorithm: str):
    """Makes a run: a function of learning rate and problem that returns the error."""
    communicator = communicators.simulated(config.workers)
    ring, chain = (make(config.workers) for make in (topologies.ring, topologies.chain))
    mechanism = {
        "gossip, ring": djax.gossip(ring, communicator),
        "relay, chain": djax.relay(chain, communicator),
    }[algorithm]

    return small_tasks.descend(mechanism, communicator, config.steps)


def measure(config: Config, algorithm: str) -> list[dict[str, Any]]:
    """Times the grid and the single runs of one algorithm; returns their records."""
    run = make_run(config, algorithm)
    rates = jnp.geomspace(1e-3, 0.1, 8)
    drawn = [random_quadratics(config.workers, 10, 1.0, seed=i) for i in range(8)]
    problems = jax.tree.map(lambda *xs: jnp.asarray(xs, jnp.float32), *drawn)
    single = [jax.tree.map(lambda x, i=i: x[i], problems) for i in range(8)]
    points = [(rate, problem) for rate in rates for problem in single]
    alone, grid = jax.jit(run), jax.jit(small_tasks.grid(run))

    def one_by_one():
        return jnp.stack([alone(*point) for point in points]).reshape(8, 8)

    def compiled_grid():
        return jax.jit(small_tasks.grid(make_run(config, algorithm)))(rates, problems)

    def program_a_rate():
        errors = []
        for i in range(0, len(points), 8):
            rate, _ = points[i]
            program = jax.jit(functools.partial(make_run(config, algorithm), rate))
            errors += [program(problem) for _, problem in points[i : i + 8]]
        return jnp.stack(errors).reshape(8, 8)

    contestants = {
        ("one program", "grid"): lambda: grid(rates, problems),
        ("one program", "one by one"): one_by_one,
        ("a program a rate", "grid"): compiled_grid,
        ("a program a rate", "one by one"): program_a_rate,
    }
    for other in contestants.values():
        np.testing.assert_allclose(other(), grid(rates, problems), rtol=1e-3)
    seconds = contest.in_turns(contestants, config.repeats)
    return [
        {
            "algorithm": algorithm,
            "against": against,
            "grid": seconds[against, "grid"].tolist(),
            "one by one": seconds[against, "one by one"].tolist(),
            "ratio": (
                seconds[against, "one by one"] / seconds[against, "grid"]
            ).tolist(),
        }
        for against in ("one program", "a program a rate")
    ]


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    algorithms = "gossip, ring", "relay, chain"
    records = [record for name in algorithms for record in measure(config, name)]
    rows = [
        [
            f"{record['algorithm']}, {record['against']}",
            *(contest.spread(record[k]) for k in ("one by one", "grid", "ratio")),
            contest.verdict(np.median(record["ratio"]), AIM, at_least=True),
        ]
        for record in records
    ]
    title = f"64 runs of {config.workers} workers, {config.steps} steps"
    columns = ["", "one by one, s", "grid, s", "times as fast", "aim"]
    contest.publish("sweep", [(title, columns, rows)], records, config.output)


if __name__ == "__main__":
    main()
