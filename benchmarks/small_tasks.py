"""Small tasks for simulated workers, and runs of a mechanism on them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax import communicators
from experiments.lib.quadratics import random_quadratics

from . import field

DIM = 10  # Parameters of the quadratics.
RATE = 0.01  # Learning rate of SGD.


class Problem(NamedTuple):
    """A task for n workers.

    Attributes:
      params: initial parameters of one worker.
      gradient_fn: see :func:`djax.simulation.make_steps`.
      batches: leaves `[n, steps, ...]`.
      model_state: leaves `[n, ...]`.
    """

    params: Any
    gradient_fn: Callable
    batches: Any
    model_state: Any = ()


def mlp(layers: Sequence[int], n: int, steps: int, batch_size: int) -> Problem:
    """An MLP of two layers on random images, with batches `[n, steps, batch_size]`."""
    keys = jax.random.split(jax.random.key(0), len(layers) + 1)
    params = [
        {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys, itertools.pairwise(layers), strict=False)
    ]
    lead = (n, steps, batch_size)
    images = jax.random.normal(keys[-2], (*lead, layers[0]))
    labels = jax.random.randint(keys[-1], lead, 0, layers[-1])

    return Problem(params, mlp_gradient, (images, labels))


def mlp_gradient(params, model_state, batch):
    """The gradient function of :func:`mlp`, of the mean loss of a batch."""

    def loss(params, images, labels):
        hidden = jax.nn.relu(images @ params[0]["w"] + params[0]["b"])
        logits = hidden @ params[1]["w"] + params[1]["b"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    value, grads = jax.value_and_grad(loss)(params, *batch)
    return grads, model_state, {"loss": value}


def quadratics(n: int, steps: int) -> Problem:
    """The random quadratics of RelaySGD's paper, which workers keep as model state."""
    problem = random_quadratics(n, DIM, 1.0)
    own = tuple(jnp.asarray(x, "f4") for x in (problem.matrices, problem.offsets))
    return Problem(jnp.zeros(DIM), quadratic_gradient, jnp.zeros((n, steps)), own)


def quadratic_gradient(x, own, batch):
    """The gradient function of :func:`quadratics`; the batch plays no role."""
    matrix, offset = own
    return matrix.T @ (matrix @ x - offset), own, ()


def prepare(problem: Problem, make: Callable, n: int) -> Callable[[], Any]:
    """Makes a function that runs SGD with a mechanism, and returns the models."""
    communicator = communicators.simulated(n)
    params = communicators.replicate(communicator, problem.params)
    return field.training(
        optax.chain(optax.sgd(RATE), make(communicator)),
        communicator,
        (params, problem.model_state),
        problem.gradient_fn,
        problem.batches,
    )


def descend(mechanism: Any, communicator: Any, steps: int) -> Callable:
    """Makes SGD with a mechanism on quadratics, for sweeps.

    Returns:
      A function `(learning_rate, problem)` that returns the distance of the workers'
      mean model from the optimum. It can be under `jit` and `vmap`.
    """

    def run(learning_rate, problem):
        optimizer = optax.chain(optax.sgd(learning_rate), mechanism)

        def worker(matrix, offset):
            def step(carry, _):
                x, state = carry
                grads = matrix.T @ (matrix @ x - offset)
                updates, state = optimizer.update(grads, state, x)
                return (optax.apply_updates(x, updates), state), None

            x = jnp.zeros_like(offset)
            return jax.lax.scan(step, (x, optimizer.init(x)), length=steps)[0][0]

        x = communicator.spmd(worker)(problem.matrices, problem.offsets).mean(axis=0)
        return jnp.linalg.norm(x - problem.optimum)

    return run


def grid(run: Callable[[Any, Any], jax.Array]) -> Callable[[jax.Array, Any], jax.Array]:
    """Makes a function that runs all pairs of a learning rate and a problem.

    It is one `vmap` over the pairs, although each problem is then repeated. With one
    `vmap` over the rates within another one over the problems, the products of small
    matrices take 1.5 times as long on CPUs.

    Args:
      run: a function of a learning rate and a problem.

    Returns:
      A function of rates, `[rates]`, and problems, whose leaves are `[problems, ...]`.
      It returns an array `[rates, problems]`.
    """

    def all_runs(rates, problems):
        count = len(jax.tree.leaves(problems)[0])
        repeated = jax.tree.map(lambda x: jnp.concatenate([x] * len(rates)), problems)
        results = jax.vmap(run)(jnp.repeat(rates, count), repeated)
        return results.reshape(len(rates), count)

    return all_runs
