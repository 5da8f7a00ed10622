"""RelaySGD in simulation against a NumPy loop: `benchmarks.simulator --reference`."""

import functools
import pathlib
from typing import Any

import numpy as np

import djax
from djax import topologies
from experiments.lib.quadratics import random_quadratics

from . import contest
from .small_tasks import DIM, prepare, quadratics

FASTER = 200.0


def loop(
    problem: Any, tree: topologies.Topology, steps: int, rate: float
) -> np.ndarray:
    """RelaySGD as a loop over steps, workers and edges; returns all workers' models."""
    n = tree.size
    neighbours = [list(tree.graph.neighbors(i)) for i in range(n)]
    x = [np.zeros(DIM) for _ in range(n)]
    messages = {(j, i): np.zeros(DIM) for i in range(n) for j in neighbours[i]}
    counts = dict.fromkeys(messages, 0)
    for _ in range(steps):
        u = []
        for i in range(n):
            matrix, offset = problem.matrices[i], problem.offsets[i]
            u.append(x[i] - rate * matrix.T @ (matrix @ x[i] - offset))
        sent, numbers = {}, {}
        for i in range(n):
            for j in neighbours[i]:
                others = [k for k in neighbours[i] if k != j]
                sent[i, j] = u[i] + sum(messages[k, i] for k in others)
                numbers[i, j] = 1 + sum(counts[k, i] for k in others)
        messages, counts = sent, numbers
        for i in range(n):  # Missing models are replaced by the initial one, zero.
            x[i] = (u[i] + sum(messages[j, i] for j in neighbours[i])) / n
    return np.array(x)


def measure(short: int, repeats: int) -> list[dict[str, Any]]:
    """Times djax and the loop on two trees; returns a record for each tree.

    Args:
      short: steps of a run of the loop; runs of djax have 100 times as many.
      repeats: how often each runs.
    """
    n, rate, steps = 64, 0.01, 100 * short
    problem, records = random_quadratics(n, DIM, 1.0), []
    for name in ("chain", "binary_tree"):
        tree = getattr(topologies, name)(n)
        relay = functools.partial(djax.relay, tree)
        ours = prepare(quadratics(n, short), relay, n)()
        theirs = loop(problem, tree, short, rate)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        runs = {
            "djax": prepare(quadratics(n, steps), relay, n),
            "loop": lambda tree=tree: loop(problem, tree, short, rate),
        }
        seconds = contest.in_turns(runs, repeats)
        ours, theirs = seconds["djax"] / steps, seconds["loop"] / short
        records.append(
            {
                "table": "reference",
                "tree": name,
                "djax, microseconds": (1e6 * ours).tolist(),
                "loop, microseconds": (1e6 * theirs).tolist(),
                "ratio": (theirs / ours).tolist(),
            }
        )
    return records


def compare(short: int, repeats: int, output: pathlib.Path) -> None:
    """Measures, prints the table and writes `simulator_reference.json`.

    Args:
      short: steps of a run of the loop.
      repeats: how often each contestant runs.
      output: folder of the JSON file.
    """
    records = measure(short, repeats)
    rows = [
        [
            record["tree"],
            contest.spread(record["loop, microseconds"]),
            contest.spread(record["djax, microseconds"]),
            contest.spread(record["ratio"]),
            contest.verdict(np.median(record["ratio"]), FASTER, at_least=True),
        ]
        for record in records
    ]
    columns = ["", "loop, µs a step", "djax, µs a step", "times as fast", "aim"]
    tables = [("RelaySGD, 64 workers, quadratics", columns, rows)]
    contest.publish("simulator_reference", tables, records, output)
