"""Networks of layers one after another: multilayer perceptrons, and VGG-11.

VGG-11, here without batch normalization, is what the RelaySGD paper trains on CIFAR-10:
Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
Recognition, 2015, https://arxiv.org/abs/1409.1556.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ._layers import dense, he_normal, scale

LAYERS = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
"""Output channels of VGG-11's convolutions; M is pooling, which halves the image."""


class VGG(nn.Module):
    """A network of 3 x 3 convolutions, followed by three dense layers with dropout."""

    outputs: int
    layers: Sequence[int | str]
    hidden: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `float[batch, H, W, C]`, to `float32[batch, outputs]`."""
        x = x.astype(self.dtype)
        for layer in self.layers:
            if isinstance(layer, str):
                x = nn.max_pool(x, (2, 2), (2, 2))
                if x.size == 0:
                    raise ValueError("the layers halve images until no pixel is left.")
                continue
            conv = nn.Conv(layer, (3, 3), kernel_init=he_normal, dtype=self.dtype)
            x = nn.relu(conv(x))
        x = x.reshape(len(x), -1)
        for width in (self.hidden, self.hidden):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(dense(x, width, self.dtype))
        return dense(x, self.outputs, self.dtype).astype(jnp.float32)


def vgg11(
    outputs: int,
    *,
    dropout: float = 0.5,
    width: float = 1.0,
    layers: Sequence[int | str] = LAYERS,
    dtype: Any = jnp.float32,
) -> VGG:
    """Makes VGG-11, which has 9,750,922 parameters for ten classes, or another VGG."""
    if not all(x == "M" or (isinstance(x, int) and x > 0) for x in layers):
        raise ValueError(f"layers={layers} must be positive numbers and 'M'.")
    layers = tuple(x if isinstance(x, str) else scale(x, width) for x in layers)
    return VGG(outputs, layers, scale(512, width), dropout, dtype)


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
