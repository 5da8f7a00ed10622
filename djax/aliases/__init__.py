"""Algorithms by the names that papers use, in one call.

A reader of the papers looks for D-PSGD, and need not know that it is a chain of
`optax.sgd` and :func:`djax.gossip`. Each function here returns such a chain.
"""

from ._diloco import diloco, streaming_diloco
from ._noloco import noloco
from ._sgd import (
    all_reduce_sgd,
    choco_sgd,
    d2_sgd,
    dcd_psgd,
    dpsgd,
    ecd_psgd,
    exact_diffusion,
    gradient_tracking_sgd,
    power_gossip_sgd,
    relay_sgd,
    relay_sgd_grad,
    sgp,
)
from ._slowmo import slowmo

__all__ = [
    "all_reduce_sgd",
    "choco_sgd",
    "d2_sgd",
    "dcd_psgd",
    "diloco",
    "dpsgd",
    "ecd_psgd",
    "exact_diffusion",
    "gradient_tracking_sgd",
    "noloco",
    "power_gossip_sgd",
    "relay_sgd",
    "relay_sgd_grad",
    "sgp",
    "slowmo",
    "streaming_diloco",
]
__dir__ = __all__.copy  # For dir() and completion.
