"""How long JAX takes to trace and compile the program of a step.

    mpirun -n 2 python -m benchmarks.compile

1. A step of 64 simulated workers against the number of rounds, from a ring's 2 to a
   complete graph's 63, and against the number of PowerGossip's iterations. Aim: the
   time grows more slowly than these numbers: 16 iterations take at most 4 times as
   long as 1.
2. A step of ResNet-50 on one of two MPI ranks, with images of ImageNet's size: gradient
   and SGD, and what the mechanism adds to them. Aim: at most 50 %.
3. `init` and a step of 8 simulated workers whose model has 1,500 small leaves. Aim: at
   most twice as long as gossip.

No program is run. The size of a program is the number of its instructions after XLA's
optimization.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import djax
from djax import communicators, compressors, topologies
from djax.training import apply_gradients
from experiments.lib import models

from . import contest, field, images

WORKERS = 64
LAYERS = ((784, 128), (128,), (128, 10), (10,))
TIMES_AS_LONG = 4.0
ADDED = 50.0  # Percent.
SMALL_LEAVES = ((16, 16), (16,), (8, 24))
TIMES_GOSSIP = 2.0


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    repeats: int = 3
    """How often each program is compiled, all programs in turns."""
    leaves: int = 1500
    """Number of leaves of the model of the third table."""


def build(fn: Callable, *args: Any) -> dict[str, float]:
    """Traces and compiles a function for arguments of the given shapes."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(fn).lower(*args)
    traced = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    return {
        "trace": traced - start,
        "compile": end - traced,
        "instructions": (program.as_text() or "").count(" = "),
    }


