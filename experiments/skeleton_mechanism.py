r"""A template for a mechanism of your own: copy this file and replace its mathematics.

    python -m experiments.skeleton_mechanism --help
    python -m experiments.skeleton_mechanism                          # 10 seconds
    mpirun -n 4 python -m experiments.skeleton_mechanism --workers 4  # over MPI

A mechanism is two functions that say what ONE worker does: where it starts, and how far
averaging with its neighbours moves its model. Everything else is djax's: optimizers,
corrections, communicators, message dtypes, lost messages and the count of bytes. This
file has the four parts that a mechanism needs before its results can be believed: the
state, the two functions, a twin in NumPy, and a training whose optimum is known. Its
tests, `tests/test_skeleton.py`, are to be copied as well.

The example is gossip with momentum. On a graph that is badly connected, such as a large
ring, plain gossip needs many steps until all workers agree. Momentum adds a share
:math:`\beta` of the last displacement to the new one, so that displacements in the same
direction grow from step to step. With :math:`y_i` the model of worker i after the
update of its optimizer, :math:`w_{ij}` the weights of the graph and :math:`d_i` the
displacement,

.. math::
   d_i &\leftarrow \textstyle\sum_j w_{ij} (y_j - y_i) + \beta d_i \\
   x_i &\leftarrow y_i + d_i

* With :math:`\beta = 0` this is :func:`djax.gossip`.
* Without gradients, a step of gossip multiplies the slowest difference between workers
  by :math:`1 - \delta`, where :math:`\delta` is the graph's spectral gap. With
  :math:`\beta = (1 - \sqrt\delta)^2` that factor becomes :math:`1 - \sqrt\delta`: for a
  ring of 16 workers with Metropolis weights, 0.77 in place of 0.95.
* A worker sends one model to each neighbour in each step, as in gossip.
* Where no message is lost, the mean of all models does not move: the displacements of
  all workers add up to zero, since those of plain gossip do.

Expect the worst of 16 workers at a distance of 0.25 from the optimum with momentum, and
of 0.50 without, for 48 bytes a step in both cases.

Ghadimi, Shames and Johansson, `Multi-step gradient methods for networked optimization
<https://arxiv.org/abs/1211.2132>`_, 2013.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.typing import ArrayLike

import djax
import djax.testing

# 1. The state: what a worker has to remember from one step to the next.


class MomentumGossipState(NamedTuple):
    """State of :func:`momentum_gossip`.

    Attributes:
      step: `int32[]`, number of steps so far. It decides which matrix of a schedule is
        used, which messages are lost, and how messages are rounded at random.
      displacement: how far the last averaging moved the model; a tree like the
        parameters, in float32 or wider.
    """

    step: ArrayLike
    displacement: optax.Updates


# 2. The mechanism: the equations above, with their symbols spelled out.


def momentum_gossip(
    topology: djax.topologies.Graph,
    communicator: djax.Communicator,
    momentum: ArrayLike,
    *,
    overlap: bool = False,
) -> djax.Mechanism:
    r"""Averages with the neighbours, and repeats a share of the last displacement.

    Args:
      topology: the graph and its weights. On a schedule of changing graphs the
        mechanism runs as well, but nothing is known of its rate there.
      communicator: how messages travel.
      momentum: the share :math:`\beta` in [0, 1). A float, or a scalar array
        (`optax.inject_hyperparams` works). See :func:`fastest_momentum`.
      overlap: average the parameters before this step's updates, so that messages need
        not wait for gradients.

    Returns:
      A :class:`djax.Mechanism` with a :class:`MomentumGossipState`.

    Raises:
      ValueError: if the momentum is a number outside of [0, 1), or the sizes of the
        graph and of the communicator differ.

    Examples:
      >>> import djax, optax
      >>> ring, workers = djax.topologies.ring(16), djax.communicators.simulated(16)
      >>> averaging = momentum_gossip(ring, workers, fastest_momentum(ring))
      >>> optimizer = optax.chain(optax.sgd(0.1), averaging)
    """
    if isinstance(momentum, int | float) and not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}.")

    def init(params):
        start = djax.mixing.difference(params, params)  # Zeros, in float32 or wider.
        return MomentumGossipState(jnp.zeros((), jnp.int32), start)

    def mix(model, state):
        displacement = jax.tree.map(
            lambda new, old: new + jnp.asarray(momentum, old.dtype) * old,
            djax.mixing.displacement(model, topology, communicator, step=state.step),
            state.displacement,
        )
        return displacement, MomentumGossipState(state.step + 1, displacement)

    return djax.mechanism(
        init, mix, communicator, topology, overlap=overlap, name="momentum_gossip"
    )


def fastest_momentum(topology: djax.Topology) -> float:
    r"""Returns the momentum with which differences between workers decay the fastest.

    It is :math:`(1 - \sqrt\delta)^2`, where :math:`\delta` is the spectral gap of an
    undirected graph.

    Examples:
      >>> import djax
      >>> print(round(fastest_momentum(djax.topologies.ring(16)), 3))
      0.6
    """
    return (1 - topology.spectral_gap**0.5) ** 2


# 3. The twin: the same algorithm for all workers at once, in plain NumPy. Write it from
#    the paper, not from the code above; djax.testing compares the two.


def reference(
    gradient: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    learning_rate: float,
    steps: int,
    matrices: np.ndarray,
    *,
    momentum: float,
) -> np.ndarray:
    """Computes SGD with gossip with momentum for all workers at once, in NumPy.

    :func:`djax.testing.assert_matches`, which calls this function, explains the
    arguments.
    """
    displacement = np.zeros_like(x)
    for t in range(steps):
        y = x - learning_rate * gradient(x)
        displacement = matrices[t % len(matrices)] @ y - y + momentum * displacement
        x = y + displacement
    return x


# 4. The training, on a problem with a known optimum, where every worker has other data.
#    On equal data, workers would agree without any communication.


@dataclasses.dataclass(frozen=True)
class Config:
    """A training on quadratics, whose optimum is known."""

    workers: int = 16
    """Number of simulated workers; under mpirun each process is a worker instead."""
    learning_rate: float = 0.05
    """Constant learning rate of SGD; a decay would hide remaining differences."""
    steps: int = 300
    """Number of steps of each worker."""


class Result(NamedTuple):
    """What a mechanism has reached."""

    worst: float
    """The largest distance of a worker's model from the optimum."""
    consensus: float
    """Mean squared distance of the workers' models from their mean."""
    bytes: float
    """Mean number of bytes that a worker sends in a step."""


