"""Layers with the initialization of PyTorch, which the papers' experiments used."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Draws normal numbers of variance 2 / (kernel area * output channels)."""


def uniform(bound: float) -> nn.initializers.Initializer:
    """Makes an initializer that draws uniform numbers between -bound and bound."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense(x: jax.Array, width: int, dtype: Any) -> jax.Array:
    """Applies a dense layer, initialized as in PyTorch.

    Kernel and bias are uniform between -1 / sqrt(inputs) and 1 / sqrt(inputs).
    """
    init = uniform(x.shape[-1] ** -0.5)
    return nn.Dense(width, kernel_init=init, bias_init=init, dtype=dtype)(x)