def update_of(optimizer: optax.GradientTransformation, communicator, model: Any):
    """Makes a step that is given its gradients, and the shapes of its arguments."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = _of_local_workers(model, len(communicator.local_ranks))
    state = jax.eval_shape(communicator.spmd(optimizer.init), params)
    return communicator.spmd(step), params, state, params


def _of_local_workers(model: Any, n: int) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), model)


def rounds() -> dict[str, tuple[int, Callable]]:
    """Numbers of rounds or iterations, and functions that make the mechanisms."""
    graphs = {
        name: getattr(topologies, name)(WORKERS)
        for name in ("ring", "torus", "hypercube", "exponential", "complete")
    }
    found: dict[str, tuple[int, Callable]] = {
        f"gossip, {name}": (len(graph.rounds), lambda c, g=graph: djax.gossip(g, c))
        for name, graph in graphs.items()
    }
    for k in (1, 2, 4, 16):
        found[f"power_gossip, {k} iterations"] = (
            k,
            lambda c, k=k: djax.power_gossip(graphs["ring"], c, iterations=k),
        )
    return found


def simulated(config: Config) -> list[dict[str, Any]]:
    """Compiles the programs of the first table; returns their records."""
    communicator = communicators.simulated(WORKERS)
    model = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in LAYERS]
    measured = {name: [] for name in rounds()}
    for _ in range(config.repeats):
        for name, (_, make) in rounds().items():
            optimizer = optax.chain(optax.sgd(0.1), make(communicator))
            measured[name].append(build(*update_of(optimizer, communicator, model)))
    return [
        {"contestant": name, "rounds": rounds()[name][0], **_collect(builds)}
        for name, builds in measured.items()
    ]


def resnet(config: Config, communicator: Any) -> list[dict[str, Any]]:
    """Compiles the programs of the second table; returns their records."""
    network = models.resnet50(1000, stem="imagenet")
    params, model_state = (_of_local_workers(x, 1) for x in images.shapes(network, 224))
    gradient_fn = images.make_gradient(network)
    data = jax.eval_shape(lambda: images.batch((1, 8), 224))

    def step(optimizer):
        def worker(params, model_state, state, batch):
            grads, model_state, _ = gradient_fn(params, model_state, batch)
            params, state = apply_gradients(optimizer, grads, state, params)
            return params, model_state, state

        state = jax.eval_shape(communicator.spmd(optimizer.init), params)
        return communicator.spmd(worker), params, model_state, state, data

    mechanisms = field.mechanisms(communicator)
    del mechanisms["power_gossip, rank 2"]
    measured = {name: [] for name in mechanisms}
    for _ in range(config.repeats):
        for name, mechanism in mechanisms.items():
            optimizer = optax.chain(optax.sgd(0.1), mechanism)
            measured[name].append(build(*step(optimizer)))
    return [{"contestant": n, **_collect(builds)} for n, builds in measured.items()]


def many_leaves(config: Config) -> list[dict[str, Any]]:
    """Compiles the programs of the third table; returns their records."""
    communicator, ring = communicators.simulated(8), topologies.ring(8)
    model = [
        jax.ShapeDtypeStruct(SMALL_LEAVES[i % len(SMALL_LEAVES)], jnp.float32)
        for i in range(config.leaves)
    ]
    code = compressors.quantize(8, unbiased=False)
    mechanisms = {
        "gossip": djax.gossip(ring, communicator),
        "power_gossip": djax.power_gossip(ring, communicator),
        "moniqua, 8 bits": djax.moniqua(ring, communicator, 1.0, 0.5),
        "choco_gossip, 8 bits": djax.choco_gossip(ring, communicator, code, 0.1),
    }
    measured = {name: ([], []) for name in mechanisms}
    for _ in range(config.repeats):
        for name, mechanism in mechanisms.items():
            optimizer = optax.chain(optax.sgd(0.1), mechanism)
            step, params, *others = update_of(optimizer, communicator, model)
            starts, steps = measured[name]
            starts.append(build(communicator.spmd(optimizer.init), params))
            steps.append(build(step, params, *others))
    records = []
    for name, both in measured.items():
        start, step = map(_collect, both)
        total = (np.array(start["total"]) + np.array(step["total"])).tolist()
        records.append(
            {
                "contestant": name,
                "leaves": config.leaves,
                "start": start,
                "step": step,
                "total": total,
            }
        )
    for record in records:
        ratio = np.array(record["total"]) / np.array(records[0]["total"])
        record["ratio"] = ratio.tolist()
    return records


def table_of_leaves(records: list[dict[str, Any]]):
    """Title, columns and rows of the third table."""
    rows = [
        [
            record["contestant"],
            contest.spread(record["start"]["total"]),
            *(contest.spread(record["step"][key]) for key in ("trace", "compile")),
            str(record["step"]["instructions"]),
            contest.spread(record["ratio"]),
            None
            if record is records[0]
            else contest.verdict(np.median(record["ratio"]), TIMES_GOSSIP),
        ]
        for record in records
    ]
    columns = ["", "init, s", "step: trace, s", "compile, s", "instructions"]
    columns += ["all / gossip", "aim"]
    title = f"{records[0]['leaves']} small leaves, 8 simulated workers"
    return title, columns, rows


def _collect(builds: list[dict[str, float]]) -> dict[str, Any]:
    found = {key: [build[key] for build in builds] for key in builds[0]}
    total = [b["trace"] + b["compile"] for b in builds]
    return {**found, "total": total, "instructions": builds[0]["instructions"]}


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    communicator = communicators.mpi()
    if communicator.size < 2:
        raise SystemExit("compile: mpirun -n 2 python -m benchmarks.compile")
    real = resnet(config, communicator)
    if communicator.rank():
        return
    many, leaves = simulated(config), many_leaves(config)
    columns = ["", "rounds", "trace, s", "compile, s", "instructions", "ratio", "aim"]
    rows = []
    for record in many:
        kind = record["contestant"].partition(",")[0]
        first = next(r for r in many if r["contestant"].startswith(kind))
        ratio = np.array(record["total"]) / np.array(first["total"])
        record["ratio"] = ratio.tolist()
        last = record["contestant"].startswith("power_gossip, 16")
        rows.append(
            [
                record["contestant"],
                str(record["rounds"]),
                *(contest.spread(record[key]) for key in ("trace", "compile")),
                str(record["instructions"]),
                contest.spread(ratio),
                contest.verdict(np.median(ratio), TIMES_AS_LONG) if last else None,
            ]
        )
    tables = [(f"a step of {WORKERS} simulated workers, an MLP", columns, rows)]
    rows = []
    for record in real:
        added = np.array(record["total"]) / np.array(real[0]["total"]) - 1
        record["added"] = added.tolist()
        aim = contest.verdict(100 * np.median(added), ADDED)
        rows.append(
            [
                record["contestant"],
                *(contest.spread(record[key]) for key in ("trace", "compile")),
                str(record["instructions"]),
                f"{100 * np.median(added):.1f} %",
                None if record is real[0] else aim,
            ]
        )
    columns = ["", "trace, s", "compile, s", "instructions", "added", "aim"]
    tables.append(("a step of ResNet-50, one of 2 ranks", columns, rows))
    tables.append(table_of_leaves(leaves))
    contest.publish("compile", tables, many + real + leaves, config.output)


if __name__ == "__main__":
    main()
