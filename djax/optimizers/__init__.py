"""Optimizers that contain a mechanism, and know more of each other than in a chain."""

from ._decentralized import DecentralizedState, decentralized

__all__ = ["DecentralizedState", "decentralized"]
__dir__ = __all__.copy  # For dir() and completion.
