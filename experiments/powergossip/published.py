"""Holds the bytes that PowerGossip's published code sends, and the paper's models."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..lib import models


def resnet20_shapes() -> Any:
    """Returns the shapes of ResNet-20's parameters, which are 272,474 numbers."""
    return _shapes(models.IMAGE_MODELS["resnet20"](10), jnp.zeros((1, 32, 32, 3)))


def lstm_shapes() -> Any:
    """Returns the shapes of the parameters of the paper's three-layer LSTM."""
    model = models.lstm(28_869)  # Different words; it depends on the tokenizer.
    return _shapes(model, jnp.zeros((1, 1), jnp.int32), model.initial_carry(1))


def _shapes(model: nn.Module, *inputs: Any) -> Any:
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


CIFAR10, WIKITEXT2 = "CIFAR-10, ResNet-20", "WikiText-2, LSTM"
SHAPES = {CIFAR10: resnet20_shapes, WIKITEXT2: lstm_shapes}


class Published(NamedTuple):
    """What a method sends according to the definitions in the published code.

    Attributes:
      bytes: bytes to each neighbour in each step.
      ratio: bytes of uncompressed gossip over `bytes`; for the LSTM it is rounded.
      mib: MiB that a worker sends in an epoch.
    """

    bytes: float | None = None
    ratio: float | None = None
    mib: float | None = None


_SIGN = Published(34_320, 32, 3.21)
_ONE, _TWO = Published(19_410, 56, 1.81), Published(32_508, 34, 3.04)
_32_VECTORS = Published(ratio=35)
PUBLISHED = {
    CIFAR10: {
        "D-PSGD": Published(1_089_896, 1, 101.9),
        "CHOCO, sign": _SIGN,
        "CHOCO, sign, untuned": _SIGN,
        "CHOCO, top 1 %": Published(32_952, 33, 3.08),
        "DeepSqueeze, sign": _SIGN,
        "Moniqua, 2 bits": Published(68_118.5, 16, 6.37),
        "PowerGossip, 1 iteration": _ONE,
        "PowerGossip, 1 it., random": _ONE,
        "PowerGossip, 2 iterations": _TWO,
        "PowerGossip, 2 it., random": _TWO,
    },
    WIKITEXT2: {
        "D-PSGD": Published(ratio=1),
        "PowerGossip, 8 iterations": Published(ratio=120),
        "PowerGossip, 16 iterations": Published(ratio=66),
        "PowerGossip, 32 iterations": _32_VECTORS,
        "PowerGossip, 32 it., random": _32_VECTORS,
        "PowerGossip, rank 8, 4 it.": _32_VECTORS,
        "PowerGossip, rank 4, 8 it.": _32_VECTORS,
        "PowerGossip, rank 2, 16 it.": _32_VECTORS,
    },
}
"""Published numbers by configuration and method. For other methods there are none."""
