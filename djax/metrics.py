r"""How far the workers are from each other.

The functions say what one worker does, as mechanisms do: they run inside
:meth:`djax.Communicator.spmd`, on the parameters :math:`x_i` of one worker. Each of
them makes one all-reduce of arrays like the parameters.

Examples:
  >>> import djax, jax, jax.numpy as jnp
  >>> communicator = djax.communicators.simulated(2)
  >>> params = {"w": jnp.asarray([[0.0, 0.0], [2.0, 4.0]])}
  >>> distance = lambda x: djax.metrics.consensus_distance(x, communicator)
  >>> print(communicator.spmd(distance)(params))
  [5. 5.]
"""

import functools
import operator

import jax
import jax.numpy as jnp
import optax

from ._arrays.checks import check_averageable
from ._arrays.precision import promote
from ._interfaces import Communicator

__all__ = ["consensus_distance", "mean_params", "worker_distance"]
__dir__ = __all__.copy  # For dir() and completion.


def mean_params(params: optax.Params, communicator: Communicator) -> optax.Params:
    r"""The averaged model :math:`\bar x = \frac1n \sum_i x_i`.

      params: the parameters of this worker, a tree of arrays of floats.
      params: the parameters of this worker.
      communicator: connects the workers.

    Returns:
      A tree like `params`, the same on every worker. The leaves keep their dtypes.
    """
    return communicator.mean(params)


def worker_distance(params: optax.Params, communicator: Communicator) -> jax.Array:
    r"""This worker's squared distance from the mean, :math:`\|x_i - \bar x\|^2`.

    Args:
      params: the parameters of this worker.
      communicator: connects the workers.

    Returns:
      `float[]`, the sum over all leaves, in float32 or wider; 0 if there are no leaves.
    """
    check_averageable("worker_distance", params)
    promoted = jax.tree.map(promote, params)
    mean = mean_params(promoted, communicator)
    squares = jax.tree.map(
        lambda x, m: jnp.sum(jnp.square(jnp.abs(x - m))), promoted, mean
    )
    leaves = jax.tree.leaves(squares)
    return functools.reduce(operator.add, leaves) if leaves else jnp.zeros(())


def consensus_distance(params: optax.Params, communicator: Communicator) -> jax.Array:
    r"""The variance of the workers' models, :math:`\frac1n \sum_i \|x_i - \bar x\|^2`.

    Args:
      params: the parameters of this worker.
      communicator: connects the workers.

    Returns:
      `float[]`, the same on every worker, in float32 or wider.
    """
    return communicator.mean(worker_distance(params, communicator))
