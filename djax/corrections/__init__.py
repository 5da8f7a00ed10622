"""Corrections: they wrap a mechanism, and change when it averages, and what."""

# Names that are imported with `as` are for other packages of djax, not for users.
from ._anchors import AnchorDtype as AnchorDtype
from ._anchors import Memory as Memory
from ._d2 import D2State, d2
from ._d2 import check_d2 as check_d2
from ._every import EveryState, every
from ._gradient_tracking import GradientTrackingState, gradient_tracking
from ._interleave import InterleaveState, interleave
from ._k_gt import KGTState, k_gt
from ._led import LEDState, led
from ._on_updates import on_updates
from ._outer import Fragments as Fragments
from ._outer import OuterState, outer
from ._outer_steps import FragmentState
from ._per_shard import PerShardState, per_shard
from ._prox_skip import ProxSkipState, prox_skip
from ._quasi_global import (
    QuasiGlobalAdamState,
    QuasiGlobalMomentumState,
    quasi_global_adam,
    quasi_global_momentum,
)
from ._sharded import sharded
from ._sparse import SparseState, sparse

__all__ = [
    "D2State",
    "EveryState",
    "FragmentState",
    "GradientTrackingState",
    "InterleaveState",
    "KGTState",
    "LEDState",
    "OuterState",
    "PerShardState",
    "ProxSkipState",
    "QuasiGlobalAdamState",
    "QuasiGlobalMomentumState",
    "SparseState",
    "d2",
    "every",
    "gradient_tracking",
    "interleave",
    "k_gt",
    "led",
    "on_updates",
    "outer",
    "per_shard",
    "prox_skip",
    "quasi_global_adam",
    "quasi_global_momentum",
    "sharded",
    "sparse",
]
__dir__ = __all__.copy  # For dir() and completion.
