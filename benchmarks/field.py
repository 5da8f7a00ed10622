"""What several benchmarks run: the mechanisms between processes, and training steps."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import djax
from djax import (
    compressors,
    simulation,
    topologies,
)


def mechanisms(communicator: Any) -> dict[str, optax.GradientTransformation]:
    """Those that are compared between processes, on a ring; relay on a chain."""
    ring = topologies.ring(communicator.size)
    chain, sign = topologies.chain(communicator.size), compressors.sign()
    return {
        "none": optax.identity(),
        "all_reduce": djax.all_reduce(communicator),
        "gossip": djax.gossip(ring, communicator),
        "relay": djax.relay(chain, communicator),
        "choco_gossip, sign": djax.choco_gossip(ring, communicator, sign, 0.1),
        **{
            f"power_gossip, rank {rank}": djax.power_gossip(ring, communicator, rank)
            for rank in (1, 2, 4)
        },
    }


def a_pass() -> optax.GradientTransformation:
    """Makes every parameter a little smaller: reads and writes it once."""
    return optax.stateless(lambda _, params: jax.tree.map(lambda x: -1e-6 * x, params))


def training(
    optimizer: optax.GradientTransformation,
    communicator: Any,
    start: tuple[Any, Any],
    gradient_fn: Callable,
    batches: Any,
    **options: Any,
) -> Callable[[], Any]:
    """What runs steps of all workers of this process, again and again.

    Args:
      optimizer: of each worker.
      communicator: between the workers.
      start: parameters and other variables of all workers of this process.
      gradient_fn: see :func:`djax.simulation.make_steps`.
      batches: leaves `[local workers, steps, ...]`.
      **options: of :func:`djax.simulation.make_steps`.

    Returns:
      A function that returns all workers' parameters.
    """
    workers = simulation.init_workers(optimizer, communicator, *start)
    steps = simulation.make_steps(gradient_fn, optimizer, communicator, **options)

    def run():
        nonlocal workers
        workers, _ = steps(workers, batches)
        return workers.params

    return run
