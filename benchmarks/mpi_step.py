"""A step of every mechanism between real processes, with parameters of real networks.

    mpirun -n 2 python -m benchmarks.mpi_step
    mpirun -n 2 python -m benchmarks.mpi_step --torch   # with the extra torch

No gradients are computed. A mechanism runs alone, then behind SGD, whose own time is
measured, too. What stands beside it:

* *bare*: one `Sendrecv` of mpi4py for each neighbour, of all parameters in one array,
  into a buffer that is used again and again, and an axpy of BLAS; behind SGD an axpy
  more. Aim: gossip takes at most 1.1 times as long.
* *a pass*: a program that reads the parameters and writes them. Aim: PowerGossip of
  rank 1, 2 and 4 takes at most 3 passes. Behind SGD are shown those beyond SGD's own.
* *memory*: XLA's account of the program: what it is given, what it returns, and what it
  needs in between. Aim: at most the parameters, what the README says that the algorithm
  keeps, and one more model.

With `--torch`: the same over gloo, in the manner of the algorithms' published code.
Aim: gossip 3 times, PowerGossip 4 times as fast.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
import optax
import scipy.linalg
import threadpoolctl
import tyro

from djax import (
    communicators,
    topologies,
)
from experiments.lib import models

from . import contest, field, images

SLOWER_THAN_BARE = 1.1
PASSES = 3.0
FASTER_THAN_TORCH = {"gossip": 3.0, "power_gossip": 4.0}
SENDRECV, ALLREDUCE = "bare Sendrecv + axpy", "bare Allreduce + axpy"
BARE = {"gossip": SENDRECV, "all_reduce": ALLREDUCE}
RATE = 1e-6  # Of all updates: the numbers shall stay small.


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    models: tuple[Literal["resnet18", "resnet50"], ...] = ("resnet18", "resnet50")
    """Whose parameters, with the stem and classes of ImageNet."""
    torch: bool = False
    """Race against PyTorch and gloo, in place of all else."""
    steps: int = 10
    """Of one run."""
    repeats: int = 9
    """How often, all contestants in turns."""
    output: pathlib.Path = contest.RESULTS
    """Where the JSON goes."""


def parameters(model: str) -> Any:
    """Random values with the shapes of the network's parameters."""
    network = getattr(models, model)(1000, stem="imagenet")
    return images.start(network, 64)[0]


class Program:
    """Some steps of one transformation as one program, on parameters of their own.

    Args:
      optimizer: of each worker.
      communicator: between the ranks.
      params: to start from.
      steps: of one run.
    """

    def __init__(self, optimizer, communicator, params, steps: int):
        """Makes the program."""
        self.params = communicators.replicate(communicator, params)
        self.grads = jax.tree.map(lambda x: 0.5 * x, self.params)
        self.state = jax.jit(communicator.spmd(optimizer.init))(self.params)

        def worker(params, state, grads):
            def step(carry, _):
                params, state = carry
                updates, state = optimizer.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, state), length=steps)[0]

        self.program = jax.jit(communicator.spmd(worker), donate_argnums=(0, 1))

    def __call__(self):
        """Runs it."""
        self.params, self.state = self.program(self.params, self.state, self.grads)
        return self.params

    def memory(self) -> float:
        """What it takes at its peak, in models."""
        lowered = self.program.lower(self.params, self.state, self.grads)
        memory = lowered.compile().memory_analysis()
        assert memory is not None, "this backend does not say what memory it takes"
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        return peak / sum(x.nbytes for x in jax.tree.leaves(self.params))


class Bare:
    """What bare messages and BLAS take.

    Args:
      communicator: between the ranks.
      params: to start from.
      steps: of one run.
      sgd: whether an axpy stands for SGD before.
      all_reduce: all-reduce in place of messages along the ring.
    """

    def __init__(self, communicator, params, steps: int, sgd: bool, all_reduce: bool):
        """Makes the buffers."""
        self.comm, self.steps = communicator.host_comm, steps
        self.sgd, self.all_reduce = sgd, all_reduce
        rank = communicator.rank()
        ring = topologies.ring(communicator.size).rounds
        self.peers = [source[rank] for source in ring if source[rank] != rank]
        self.x = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
        self.update, self.theirs = 0.5 * self.x, np.empty_like(self.x)
        self.axpy = scipy.linalg.get_blas_funcs("axpy", (self.x,))

    def __call__(self):
        """Some steps."""
        for _ in range(self.steps):
            if self.sgd:
                self._add(self.update)
            if self.all_reduce:
                self.comm.Allreduce(self.x, self.theirs)
                self._add(self.theirs)
                continue
            for peer in self.peers:
                self.comm.Sendrecv(self.x, peer, recvbuf=self.theirs, source=peer)
                self._add(self.theirs)
        return ()

    def _add(self, y):
        self.axpy(y, self.x, a=RATE)


def kept(name: str, size: int) -> int:
    """Number of models that a mechanism keeps, as the README says."""
    return {"relay": min(2, size - 1) + 1, "choco_gossip, sign": 2}.get(name, 0)


