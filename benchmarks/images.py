"""Networks of the papers' sizes and random images, which the benchmarks train on."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


def shapes(network: nn.Module, size: int) -> tuple[Any, Any]:
    """Shapes of a network's parameters, and of its other variables.

    Args:
      network: a network of :mod:`experiments.lib.models`.
      size: height and width of the images, in pixels.
    """

    def init(key):
        return network.init(key, jnp.zeros((1, size, size, 3)), train=False)

    variables = dict(jax.eval_shape(init, jax.random.key(0)))
    return variables.pop("params"), variables


def start(network: nn.Module, size: int) -> tuple[Any, Any]:
    """Random parameters, and ones for all other variables."""
    params, model_state = shapes(network, size)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        0.05 * jax.random.normal(key, x.shape, x.dtype)
        for key, x in zip(keys, leaves, strict=True)
    ]
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), model_state)
    return treedef.unflatten(drawn), ones


def batch(lead: tuple[int, ...], size: int) -> tuple[jax.Array, jax.Array]:
    """Images `[*lead, size, size, 3]` and their labels, `[*lead]`."""
    images = jax.random.normal(jax.random.key(1), (*lead, size, size, 3))
    return images, jnp.zeros(lead, jnp.int32)


def make_gradient(network: nn.Module) -> Callable:
    """The gradient function of a network; see :func:`djax.simulation.make_steps`."""

    def loss_fn(params, model_state, batch):
        images, labels = batch
        logits, model_state = network.apply(
            {"params": params, **model_state},
            images,
            train=True,
            mutable=list(model_state),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), model_state

    def gradient_fn(params, model_state, batch):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, model_state), grads = gradient(params, model_state, batch)
        return grads, model_state, {"loss": loss}

    return gradient_fn
