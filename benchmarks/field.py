"""The mechanisms that benchmarks between processes compare, and steps with them."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import djax
from djax import communicators, compressors, simulation, topologies
from djax.training import apply_gradients


def mechanisms(communicator: Any) -> dict[str, optax.GradientTransformation]:
    """Mechanisms on a ring (relay: on a chain) that are compared between processes."""
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
    """An optimizer that reads every parameter once and writes it, a little smaller."""
    return optax.stateless(lambda _, params: jax.tree.map(lambda x: -1e-6 * x, params))


def training(
    optimizer: optax.GradientTransformation,
    communicator: Any,
    start: tuple[Any, Any],
    gradient_fn: Callable,
    batches: Any,
    **options: Any,
) -> Callable[[], Any]:
    """Makes a function that trains all workers of this process for some steps.

    Args:
      optimizer: the optimizer of each worker.
      communicator: connects the workers.
      start: initial parameters and other variables of all workers of this process.
      gradient_fn: see :func:`djax.simulation.make_steps`.
      batches: the data of every call, leaves `[local workers, steps, ...]`.
      **options: options of :func:`djax.simulation.make_steps`.

    Returns:
      A function without arguments. Each call trains on from the last one, and returns
      the parameters of all workers of this process.
    """
    workers = simulation.init_workers(optimizer, communicator, *start)
    steps = simulation.make_steps(gradient_fn, optimizer, communicator, **options)

    def run():
        nonlocal workers
        workers, _ = steps(workers, batches)
        return workers.params

    return run


class Program:
    """Some steps of one optimizer as one program, on parameters of its own.

    Args:
      optimizer: the optimizer of each worker.
      communicator: connects the ranks.
      params: initial parameters; they are copied.
      steps: number of steps of one run.
    """

    def __init__(self, optimizer, communicator, params, steps: int):
        """Makes the program."""
        self.params = communicators.replicate(communicator, params)
        self.grads = jax.tree.map(lambda x: 0.5 * x, self.params)
        self.state = jax.jit(communicator.spmd(optimizer.init))(self.params)

        def worker(params, state, grads):
            def step(carry, _):
                params, state = carry
                return apply_gradients(optimizer, grads, state, params), None

            return jax.lax.scan(step, (params, state), length=steps)[0]

        self.program = jax.jit(communicator.spmd(worker), donate_argnums=(0, 1))

    def __call__(self):
        """Runs it."""
        self.params, self.state = self.program(self.params, self.state, self.grads)
        return self.params

    def memory(self) -> float:
        """Its largest memory, in units of the parameters' size."""
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
