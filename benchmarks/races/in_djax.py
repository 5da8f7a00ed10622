"""The races in djax.

Each function takes the arrays of `benchmarks.races.problems`, and returns a function
that runs the race and returns its result.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax
from djax import communicators, topologies
from experiments.lib.quadratics import Quadratics

from .. import field, small_tasks
from ..small_tasks import Problem


def _running(problem: Problem, make: Callable, n: int) -> Callable[[], np.ndarray]:
    run = small_tasks.prepare(problem, make, n)
    return lambda: np.asarray(run())


def _quadratics(matrices, offsets, steps) -> Problem:
    n, dim = offsets.shape
    own = jnp.asarray(matrices), jnp.asarray(offsets)
    batches = jnp.zeros((n, int(steps)))
    return Problem(jnp.zeros(dim), small_tasks.quadratic_gradient, batches, own)


def quadratics(matrices, offsets, weights, rate, steps) -> Callable[[], np.ndarray]:
    """D-PSGD; returns the models `[n, d]`."""
    n = len(weights)
    gossip = functools.partial(djax.gossip, topologies.ring(n))
    return _running(_quadratics(matrices, offsets, steps), gossip, n)


def local_steps(matrices, offsets, rate, steps, period) -> Callable[[], np.ndarray]:
    """SGD with an average over all workers after every `period` steps; `[n, d]`."""
    return _running(
        _quadratics(matrices, offsets, steps),
        lambda communicator: djax.every(int(period), djax.all_reduce(communicator)),
        len(offsets),
    )


def mlp(
    w0, b0, w1, b1, images, labels, weights, rate, period
) -> Callable[[], np.ndarray]:
    """D-PSGD of an MLP, averaged after every `period` steps; the last layer."""
    n, period = len(weights), int(period)
    params = [{"w": jnp.asarray(w0), "b": b0}, {"w": jnp.asarray(w1), "b": b1}]
    problem = Problem(params, small_tasks.mlp_gradient, (images, labels))
    average = functools.partial(djax.gossip, topologies.ring(n))
    make = average if period == 1 else lambda c: djax.every(period, average(c))
    run = small_tasks.prepare(problem, make, n)
    return lambda: np.asarray(run()[1]["w"])


def asynchronous(
    matrices, offsets, rate, worker, peer, time, duration
) -> Callable[[], np.ndarray]:
    """AD-PSGD in the simulator; returns the models `[n, d]`."""
    n, dim = offsets.shape
    events = djax.asynchronous.Events(n, time, worker, peer, float(duration))
    algorithm = djax.adpsgd(optax.sgd(float(rate)))
    own = jnp.asarray(matrices), jnp.asarray(offsets)

    def run():
        *_, last = djax.asynchronous.simulate(
            algorithm,
            events,
            jnp.zeros((n, dim)),
            small_tasks.quadratic_gradient,
            lambda epoch: np.zeros((n, 1)),
            model_state=own,
        )
        return np.asarray(last.params)

    return run


def sweep(
    matrices, offsets, optimum, weights, rates, steps
) -> Callable[[], np.ndarray]:
    """D-PSGD with all rates and seeds at once; returns errors `[rates, seeds]`."""
    n = len(weights)
    communicator = communicators.simulated(n)
    mechanism = djax.gossip(topologies.ring(n), communicator)
    run = small_tasks.descend(mechanism, communicator, int(steps))
    seeds = Quadratics(matrices, offsets, optimum)
    grid = jax.jit(small_tasks.grid(run))
    return lambda: np.asarray(grid(rates, seeds))


def gossip(weights, steps, **leaves) -> Callable[[], np.ndarray]:
    """Gossip between processes over MPI; returns some entries of each leaf."""
    communicator = communicators.mpi()
    mechanism = djax.gossip(topologies.ring(communicator.size), communicator)
    optimizer = optax.chain(optax.set_to_zero(), mechanism)
    own = [(1 + communicator.rank()) * x for x in leaves.values()]
    averaging = field.Program(optimizer, communicator, own, int(steps))
    return lambda: np.concatenate([np.ravel(x)[:100] for x in averaging()])
