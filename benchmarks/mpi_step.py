"""A step of every mechanism between real processes, with parameters of real networks.

    mpirun -n 2 python -m benchmarks.mpi_step
    mpirun -n 2 python -m benchmarks.mpi_step --torch   # against PyTorch; pip install torch

No gradients are computed. A mechanism runs alone, then behind SGD, whose own time is
measured, too. What stands beside it:

* *bare*: one `Sendrecv` of mpi4py for each neighbour, of all parameters in one array,
  into a buffer that is used again and again, and an axpy of BLAS; behind SGD an axpy
  more. Aim: gossip takes at most 1.1 times as long.
* *a pass*: a program that reads the parameters and writes them. Aim: behind SGD,
  PowerGossip of rank 1, 2 and 4 takes at most 3 passes more than SGD alone.
* *memory*: XLA's account of the program of a step: what it is given, what it returns,
  and what it needs in between. Aim: at most the parameters, the gradients, what the
  README says that the algorithm keeps, and one more model.

With `--torch`: the same over gloo, in the manner of the algorithms' published code.
Aim: gossip 3 times, PowerGossip 4 times as fast.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg.blas
import threadpoolctl
import tyro

import djax
from djax import communicators, compressors, topologies
from experiments.common import models

from . import contest

SLOWER_THAN_BARE = 1.1
PASSES = 3.0
FASTER_THAN_TORCH = {"gossip": 3.0, "power_gossip": 4.0}
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


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """What is measured of one mechanism.

    Attributes:
      make: of a communicator, the transformation.
      kept: number of models that it keeps, as the README says.
      bare: what stands against it, if anything.
      passes: at most so many read-write passes behind SGD, if that is an aim.
    """

    make: Callable[[Any], optax.GradientTransformation]
    kept: Callable[[int], float] = lambda degree: 0.0
    bare: str | None = None
    passes: float | None = None


def mechanisms(size: int) -> dict[str, Mechanism]:
    """All of them, on a ring; relay on a chain."""
    ring, chain = topologies.ring(size), topologies.chain(size)
    sign = compressors.sign()

    def power(rank):
        return Mechanism(lambda c: djax.power_gossip(ring, c, rank), passes=PASSES)

    return {
        "gossip": Mechanism(lambda c: djax.gossip(ring, c), bare="Sendrecv + axpy"),
        "relay": Mechanism(
            lambda c: djax.relay(chain, c), lambda degree: min(degree, size - 1) + 1
        ),
        **{f"power_gossip, rank {rank}": power(rank) for rank in (1, 2, 4)},
        "choco_gossip, sign": Mechanism(
            lambda c: djax.choco_gossip(ring, c, sign, 0.1), lambda degree: 2
        ),
        "all_reduce": Mechanism(djax.all_reduce, bare="Allreduce + axpy"),
    }


def parameters(model: str) -> Any:
    """Random values with the shapes of the network's parameters."""
    network = getattr(models, model)(1000, stem="imagenet")
    images = jnp.zeros((1, 64, 64, 3))
    init = functools.partial(network.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)["params"]
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        0.1 * jax.random.normal(key, x.shape)
        for key, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)


class Program:
    """The jitted steps of one transformation, on parameters of their own.

    Args:
      optimizer: of each worker.
      communicator: between the ranks.
      params: to start from.
      steps: of one run.

    Attributes:
      models: memory that one step takes at its peak, in models.
    """

    def __init__(self, optimizer, communicator, params, steps: int):
        """Compiles a step."""
        self.steps = steps
        self.params = communicators.replicate(communicator, params)
        self.grads = jax.tree.map(lambda x: 0.5 * x, self.params)
        self.state = jax.jit(communicator.spmd(optimizer.init))(self.params)

        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.step = jax.jit(communicator.spmd(step), donate_argnums=(0, 1))
        lowered = self.step.lower(self.params, self.state, self.grads)
        import time; t=time.perf_counter()
        memory = lowered.compile().memory_analysis()
        print(time.perf_counter()-t, flush=True)
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        self.models = peak / sum(x.nbytes for x in jax.tree.leaves(params))

    def __call__(self):
        """Some steps."""
        for _ in range(self.steps):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        return self.params


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
        scipy.linalg.blas.saxpy(y, self.x, a=RATE)


def field(config: Config, communicator, params) -> Iterator[tuple[Any, Any]]:
    """All contestants: their mechanism, whether behind SGD or alone, and what runs."""
    given = communicator, params, config.steps
    for behind, base in (("alone", optax.set_to_zero()), ("SGD", optax.sgd(RATE))):
        for name, mechanism in mechanisms(communicator.size).items():
            optimizer = optax.chain(base, mechanism.make(communicator))
            yield (name, behind), Program(optimizer, *given)
            if mechanism.bare:
                reduced = name == "all_reduce"
                yield (mechanism.bare, behind), Bare(*given, behind == "SGD", reduced)
    yield ("none", "SGD"), Program(optax.sgd(RATE), *given)
    yield ("a pass", "alone"), Program(shrink(), *given)


def shrink() -> optax.GradientTransformation:
    """Makes every parameter a little smaller: reads and writes it once."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda x: -RATE * x, params))


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    communicator = communicators.mpi()
    if communicator.size < 2:
        raise SystemExit("mpi_step: mpirun -n 2 python -m benchmarks.mpi_step")
    threadpoolctl.threadpool_limits(1)
    for name in config.models:
        params = parameters(name)
        contestants = dict(field(config, communicator, params))
        times = contest.in_turns(contestants, config.repeats, communicator.host_comm.Barrier)
        if communicator.rank() == 0:
            for k, v in times.items():
                c = contestants[k]
                print(name, k, contest.spread(1e3 * v / config.steps), getattr(c, "models", ""))
        del contestants


if __name__ == "__main__":
    main()
