"""Models, in flax."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """A multilayer perceptron with ReLU.

    Attributes:
      features: widths of the layers, the last being the number of outputs.
    """

    features: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `float[..., inputs]` to `float[..., features[-1]]`."""
        for width in self.features[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.features[-1])(x)
