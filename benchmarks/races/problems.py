"""What the races are about: for each race a function in all libraries, and its arrays.

The arrays are drawn once, and all contestants read them from a file. Reading takes
every library the same time, and results can be compared.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from djax import asynchronous, topologies
from experiments.lib.quadratics import random_quadratics

from .. import small_tasks
from ..small_tasks import DIM, RATE

PERIOD = 20  # Local steps between two averages.


@dataclasses.dataclass(frozen=True)
class Race:
    """One race.

    Attributes:
      title: what is raced, for the table.
      function: the function of the modules `in_djax`, `in_numpy`, ... that prepares it.
      steps: number of steps, or of gradients if there are no common steps, in a run.
      arrays: makes the arguments of the function.
      ranks: number of processes under mpirun; 0 without it.
      tolerance: largest difference of two contestants' results, relative to the largest
        entry. Sums in float32 in another order differ by about 1e-6 a step; the MLP
        has kinks, at which these differences grow.
    """

    title: str
    function: str
    steps: int
    arrays: Callable[[], dict[str, Any]]
    ranks: int = 0
    tolerance: float = 1e-4


def races(peer: str, smoke: bool) -> dict[str, list[Race]]:
    """The races against a library by their names on the command line.

    Args:
      peer: the library.
      smoke: whether all sizes are tiny.
    """
    sizes = (4,) if smoke else (16, 64, 256)
    # The Python loops of decent-bench take milliseconds a step.
    short = 20 if smoke else 200 if peer == "decent_bench" else 1000
    n, few = (4, 20) if smoke else (64, 40)
    found = {
        "quadratics": [_quadratics(size, short) for size in sizes],
        "mlp": [_mlp(4 if smoke else 16, few, 1)],
        "local_steps": [_local_steps(n, short)],
        "local_steps_mlp": [_mlp(4 if smoke else 16, few, PERIOD)],
        "asynchronous": [_asynchronous(n, few)],
        "sweep": [_sweep(*((4, 20, 2) if smoke else (16, 500, 8)))],
        "gossip": [_gossip(1 if smoke else 10)],
    }
    wanted = {
        "numpy": ("quadratics", "local_steps", "asynchronous", "sweep"),
        "torch": tuple(found),
        "decent_bench": ("quadratics",),
    }
    return {name: found[name] for name in wanted[peer]}


def _weights(n: int) -> np.ndarray:
    return topologies.ring(n).mixing_matrix.astype("f4")


def _own(n: int, seed: int = 1) -> dict[str, np.ndarray]:
    drawn = random_quadratics(n, DIM, 1.0, seed=seed)
    return {name: getattr(drawn, name).astype("f4") for name in ("matrices", "offsets")}


def _quadratics(n: int, steps: int) -> Race:
    def arrays():
        rate = np.float32(RATE)
        return _own(n) | {"weights": _weights(n), "rate": rate, "steps": steps}

    return Race(f"quadratics, {n} workers", "quadratics", steps, arrays)


def _local_steps(n: int, steps: int) -> Race:
    def arrays():
        return _own(n) | {"rate": np.float32(RATE), "steps": steps, "period": PERIOD}

    return Race(f"quadratics, {PERIOD} local steps", "local_steps", steps, arrays)


def _mlp(n: int, steps: int, period: int) -> Race:
    def arrays():
        problem = small_tasks.mlp((784, 128, 10), n, steps, 32)
        images, labels = problem.batches
        drawn = {"images": images, "labels": labels}
        for i, layer in enumerate(problem.params):
            drawn |= {f"{name}{i}": array for name, array in layer.items()}
        return drawn | {
            "weights": _weights(n),
            "rate": np.float32(RATE),
            "period": period,
        }

    title = f"MLP, {n} workers" if period == 1 else f"MLP, {period} local steps"
    return Race(title, "mlp", steps, arrays, tolerance=1e-3)


def _asynchronous(n: int, gradients: int) -> Race:
    def arrays():
        ring = topologies.ring(n)
        events = asynchronous.draw_events(ring, gradients=n * gradients)
        names = "worker", "peer", "time", "duration"
        drawn = {name: getattr(events, name) for name in names}
        return _own(n) | drawn | {"rate": np.float32(RATE)}

    title = f"asynchronous, {n} workers"
    return Race(title, "asynchronous", n * gradients, arrays)


def _sweep(n: int, steps: int, points: int) -> Race:
    def arrays():
        seeds = [random_quadratics(n, DIM, 1.0, seed=seed) for seed in range(points)]
        stacked = jax.tree.map(lambda *own: np.stack(own).astype("f4"), *seeds)
        rates = np.geomspace(1e-3, 0.1, points).astype("f4")
        own = {"weights": _weights(n), "rates": rates, "steps": steps}
        return stacked._asdict() | own

    title = f"sweep, {points} x {points} runs"
    return Race(title, "sweep", steps, arrays)


def _gossip(steps: int) -> Race:
    def arrays():
        from .. import mpi_step  # Imported here, since flax takes a second.

        leaves = jax.tree.leaves(mpi_step.parameters("resnet18"))
        named = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        return named | {"weights": _weights(2), "steps": steps}

    return Race("gossip, 2 processes", "gossip", steps, arrays, ranks=2)
