"""Corrections: what changes when, and of what, a mechanism averages."""

from djax.corrections._d2 import D2State as D2State
from djax.corrections._d2 import d2 as d2
from djax.corrections._every import EveryState as EveryState
from djax.corrections._every import every as every
from djax.corrections._gradient_tracking import (
    GradientTrackingState as GradientTrackingState,
)
from djax.corrections._gradient_tracking import gradient_tracking as gradient_tracking
from djax.corrections._interleave import InterleaveState as InterleaveState
from djax.corrections._interleave import interleave as interleave
from djax.corrections._on_updates import on_updates as on_updates
from djax.corrections._quasi_global import QuasiGlobalAdamState as QuasiGlobalAdamState
from djax.corrections._quasi_global import (
    QuasiGlobalMomentumState as QuasiGlobalMomentumState,
)
from djax.corrections._quasi_global import quasi_global_adam as quasi_global_adam
from djax.corrections._quasi_global import (
    quasi_global_momentum as quasi_global_momentum,
)