def contestants(config: Config, communicator, params) -> Iterator[tuple[Any, Any]]:
    """All contestants: their name, whether alone or behind SGD, and what runs."""
    given = communicator, params, config.steps
    for behind, base in (("alone", optax.set_to_zero()), ("SGD", optax.sgd(RATE))):
        for name, mechanism in field.mechanisms(communicator).items():
            if (name, behind) != ("none", "alone"):
                yield (name, behind), Program(optax.chain(base, mechanism), *given)
            if bare := BARE.get(name):  # Next to each other: a machine has its moods.
                yield (bare, behind), Bare(*given, behind == "SGD", bare == ALLREDUCE)
        if behind == "alone":
            yield ("a pass", behind), Program(field.a_pass(), *given)


def measure(config: Config, communicator, model: str) -> list[dict[str, Any]]:
    """A record for each contestant, of one model."""
    params = parameters(model)
    runs = dict(contestants(config, communicator, params))
    barrier = communicator.host_comm.Barrier
    times = contest.in_turns(runs, config.repeats, barrier)
    seconds = {key: taken / config.steps for key, taken in times.items()}
    records, mechanisms = [], field.mechanisms(communicator).keys() - {"none"}
    for (name, behind), taken in seconds.items():
        record = {"model": model, "contestant": name, "behind": behind}
        record["milliseconds"] = (1e3 * taken).tolist()
        if name in mechanisms:
            if behind == "alone":
                record["memory"] = runs[name, behind].memory()
                record["memory allowed"] = 2 + kept(name, communicator.size)
            if name in BARE:
                record["bare"] = (taken / seconds[BARE[name], behind]).tolist()
            rest = taken - seconds["none", "SGD"] if behind == "SGD" else taken
            record["passes"] = (rest / seconds["a pass", "alone"]).tolist()
        records.append(record)
    return records


def against_torch(config: Config, communicator, model: str) -> list[dict[str, Any]]:
    """The same of what PyTorch competes in."""
    from . import torch_step  # PyTorch is an extra.

    given = communicator, parameters(model), config.steps
    torch_step.start(communicator)
    theirs = {"gossip": torch_step.Gossip(*given)}
    for rank in (1, 2, 4):
        theirs[f"power_gossip, rank {rank}"] = torch_step.PowerGossip(*given, rank)
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, run in theirs.items():
        optimizer = optax.chain(
            optax.set_to_zero(), field.mechanisms(communicator)[name]
        )
        runs[name, "djax"] = Program(optimizer, *given)
        runs[name, "torch"] = run
    barrier = communicator.host_comm.Barrier
    times = contest.in_turns(runs, config.repeats, barrier)
    seconds = {key: taken / config.steps for key, taken in times.items()}
    torch_step.stop()
    return [
        {
            "model": model,
            "contestant": name,
            "djax": (1e3 * seconds[name, "djax"]).tolist(),
            "torch": (1e3 * seconds[name, "torch"]).tolist(),
            "ratio": (seconds[name, "torch"] / seconds[name, "djax"]).tolist(),
        }
        for name in theirs
    ]


def table(records: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of what :func:`measure` found."""
    rows = []
    for record in records:
        name, alone = record["contestant"], record["behind"] == "alone"
        ratios = [record.get("bare"), record.get("passes")]
        aim = memory = None
        if alone and name == "gossip":
            aim = contest.verdict(np.median(record["bare"]), SLOWER_THAN_BARE)
        elif alone and name.startswith("power_gossip"):
            aim = contest.verdict(np.median(record["passes"]), PASSES)
        if "memory" in record:
            met = contest.verdict(record["memory"], record["memory allowed"])
            memory = f"{record['memory']:.2f}, {met}"
        rows.append(
            [
                name + ("" if alone else " (SGD)"),
                contest.spread(record["milliseconds"]),
                *(ratio and contest.spread(ratio) for ratio in ratios),
                aim,
                memory,
            ]
        )
    return ["", "ms a step", "/ bare", "passes", "aim", "memory, models"], rows


def table_of_torch(records: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of what :func:`against_torch` found."""
    rows = []
    for record in records:
        aim = FASTER_THAN_TORCH[record["contestant"].partition(",")[0]]
        met = contest.verdict(np.median(record["ratio"]), aim, at_least=True)
        spreads = [contest.spread(record[key]) for key in ("djax", "torch", "ratio")]
        rows.append([record["contestant"], *spreads, met])
    return ["", "djax, ms", "PyTorch, ms", "times as fast", "aim"], rows


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    communicator = communicators.mpi()
    if communicator.size < 2:
        raise SystemExit("mpi_step: mpirun -n 2 python -m benchmarks.mpi_step")
    threadpoolctl.threadpool_limits(1)  # Of BLAS: a rank has one core.
    contest.compile_once()
    run, show, name = measure, table, "mpi_step"
    if config.torch:
        run, show, name = against_torch, table_of_torch, "mpi_step_torch"
    records, tables = [], []
    for model in config.models:
        found = run(config, communicator, model)
        records += found
        tables.append((f"{model}, {communicator.size} ranks", *show(found)))
    if communicator.rank() == 0:
        contest.publish(name, tables, records, config.output)


if __name__ == "__main__":
    main()
