"""Finds the flax model that belongs to a name on the command line."""

import functools
from collections.abc import Callable

import flax.linen as nn

from ._distilbert import distilbert
from ._distilbert import load_distilbert as load_distilbert
from ._layers import BATCH_NORM_MOMENTUM as BATCH_NORM_MOMENTUM
from ._lstm import lstm as lstm
from ._resnet import resnet, resnet18, resnet18_evonorm, resnet50
from ._sequential import mlp, vgg11

IMAGE_MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "vgg11": vgg11,
    "resnet8": functools.partial(resnet, depth=8),
    "resnet20": functools.partial(resnet, depth=20),
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet18_evonorm": resnet18_evonorm,
}
"""Functions `(outputs, *, width, dtype, ...) -> module`; modules take `(x, train)`."""
TEXT_MODELS: dict[str, Callable[..., nn.Module]] = {"distilbert": distilbert}
"""Functions `(vocabulary, outputs, *, width, dtype, ...) -> module`; modules take
`(tokens, mask, train)`."""
LANGUAGE_MODELS: dict[str, Callable[..., nn.Module]] = {"lstm": lstm}
"""Functions `(vocabulary, *, width, dtype, ...) -> module`; modules take
`(tokens, carry, train)`."""
