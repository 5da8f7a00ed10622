"""Residual networks for small and large images.

He et al., Deep Residual Learning for Image Recognition, 2016,
https://arxiv.org/abs/1512.03385. The networks for CIFAR have the depth 6 k + 2, and
change their width by convolutions of 1 x 1, as in the PowerGossip paper. ResNet-18 and
ResNet-50 are those of torchvision.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ._layers import BatchNorm, EvoNormS0, dense, he_normal, scale

Stem = Literal["cifar", "imagenet"]


class ResNet(nn.Module):
    """A residual network.

    Attributes:
      blocks: number of blocks in each stage; all stages but the first halve the image.
      widths: channels of each stage. The stem has as many as the first stage.
      bottleneck: whether blocks have three convolutions, the last one with 4 times the
        width, in place of two.
      stem: `cifar` keeps the size of images; `imagenet` divides both sides by 4.
      evonorm: whether EvoNorm-S0 normalizes the stem and the first convolution of each
        block, and batch normalization without running statistics the rest.
    """

    outputs: int
    blocks: Sequence[int]
    widths: Sequence[int]
    bottleneck: bool = False
    stem: Stem = "cifar"
    evonorm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `float[batch, H, W, C]` to `float32[batch, outputs]`."""
        x = x.astype(self.dtype)
        large = self.stem == "imagenet"
        size, stride = (7, 2) if large else (3, 1)
        x = self._activate(self._conv(x, self.widths[0], size, stride), train)
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        make = self._bottleneck_block if self.bottleneck else self._basic_block
        for stage, (count, width) in enumerate(
            zip(self.blocks, self.widths, strict=True)
        ):
            for block in range(count):
                stride = 2 if stage and not block else 1
                x = make(x, width, stride, train)
        return dense(x.mean((1, 2)), self.outputs, self.dtype).astype(jnp.float32)

    def _basic_block(self, x, width, stride, train):
        y = self._activate(self._conv(x, width, 3, stride), train)
        y = self._normalize(self._conv(y, width, 3), train)
        return nn.relu(y + self._shortcut(x, width, stride, train))

    def _bottleneck_block(self, x, width, stride, train):
        y = self._activate(self._conv(x, width, 1), train)
        y = nn.relu(self._normalize(self._conv(y, width, 3, stride), train))
        y = self._normalize(self._conv(y, 4 * width, 1), train)
        return nn.relu(y + self._shortcut(x, 4 * width, stride, train))

    def _shortcut(self, x, width, stride, train):
        if x.shape[-1] == width and stride == 1:
            return x
        return self._normalize(self._conv(x, width, 1, stride), train)

    def _conv(self, x, width, size, stride=1):
        return nn.Conv(
            width,
            (size, size),
            stride,
            padding=(size - 1) // 2,
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
        )(x)

    def _activate(self, x, train):
        if self.evonorm:
            return EvoNormS0(dtype=self.dtype)(x)
        return nn.relu(self._normalize(x, train))

    def _normalize(self, x, train):
        return BatchNorm(running=not self.evonorm, dtype=self.dtype)(x, train=train)


def resnet(
    outputs: int,
    *,
    depth: int = 20,
    width: float = 1.0,
    blocks: Sequence[int] | None = None,
    dtype: Any = jnp.float32,
) -> ResNet:
    """Makes a residual network of 6 k + 2 layers for images of 32 x 32.

    It has 272,474 parameters at depth 20 with ten classes. Without `blocks` it has
    three stages of k blocks each.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth} must be 8, 14, 20, ...")
    blocks = (depth // 6,) * 3 if blocks is None else blocks
    return ResNet(outputs, *_make_stages(blocks, (16, 32, 64), width), dtype=dtype)


def resnet18(
    outputs: int,
    *,
    stem: Stem = "cifar",
    evonorm: bool = False,
    width: float = 1.0,
    blocks: Sequence[int] = (2, 2, 2, 2),
    dtype: Any = jnp.float32,
) -> ResNet:
    """Makes a ResNet-18; the RelaySGD paper's, on ImageNet, is normalized by EvoNorm.

    It has 11,173,962 parameters for ten classes of small images, and 11,689,512 for the
    1,000 classes of ImageNet.
    """
    return _of_torchvision(outputs, blocks, stem, width, evonorm, dtype=dtype)


def resnet50(
    outputs: int,
    *,
    stem: Stem = "cifar",
    width: float = 1.0,
    blocks: Sequence[int] = (3, 4, 6, 3),
    dtype: Any = jnp.float32,
) -> ResNet:
    """Makes a ResNet-50, or with 3, 4, 23 and 3 blocks a ResNet-101.

    It has 23,520,842 parameters for ten classes of small images, and 25,557,032 for the
    1,000 classes of ImageNet.
    """
    return _of_torchvision(outputs, blocks, stem, width, bottleneck=True, dtype=dtype)


resnet18_evonorm = functools.partial(resnet18, evonorm=True, stem="imagenet")


def _of_torchvision(outputs, blocks, stem, width, evonorm=False, **options) -> ResNet:
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"stem={stem} must be cifar or imagenet.")
    stages = _make_stages(blocks, (64, 128, 256, 512), width)
    return ResNet(outputs, *stages, stem=stem, evonorm=evonorm, **options)


def _make_stages(blocks, channels, width) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the blocks and the widths of the stages, of which there may be fewer."""
    most = len(channels)
    if not 1 <= len(blocks) <= most or min(blocks) < 1:
        raise ValueError(f"blocks={blocks} must be 1 to {most} numbers of at least 1.")
    return tuple(blocks), tuple(scale(w, width) for w in channels[: len(blocks)])
