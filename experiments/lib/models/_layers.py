"""Layers as in the papers' code, which flax lacks or defines otherwise."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

BATCH_NORM_MOMENTUM = 0.9
"""Weight of the past in running statistics. (PyTorch's `momentum` is 1 minus this.)"""

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Draws normal numbers of variance 2 / (kernel area * output channels)."""


def uniform(bound: float) -> nn.initializers.Initializer:
    """Makes an initializer that draws uniform numbers between -bound and bound."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense(x: jax.Array, width: int, dtype: Any) -> jax.Array:
    """Applies a dense layer to `[batch, inputs]`, initialized as in PyTorch.

    Kernel and bias are uniform between -1 / sqrt(inputs) and 1 / sqrt(inputs).
    """
    init = uniform(x.shape[-1] ** -0.5)
    return nn.Dense(width, kernel_init=init, bias_init=init, dtype=dtype)(x)


def scale(width: int, factor: float) -> int:
    """Multiplies the width of a layer, which stays at least 1."""
    return max(1, round(width * factor))


class BatchNorm(nn.Module):
    """Batch normalization, with or without running statistics.

    Attributes:
      running: whether an evaluation uses running statistics of the training. If not, it
        uses the statistics of its own batch, as a training step does.
    """

    running: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[batch, H, W, C]` to the same shape."""
        channels, axes = x.shape[-1], tuple(range(x.ndim - 1))
        gain = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        if self.running and not train:
            center, spread = (found.value for found in self._running(channels))
        else:
            center = x.mean(axes)
            spread = jnp.square(x - center).mean(axes)
            if self.running:
                self._update(center, spread, x.size // channels)
        y = (x - center) * (jax.lax.rsqrt(spread + 1e-5) * gain) + bias
        return y.astype(self.dtype)

    def _running(self, channels):
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        return mean, var

    def _update(self, center, spread, count):
        mean, var = self._running(len(center))
        if not self.is_initializing():
            keep, unbiased = BATCH_NORM_MOMENTUM, spread * (count / max(1, count - 1))
            mean.value = keep * mean.value + (1 - keep) * center
            var.value = keep * var.value + (1 - keep) * unbiased


class EvoNormS0(nn.Module):
    r"""A normalization with a nonlinearity that treats each image by itself.

    .. math::
        y = \frac{x \, \sigma(v x)}{\sqrt{s^2_{w,h,c/g}(x) + \epsilon}} \gamma + \beta

    with the variance :math:`s^2` within a group of channels. Fewer than `groups`
    channels are a group each. Liu et al., Evolving Normalization-Activation Layers,
    2020, https://arxiv.org/abs/2004.02967, Table 1.
    """

    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, H, W, C]` to the same shape."""
        channels = x.shape[-1]
        gamma = self.param("gamma", nn.initializers.ones, (channels,), jnp.float32)
        beta = self.param("beta", nn.initializers.zeros, (channels,), jnp.float32)
        v = self.param("v", nn.initializers.ones, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        groups = min(self.groups, channels)
        cut = x.reshape(*x.shape[:-1], groups, channels // groups)
        deviation = jnp.sqrt(cut.var((1, 2, 4)) + 1e-5)
        deviation = jnp.repeat(deviation, channels // groups, axis=1)[:, None, None]
        y = x * nn.sigmoid(v * x) / deviation * gamma + beta
        return y.astype(self.dtype)