def train(
    mechanism: djax.Mechanism, communicator: djax.Communicator, config: Config
) -> Result:
    """Trains all workers with SGD and a mechanism behind it."""
    optimizer = optax.chain(optax.sgd(config.learning_rate), mechanism)
    problem = djax.testing.quadratics(communicator.size)
    params = jax.ShapeDtypeStruct(problem.optimum.shape, "float32")
    djax.check(optimizer, communicator, params)  # Would it silently go wrong?

    def worker(hessian, target, x):  # What ONE worker does.
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(hessian * (x - target), state, x)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(
            step, (x, optimizer.init(x)), None, length=config.steps
        )
        return x, djax.metrics.consensus_distance(x, communicator)

    mine = np.asarray(communicator.local_ranks)  # The workers of this process.
    data = [jnp.asarray(array[mine], jnp.float32) for array in problem]
    models, consensus = jax.jit(communicator.spmd(worker))(*data)
    errors = np.linalg.norm(np.asarray(models) - problem.optimum, axis=1)
    cost = djax.communication_cost(optimizer, params, communicator)
    worst = max(communicator.gather(errors.tolist()))
    return Result(worst, float(consensus[0]), cost.mean_bytes)


def main(config: Config) -> dict[str, Result]:
    """Trains with gossip without and with momentum, and prints the results."""
    if (djax.communicators.launcher_size() or 1) > 1:
        communicator = djax.communicators.mpi()
    else:
        communicator = djax.communicators.simulated(config.workers)
    ring = djax.topologies.ring(communicator.size)
    mechanisms = {
        "gossip": djax.gossip(ring, communicator),
        "with momentum": momentum_gossip(ring, communicator, fastest_momentum(ring)),
    }
    results = {
        name: train(mechanism, communicator, config)
        for name, mechanism in mechanisms.items()
    }
    if 0 in communicator.local_ranks:
        print(f"{'':15}{'worst worker':>14}{'consensus':>14}{'bytes a step':>14}")
        for name, (worst, consensus, sent) in results.items():
            print(f"{name:15}{worst:14.4f}{consensus:14.6f}{sent:14.0f}")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
