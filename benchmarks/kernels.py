"""How many kernels the compiled step of one worker has, and how much memory it moves.

    python -m benchmarks.kernels
    python -m benchmarks.kernels --renew   # writes tests/kernels.json anew

The program is that of one of two workers on a mesh of two devices, behind SGD, as XLA's
CPU backend has optimized it. Kernels are fusions, other computations, and calls of
libraries. XLA compiles equal fusions once. The traffic is what XLA's cost analysis
calls "bytes accessed", in units of the parameters' size: one pass that reads and writes
all parameters is 2. It is printed beside what the algorithm has to read and write, with
gradients `g`, parameters `x` and copies `c`, if each is read and written once. XLA
counts both branches of a conditional, so that PowerGossip's traffic is that of an odd
and an even step together.

Aim: no more kernels than in the table that is committed in tests/kernels.json.
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import jax.numpy as jnp
import optax
import tyro

from djax import communicators

from . import contest, field

TABLE = pathlib.Path(__file__).parents[1] / "tests" / "kernels.json"
SIZE = 2
SHAPES = [(3, 3, 64, 64), (64,), (64, 256), (256,), (256, 64), (64,), (64, 10), (10,)]
# Reads and writes, in units of the parameters' size, and how they add up.
NEEDED = {
    "none": (3, "read x, g; write x"),
    "all_reduce": (7, "read x, g; write and read the message and the sum; write x"),
    "gossip": (7, "as all_reduce, with the neighbour's message"),
    "relay": (9, "as gossip, and the initial model and the last message"),
    "choco_gossip, sign": (9, "read x, g twice, 2 c twice; write x, 2 c"),
    "power_gossip": (5, "read x, g; read the model; read x; write x"),
}
COLLECTIVES = ("all-reduce", "collective-permute", "all-gather", "all-to-all")
CALLS = ("dot", "convolution", "custom-call")
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
FREE += ("while", "conditional", "call", "partition-id", "replica-id")


@dataclasses.dataclass(frozen=True)
class Config(contest.Published):
    """The options of the command line."""

    renew: bool = False
    """Write the table of the tests."""


def count(program: str) -> dict[str, int]:
    """Counts the kernels of an optimized program.

    Args:
      program: its text, as `compiled.as_text()` returns it.

    Returns:
      The numbers of kernels, of distinct fusions, of calls of libraries, and of
      collective operations.
    """
    bodies = dict(
        re.findall(
            r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", program, re.M | re.S
        )
    )
    inner = set(re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", program))
    found, fusions = collections.Counter(), set()
    for name, body in bodies.items():
        if name in inner:
            continue
        for line in body.splitlines():
            operation = re.search(r" = .*? ([a-z][a-z-]*)\(", line)
            if not operation or (kind := operation[1]) in FREE:
                continue
            found["kernels"] += 1
            found["calls"] += kind in CALLS or "__ynn_fusion" in line
            found["collectives"] += kind.startswith(COLLECTIVES)
            if fused := re.search(r"calls=%?([\w.-]+)", line):
                names = r"%[\w.-]+|, metadata=\{[^}]*\}"
                fusions.add(re.sub(names, "", bodies[fused[1]]))
    kinds = ("kernels", "calls", "collectives")
    return {**{kind: found[kind] for kind in kinds}, "distinct fusions": len(fusions)}


def measure() -> dict[str, dict[str, Any]]:
    """Compiles a step with each mechanism; returns its counts and its traffic."""
    communicator = communicators.mesh(SIZE)
    params = [jnp.ones((SIZE, *shape), jnp.float32) for shape in SHAPES]
    found = {}
    for name, mechanism in field.mechanisms(communicator).items():
        optimizer = optax.chain(optax.sgd(0.1), mechanism)

        def step(params, state, grads, optimizer=optimizer):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(communicator.spmd(optimizer.init), params)
        compiled = jax.jit(communicator.spmd(step)).lower(params, state, params)
        compiled = compiled.compile()
        text, costs = compiled.as_text(), compiled.cost_analysis()
        assert text and costs, "this backend does not show its programs"
        traffic = costs["bytes accessed"] * SIZE / sum(x.nbytes for x in params)
        found[name] = {**count(text), "traffic": round(traffic, 1)}
    return found


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    found = measure()
    if config.renew:
        table = {"jax": jax.__version__, "mechanisms": found}
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    known = json.loads(TABLE.read_text())["mechanisms"]
    rows, records = [], []
    for name, counts in found.items():
        needed, formula = NEEDED[name.partition(", rank")[0]]
        aim = contest.verdict(counts["kernels"], known[name]["kernels"])
        rows.append([name, *map(str, counts.values()), str(needed), formula, aim])
        records.append({"contestant": name, **counts, "needed": needed})
    columns = ["", "kernels", "library calls", "collectives", "distinct fusions"]
    columns += ["traffic", "needed", "formula", "kernels, aim"]
    title = "a step of one of 2 workers behind SGD, in units of the parameters"
    contest.publish("kernels", [(title, columns, rows)], records, config.output)


if __name__ == "__main__":
    main()
