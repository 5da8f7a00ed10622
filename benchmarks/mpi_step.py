"""Time of every mechanism between processes, with the parameters of real networks.

    mpirun -n 2 python -m benchmarks.mpi_step
    mpirun -n 2 python -m benchmarks.mpi_step --torch   # with the extra torch

No gradients are computed. Each mechanism runs alone, and then behind SGD, whose own
time is measured, too: in a chain, and by `djax.decentralized`. Mechanisms are compared
with the following:

* *bare*: the least that the messages cost. mpi4py's `Sendrecv` exchanges all parameters
  as one array with each neighbour, into a buffer that is used again, and an axpy of
  BLAS adds them. Behind SGD there is one axpy more. Aim: gossip takes at most 1.1 times
  as long, and at most 1.25 times behind SGD.
* *a pass*: a program that reads the parameters and writes them once. Aim: PowerGossip
  of rank 1, 2 and 4 takes at most 3 passes, alone and behind SGD, whose own passes are
  subtracted there.
* *memory*: the arguments, results and temporary arrays of the program, as XLA reports
  them. Aim: at most the parameters, what docs/choosing.md says that the algorithm
  keeps, and one more model.

With `--torch` they are compared with PyTorch over gloo, written in the manner of the
algorithms' published code. Aim: gossip is 3 times and PowerGossip 4 times as fast.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
import optax
import scipy.linalg
import threadpoolctl
import tyro

import djax
from djax import communicators, topologies
from experiments.lib import models

from . import contest, field, images

SLOWER_THAN_BARE = {"alone": 1.1, "SGD, decentralized": 1.25}
PASSES = 3.0
FASTER_THAN_TORCH = {"gossip": 3.0, "power_gossip": 4.0}
SENDRECV, ALLREDUCE = "bare Sendrecv + axpy", "bare Allreduce + axpy"
BARE = {"gossip": SENDRECV, "all_reduce": ALLREDUCE}
RATE = 1e-6  # Learning rate; so small that no number grows large.


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    models: tuple[Literal["resnet18", "resnet50"], ...] = ("resnet18", "resnet50")
    """Networks with the stem and classes of ImageNet whose parameters are sent."""
    torch: bool = False
    """Compare with PyTorch and gloo only."""
    steps: int = 10
    """Steps of one run."""
    repeats: int = 9
    """How often each contestant runs, after a first run that compiles."""


def parameters(model: str) -> Any:
    """Random values with the shapes of the network's parameters."""
    network = getattr(models, model)(1000, stem="imagenet")
    return images.start(network, 64)[0]


class Bare:
    """Some steps of bare messages and BLAS, without djax.

    Args:
      communicator: connects the ranks.
      params: initial parameters.
      steps: number of steps of one run.
      sgd: whether each step begins with an axpy that stands for SGD.
      all_reduce: whether an all-reduce replaces the messages along the ring.
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
        """Runs the steps."""
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
    """Number of models that a mechanism keeps, as docs/choosing.md says."""
    return {"relay": min(2, size - 1) + 1, "choco_gossip, sign": 2}.get(name, 0)


def contestants(config: Config, communicator, params) -> Iterator[tuple[Any, Any]]:
    """Yields each contestant's name, whether it is behind SGD, and its function."""
    given = communicator, params, config.steps
    yield ("a pass", "alone"), field.Program(field.a_pass(), *given)
    yield ("none", "SGD"), field.Program(optax.sgd(RATE), *given)
    for behind, sgd in (("alone", False), ("SGD", True)):
        for name, mechanism in field.mechanisms(communicator).items():
            if name == "none":
                continue
            base = optax.sgd(RATE) if sgd else optax.set_to_zero()
            yield (name, behind), field.Program(optax.chain(base, mechanism), *given)
            if sgd:
                one = djax.decentralized(base, mechanism)
                yield (name, "SGD, decentralized"), field.Program(one, *given)
            # Bare messages run next to their mechanism, as memory changes its speed.
            if bare := BARE.get(name):
                yield (bare, behind), Bare(*given, sgd, bare == ALLREDUCE)


def measure(config: Config, communicator, model: str) -> list[dict[str, Any]]:
    """Times all contestants with one model; returns a record for each."""
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
            sgd = behind != "alone"
            if name in BARE:
                bare = seconds[BARE[name], "SGD" if sgd else "alone"]
                record["bare"] = (taken / bare).tolist()
            rest = taken - seconds["none", "SGD"] if sgd else taken
            record["passes"] = (rest / seconds["a pass", "alone"]).tolist()
        records.append(record)
    return records


def against_torch(config: Config, communicator, model: str) -> list[dict[str, Any]]:
    """Times gossip and PowerGossip against PyTorch; returns a record for each."""
    from . import torch_step  # PyTorch is an optional dependency.

    given = communicator, parameters(model), config.steps
    torch_step.start(communicator.host_comm)
    weights = topologies.ring(communicator.size).mixing_matrix
    equal = weights, jax.tree.leaves(given[1]), config.steps
    theirs = {"gossip": torch_step.Gossip(*equal)}
    for rank in (1, 2, 4):
        theirs[f"power_gossip, rank {rank}"] = torch_step.PowerGossip(*equal, rank)
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, run in theirs.items():
        optimizer = optax.chain(
            optax.set_to_zero(), field.mechanisms(communicator)[name]
        )
        runs[name, "djax"] = field.Program(optimizer, *given)
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
    """Columns and rows of the records of :func:`measure`."""
    rows = []
    for record in records:
        name, behind = record["contestant"], record["behind"]
        ratios = [record.get("bare"), record.get("passes")]
        aim = memory = None
        if name == "gossip" and (most := SLOWER_THAN_BARE.get(behind)):
            aim = contest.verdict(np.median(record["bare"]), most)
        elif name.startswith("power_gossip") and behind != "SGD":
            aim = contest.verdict(np.median(record["passes"]), PASSES)
        if "memory" in record:
            met = contest.verdict(record["memory"], record["memory allowed"])
            memory = f"{record['memory']:.2f}, {met}"
        rows.append(
            [
                name + ("" if behind == "alone" else f" ({behind})"),
                contest.spread(record["milliseconds"]),
                *(ratio and contest.spread(ratio) for ratio in ratios),
                aim,
                memory,
            ]
        )
    return ["", "ms a step", "/ bare", "passes", "aim", "memory, models"], rows


def table_of_torch(records: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the records of :func:`against_torch`."""
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
    threadpoolctl.threadpool_limits(1)  # For BLAS, since a rank has one core.
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
