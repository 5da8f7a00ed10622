"""Whole optimizers: algorithms whose communication is not at the end of the step alone.

A mechanism averages what the optimizer in front of it has made. The algorithms here
cannot be taken apart in this way, since what they send and what they step along depend
on each other. Each of them takes gradients, and returns the updates of the parameters.
"""

from ._beer import BeerState, beer
from ._decentralized import DecentralizedState, decentralized
from ._demo import DemoState, demo
from ._gut import GutState, gut, gut_eval_params
from ._momentum_tracking import MomentumTrackingState, momentum_tracking

__all__ = [
    "BeerState",
    "DecentralizedState",
    "DemoState",
    "GutState",
    "MomentumTrackingState",
    "beer",
    "decentralized",
    "demo",
    "gut",
    "gut_eval_params",
    "momentum_tracking",
]
__dir__ = __all__.copy  # For dir() and completion.
