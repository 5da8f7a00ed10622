"""Multilayer perceptrons, the smallest models of images."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ._layers import scale


class MLP(nn.Module):
    """A multilayer perceptron with ReLU; `features` are the widths of all layers."""

    features: Sequence[int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps `float[batch, ...]` to `float32[batch, features[-1]]`."""
        del train
        x = x.reshape(len(x), -1).astype(self.dtype)
        for width in self.features[:-1]:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.features[-1], dtype=self.dtype)(x).astype(jnp.float32)


def mlp(
    outputs: int,
    *,
    hidden: Sequence[int] = (128,),
    width: float = 1.0,
    dtype: Any = jnp.float32,
) -> MLP:
    """Makes a multilayer perceptron with the widths `hidden` of the hidden layers."""
    return MLP((*(scale(h, width) for h in hidden), outputs), dtype)
