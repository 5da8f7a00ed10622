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

    def loss(params, images, labels):
        hidden = jax.nn.relu(images @ params[0]["w"] + params[0]["b"])
        logits = hidden @ params[1]["w"] + params[1]["b"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def gradient(params, model_state, batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        return grads, model_state, {"loss": value}

    return Problem(params, gradient, (images, labels))


def quadratics(n: int, steps: int) -> Problem:
    """The random quadratics of RelaySGD's paper, which workers keep as model state."""
    problem = random_quadratics(n, DIM, 1.0)
    own = tuple(jnp.asarray(x, "f4") for x in (problem.matrices, problem.offsets))

    def gradient(x, own, batch):
        matrix, offset = own
        return matrix.T @ (matrix @ x - offset), own, ()

    return Problem(jnp.zeros(DIM), gradient, jnp.zeros((n, steps)), own)


def prepare(problem: Problem, make: Callable, n: int) -> Callable[[], Any]:
    """Makes a function that runs SGD with a mechanism, and returns the models."""
    communicator = communicators.simulated(n)
    params = communicators.replicate(communicator, problem.params)
    return field.training(
        optax.chain(optax.sgd(0.01), make(communicator)),
        communicator,
        (params, problem.model_state),
        problem.gradient_fn,
        problem.batches,
    )
