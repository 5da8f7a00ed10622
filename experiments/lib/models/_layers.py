"""Layers as PyTorch initializes them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal, of variance 2 / (kernel area * channels out)."""


def uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform on +-bound.

    Args:
      bound: the largest value.
    """

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense(x: jax.Array, width: int, dtype: Any) -> jax.Array:
    """A dense layer, kernel and bias uniform on +-1 / sqrt(inputs).

    Args:
      x: `[batch, inputs]`.
      width: of the layer.
      dtype: in which it computes.
    """
    init = uniform(x.shape[-1] ** -0.5)
    return nn.Dense(width, kernel_init=init, bias_init=init, dtype=dtype)(x)
