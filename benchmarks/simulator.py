"""How much every mechanism adds to a step of simulated workers.

    python -m benchmarks.simulator               # the first three tables
    python -m benchmarks.simulator --reference   # the fourth: against a loop in NumPy

1. 32 workers learn an MLP of 101,770 parameters, each with its own batches of 32 or
   128; all workers are under one `vmap` and all steps under one `lax.scan`. The table
   has the time of a step with each mechanism on a ring (relay: on a chain), over that
   of a step without a mechanism. Aim: at most 1.5. Beside this are the passes over the
   parameters that the mathematics needs (`passes.py`), and those that are made: the
   time that a mechanism adds over that of a pass. Aim: at most 1.3 times as many.
2. Steps of 8 to 1,024 workers on sparse graphs, of the random quadratics with 10
   parameters and of a small MLP. Aim: with 1,024 workers, a step takes at most 1.5
   times as long per worker as with 128.
3. The MLP of the first table, with averaging, or with an outer step, after every 20th
   step only. Aim: at most 1.3 times a step without averaging plus a twentieth of what
   the same adds to a step if it is done in each.
4. With `--reference`, relay for 64 workers on the quadratics against a loop in NumPy,
   which finds the same trajectory. Aim: djax is at least 200 times as fast.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import tyro

import djax
from djax import compressors, topologies

from . import contest, passes, simulator_reference
from .small_tasks import Problem, mlp, prepare, quadratics

LAYERS = (784, 128, 10)  # 101,770 parameters.
SMALL = (32, 16, 10)
RATIO = 1.5
PASSES = f"{passes.COUNT} passes"
FLAT = 1.5
FLAT_FROM = 128  # With fewer workers, starting operations takes most of the time.
SELDOM = 1.3
PERIOD = 20

Makers = dict[str, Callable[[Any], optax.GradientTransformation]]


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    reference: bool = False
    """Measure the fourth table only."""
    workers: int = 32
    """Number of workers of the first and third table."""
    batch_sizes: tuple[int, ...] = (32, 128)
    """Samples of a gradient in these tables."""
    sizes: tuple[int, ...] = (8, 32, 128, 512, 1024)
    """Numbers of workers of the second table."""
    steps: int = 20
    """Steps of one run, a multiple of 20. On the quadratics, 10 times as many."""


def mechanisms(n: int) -> Makers:
    """Functions that make each mechanism on a communicator of `n` workers, by name.

    Graphs are rings; relay's is a chain, and push-sum's is exponential.
    """
    ring, chain = topologies.ring(n), topologies.chain(n)
    fine, bits = compressors.top_k(0.01), compressors.quantize(8)
    groups, sign = compressors.top_k(0.01, approximate=True), compressors.sign()
    gossip = functools.partial(djax.gossip, ring)
    return {
        "none": lambda c: optax.identity(),
        "all_reduce": djax.all_reduce,
        "gossip": gossip,
        "relay": functools.partial(djax.relay, chain),
        "push_sum": functools.partial(
            djax.push_sum, topologies.one_peer_exponential(n)
        ),
        "d2(gossip)": lambda c: djax.d2(gossip(c)),
        "gradient_tracking(gossip)": lambda c: djax.gradient_tracking(gossip(c)),
        "power_gossip, rank 1": functools.partial(djax.power_gossip, ring),
        "power_gossip, rank 4": lambda c: djax.power_gossip(ring, c, 4),
        "choco_gossip, sign": lambda c: djax.choco_gossip(ring, c, sign, 0.1),
        "choco_gossip, top 1 %": lambda c: djax.choco_gossip(ring, c, fine, 0.1),
        "choco_gossip, top 1 % of groups": lambda c: djax.choco_gossip(
            ring, c, groups, 0.1
        ),
        "deep_squeeze, sign": lambda c: djax.deep_squeeze(ring, c, sign, 0.1),
        "moniqua, 8 bits": lambda c: djax.moniqua(ring, c, 1.0, 0.5, bits=8),
        "dcd, 8 bits": lambda c: djax.dcd(ring, c, bits),
        "ecd, 8 bits": lambda c: djax.ecd(ring, c, bits),
    }


def sparse(n: int) -> Makers:
    """Functions that make mechanisms on sparse graphs of `n` workers, by name."""
    ring, torus = topologies.ring(n), topologies.torus(n)
    chain, tree = topologies.chain(n), topologies.binary_tree(n)
    made: Makers = {"none": lambda c: optax.identity()}
    for name, graph in {"ring": ring, "torus": torus, "binary tree": tree}.items():
        made[f"gossip, {name}"] = functools.partial(djax.gossip, graph)
    for name, graph in {"chain": chain, "binary tree": tree}.items():
        made[f"relay, {name}"] = functools.partial(djax.relay, graph)
    for name, graph in {"ring": ring, "torus": torus}.items():
        made[f"power_gossip, {name}"] = functools.partial(djax.power_gossip, graph)
    return made


def seldom(n: int) -> dict[str, Callable[[int], Callable[[Any], Any]]]:
    """The contestants of the third table, by name.

    Each of them is a function of a period that returns a function that makes the
    mechanism on a communicator.
    """
    ring, coarse = topologies.ring(n), compressors.top_k(0.1)
    nesterov = optax.sgd(0.7, 0.9, nesterov=True)
    known: Makers = {
        "gossip": functools.partial(djax.gossip, ring),
        "relay": functools.partial(djax.relay, topologies.chain(n)),
        "choco_gossip, top 10 %": lambda c: djax.choco_gossip(ring, c, coarse, 0.1),
        "power_gossip, rank 1": functools.partial(djax.power_gossip, ring),
    }

    def every(make):
        return lambda period: lambda c: djax.every(period, make(c))

    def outer(make, fragments=1):
        # Fragments are averaged one after the other: none can have a period of 1.
        return lambda period: (
            lambda c: djax.outer(
                *(period, nesterov, make(c)), fragments=fragments if period > 1 else 1
            )
        )

    return {
        **{name: every(make) for name, make in known.items()},
        "DiLoCo": outer(djax.all_reduce),
        "DiLoCo, 4 fragments": outer(djax.all_reduce, fragments=4),
        "DiLoCo over gossip": outer(known["gossip"]),
        "DiLoCo over power_gossip": outer(known["power_gossip, rank 1"]),
    }


def timed(config: Config, problem: Problem, mechanisms: Makers, n: int):
    """Times runs with each mechanism in turns; returns their seconds, by name."""
    runs = {name: prepare(problem, make, n) for name, make in mechanisms.items()}
    return contest.in_turns(runs, config.repeats)


def against_gradients(config: Config) -> list[dict[str, Any]]:
    """Times the steps of the first table; returns their records."""
    n, records = config.workers, []
    for batch_size in config.batch_sizes:
        problem = mlp(LAYERS, n, config.steps, batch_size)
        makers = mechanisms(n) | {PASSES: lambda c: passes.several()}
        seconds = timed(config, problem, makers, n)
        none = seconds["none"]
        a_pass = np.median(seconds[PASSES] - none) / passes.COUNT
        records += [
            {
                "table": "mechanisms",
                "contestant": name,
                "batch size": batch_size,
                "milliseconds": (1e3 * taken / config.steps).tolist(),
                "ratio": (taken / none).tolist(),
                "passes": ((taken - none) / a_pass).tolist(),
                "passes needed": passes.NEEDED.get(name),
            }
            for name, taken in seconds.items()
        ]
    return records


def against_period(config: Config) -> list[dict[str, Any]]:
    """Times the steps of the third table; returns their records."""
    n, records = config.workers, []
    for batch_size in config.batch_sizes:
        problem = mlp(LAYERS, n, config.steps, batch_size)
        runs = {("none", 0): prepare(problem, mechanisms(n)["none"], n)}
        for name, make in seldom(n).items():
            for period in (1, PERIOD):
                runs[name, period] = prepare(problem, make(period), n)
        seconds = contest.in_turns(runs, config.repeats)
        none = seconds["none", 0]
        for name in seldom(n):
            always, rarely = seconds[name, 1], seconds[name, PERIOD]
            allowed = none + (always - none) / PERIOD
            records.append(
                {
                    "table": "periods",
                    "contestant": name,
                    "batch size": batch_size,
                    "milliseconds": (1e3 * rarely / config.steps).tolist(),
                    "none, milliseconds": (1e3 * none / config.steps).tolist(),
                    "always, milliseconds": (1e3 * always / config.steps).tolist(),
                    "ratio": (rarely / allowed).tolist(),
                }
            )
    return records


def against_size(config: Config) -> list[dict[str, Any]]:
    """Times the steps of the second table; returns their records."""
    records = []
    for kind, steps in (("quadratics", 10 * config.steps), ("small MLP", config.steps)):
        for n in config.sizes:
            problem = (
                quadratics(n, steps)
                if kind == "quadratics"
                else mlp(SMALL, n, steps, 8)
            )
            seconds = timed(config, problem, sparse(n), n)
            records += [
                {
                    "table": "sizes",
                    "contestant": name,
                    "problem": kind,
                    "workers": n,
                    "microseconds": (1e6 * taken / steps / n).tolist(),
                    "steps per second": (steps / taken).tolist(),
                }
                for name, taken in seconds.items()
            ]
    return records


def table_of_mechanisms(config: Config, records: list[dict[str, Any]]):
    """Title, columns and rows of the first table."""
    rows = []
    for name in [*mechanisms(config.workers), PASSES]:
        needed = passes.NEEDED.get(name)
        cells = [None if needed is None else f"{needed:.1f}"]
        for record in records:
            if record["contestant"] == name:
                cells += passes.cells(record, RATIO)
        rows.append([name, *cells])
    columns = ["", "passes needed"]
    for batch_size in config.batch_sizes:
        columns += [f"ms, {batch_size}", "ratio", "aim", "passes", "aim"]
    return f"{config.workers} workers with an MLP", columns, rows


def table_of_periods(records: list[dict[str, Any]]):
    """Title, columns and rows of the third table."""
    rows = []
    for record in records:
        times = "none, milliseconds", "always, milliseconds", "milliseconds", "ratio"
        rows.append(
            [
                record["contestant"],
                str(record["batch size"]),
                *(contest.spread(record[key]) for key in times),
                contest.verdict(np.median(record["ratio"]), SELDOM),
            ]
        )
    columns = ["", "batch", "none, ms", "always, ms", f"every {PERIOD}, ms"]
    columns += [f"every {PERIOD} / (none + added / {PERIOD})", "aim"]
    return f"averaging after every {PERIOD}th step only", columns, rows


def tables_of_sizes(config: Config, records: list[dict[str, Any]]):
    """Yields title, columns and rows of the second table, for each problem."""
    for kind in ("quadratics", "small MLP"):
        mine = [record for record in records if record["problem"] == kind]
        rows = []
        for name in sparse(config.sizes[0]):
            by_size = {
                record["workers"]: np.median(record["microseconds"])
                for record in mine
                if record["contestant"] == name
            }
            start = min(config.sizes, key=lambda n: (n < FLAT_FROM, n))
            growth = by_size[max(config.sizes)] / by_size[start]
            cells = [f"{by_size[n]:.3g}" for n in config.sizes]
            rows.append([name, *cells, f"{growth:.2f}", contest.verdict(growth, FLAT)])
        columns = ["", *(f"{n} workers" for n in config.sizes), "growth", "aim"]
        yield f"{kind}: µs a worker and step, median", columns, rows


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    if config.reference:
        simulator_reference.compare(config.steps, config.repeats, config.output)
        return
    if config.steps % PERIOD:
        raise SystemExit(f"simulator: --steps must be a multiple of {PERIOD}.")
    first, second, third = (
        measure(config) for measure in (against_gradients, against_size, against_period)
    )
    tables = [table_of_mechanisms(config, first), *tables_of_sizes(config, second)]
    tables.append(table_of_periods(third))
    contest.publish("simulator", tables, first + second + third, config.output)


if __name__ == "__main__":
    main()
