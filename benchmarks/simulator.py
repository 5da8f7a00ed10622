"""Steps of simulated workers: what every mechanism adds to the gradients.

    python -m benchmarks.simulator               # all that follows but the reference
    python -m benchmarks.simulator --reference   # against a loop in NumPy

1. An MLP of 101,770 parameters learned by 32 workers, each with its own batches of 32
   or 128, all workers under one `vmap` and all steps under one `lax.scan`: the time of
   a step with each mechanism on a ring (relay: on a chain), over that of a step without
   any. Aim: at most 1.5.
2. Steps of 8 to 1,024 workers on sparse graphs: of the random quadratics with 10
   parameters, and of a small MLP. Aim: a worker's share of a step of 1,024 takes at
   most 1.5 times that of 128; with fewer, starting the operations takes longest.
3. The MLP of 1., where workers average only after every 20th step. Aim: at most 1.3
   times a step without averaging plus a twentieth of what averaging adds to a step.
4. With `--reference`, relay for 64 workers on the quadratics against a loop over
   workers and edges in NumPy, which finds the same trajectory. Aim: at least 200 times
   as fast.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import djax
from djax import (
    communicators,
    compressors,
    topologies,
)
from experiments.lib.quadratics import random_quadratics

from . import contest, field

DIM = 10  # Of the quadratics.
LAYERS = (784, 128, 10)  # 101,770 parameters.
SMALL = (32, 16, 10)
RATIO = 1.5
FLAT = 1.5
FLAT_FROM = 128  # Workers; for fewer, starting an operation takes longest.
FASTER = 200.0
SELDOM = 1.3
PERIOD = 20


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    reference: bool = False
    """Measure the loop in NumPy in place of everything else."""
    workers: int = 32
    """Of the first table."""
    batch_sizes: tuple[int, ...] = (32, 128)
    """Samples of a gradient there."""
    sizes: tuple[int, ...] = (8, 32, 128, 512, 1024)
    """Numbers of workers of the second."""
    steps: int = 20
    """Of one run, a multiple of 20; of the quadratics 10 times as many."""
    repeats: int = 7
    """How often, all contestants in turns."""
    output: pathlib.Path = contest.RESULTS
    """Where the JSON goes."""


def mechanisms(n: int) -> dict[str, Callable[[Any], optax.GradientTransformation]]:
    """What makes each mechanism of a communicator of `n` workers, by name.

    Those that averages go around are on a ring, relay on a chain.
    """
    ring, chain = topologies.ring(n), topologies.chain(n)
    fine, bits = compressors.top_k(0.01), compressors.quantize(8)
    sign = compressors.sign()
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
        "deep_squeeze, sign": lambda c: djax.deep_squeeze(ring, c, sign, 0.1),
        "moniqua, 8 bits": lambda c: djax.moniqua(ring, c, 1.0, 0.5, bits=8),
        "dcd, 8 bits": lambda c: djax.dcd(ring, c, bits),
        "ecd, 8 bits": lambda c: djax.ecd(ring, c, bits),
    }


def sparse(n: int) -> dict[str, Callable[[Any], optax.GradientTransformation]]:
    """The mechanisms whose cost has to be flat in `n`, by their graphs."""
    ring, torus = topologies.ring(n), topologies.torus(n)
    chain, tree = topologies.chain(n), topologies.binary_tree(n)
    made: dict[str, Callable[[Any], optax.GradientTransformation]]
    made = {"none": lambda c: optax.identity()}
    for name, graph in {"ring": ring, "torus": torus, "binary tree": tree}.items():
        made[f"gossip, {name}"] = functools.partial(djax.gossip, graph)
    for name, graph in {"chain": chain, "binary tree": tree}.items():
        made[f"relay, {name}"] = functools.partial(djax.relay, graph)
    for name, graph in {"ring": ring, "torus": torus}.items():
        made[f"power_gossip, {name}"] = functools.partial(djax.power_gossip, graph)
    return made


def seldom(n: int) -> dict[str, Callable[[Any], optax.GradientTransformation]]:
    """The mechanisms that average after every 20th step, by name."""
    ring, coarse = topologies.ring(n), compressors.top_k(0.1)
    return {
        "gossip": functools.partial(djax.gossip, ring),
        "relay": functools.partial(djax.relay, topologies.chain(n)),
        "choco_gossip, top 10 %": lambda c: djax.choco_gossip(ring, c, coarse, 0.1),
        "power_gossip, rank 1": functools.partial(djax.power_gossip, ring),
    }


class Problem(NamedTuple):
    """What n workers learn.

    Attributes:
      params: initial parameters of one worker.
      gradient_fn: see :func:`djax.simulation.make_steps`.
      batches: leaves `[n, steps, ...]`.
      model_state: leaves `[n, ...]`.
    """

    params: Any
    gradient_fn: Callable
    batches: Any
    model_state: Any = ()


def mlp(layers: Sequence[int], n: int, steps: int, batch_size: int) -> Problem:
    """An MLP, on random images."""
    keys = jax.random.split(jax.random.key(0), len(layers) + 1)
    params = [
        {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys, itertools.pairwise(layers), strict=False)
    ]
    lead = (n, steps, batch_size)
    images = jax.random.normal(keys[-2], (*lead, layers[0]))
    labels = jax.random.randint(keys[-1], lead, 0, layers[-1])

    def loss(params, images, labels):
        hidden = jax.nn.relu(images @ params[0]["w"] + params[0]["b"])
        logits = hidden @ params[1]["w"] + params[1]["b"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def gradient(params, model_state, batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        return grads, model_state, {"loss": value}

    return Problem(params, gradient, (images, labels))


def quadratics(n: int, steps: int) -> Problem:
    """The random quadratics, which the workers carry along instead of batches."""
    problem = random_quadratics(n, DIM, 1.0)
    own = tuple(jnp.asarray(x, "f4") for x in (problem.matrices, problem.offsets))

    def gradient(x, own, batch):
        matrix, offset = own
        return matrix.T @ (matrix @ x - offset), own, ()

    return Problem(jnp.zeros(DIM), gradient, jnp.zeros((n, steps)), own)


def prepare(problem: Problem, make: Callable, n: int) -> Callable[[], Any]:
    """What runs the steps of a mechanism and returns the models."""
    communicator = communicators.simulated(n)
    params = communicators.replicate(communicator, problem.params)
    return field.training(
        optax.chain(optax.sgd(0.01), make(communicator)),
        communicator,
        (params, problem.model_state),
        problem.gradient_fn,
        problem.batches,
    )


def against_gradients(config: Config) -> list[dict[str, Any]]:
    """The records of the first table."""
    n, records = config.workers, []
    for batch_size in config.batch_sizes:
        problem = mlp(LAYERS, n, config.steps, batch_size)
        runs = {name: prepare(problem, make, n) for name, make in mechanisms(n).items()}
        seconds = contest.in_turns(runs, config.repeats)
        records += [
            {
                "table": "mechanisms",
                "contestant": name,
                "batch size": batch_size,
                "milliseconds": (1e3 * taken / config.steps).tolist(),
                "ratio": (taken / seconds["none"]).tolist(),
            }
            for name, taken in seconds.items()
        ]
    return records


def against_period(config: Config) -> list[dict[str, Any]]:
    """The records of the third table."""
    n, records = config.workers, []
    for batch_size in config.batch_sizes:
        problem = mlp(LAYERS, n, config.steps, batch_size)
        runs = {("none", 0): prepare(problem, mechanisms(n)["none"], n)}
        for name, make in seldom(n).items():
            runs[name, 1] = prepare(problem, make, n)
            runs[name, PERIOD] = prepare(
                problem, lambda c, make=make: djax.every(PERIOD, make(c)), n
            )
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
    """The records of the second table."""
    records = []
    for kind, steps in (("quadratics", 10 * config.steps), ("small MLP", config.steps)):
        for n in config.sizes:
            problem = (
                quadratics(n, steps)
                if kind == "quadratics"
                else mlp(SMALL, n, steps, 8)
            )
            runs = {name: prepare(problem, make, n) for name, make in sparse(n).items()}
            seconds = contest.in_turns(runs, config.repeats)
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


def loop(problem: Any, tree: topologies.Topology, steps: int, rate: float):
    """RelaySGD by a loop over steps, workers and edges; the models of all workers."""
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
        for i in range(n):  # The initial model, zero, stands for all that is missing.
            x[i] = (u[i] + sum(messages[j, i] for j in neighbours[i])) / n
    return np.array(x)


def against_loop(config: Config) -> list[dict[str, Any]]:
    """The records with `--reference`."""
    n, rate = 64, 0.01
    short, steps = config.steps, 100 * config.steps
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
        seconds = contest.in_turns(runs, config.repeats)
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


def table_of_mechanisms(config: Config, records: list[dict[str, Any]]):
    """The first table."""
    rows = []
    for name in mechanisms(config.workers):
        cells = []
        for record in records:
            if record["contestant"] == name:
                cells += [contest.spread(record[k]) for k in ("milliseconds", "ratio")]
                met = contest.verdict(np.median(record["ratio"]), RATIO)
                cells.append(None if name == "none" else met)
        rows.append([name, *cells])
    columns = []
    for batch_size in config.batch_sizes:
        columns += [f"ms, batch {batch_size}", "ratio", "aim"]
    title = f"a step of {config.workers} workers with an MLP of 101,770 parameters"
    return title, ["", *columns], rows


def table_of_periods(records: list[dict[str, Any]]):
    """The third table."""
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
    columns += ["every / (none + added / 20)", "aim"]
    return f"averaging after every {PERIOD}th step only", columns, rows


def tables_of_sizes(config: Config, records: list[dict[str, Any]]):
    """The second table, of each problem."""
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
        records = against_loop(config)
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
        contest.publish("simulator_reference", tables, records, config.output)
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
