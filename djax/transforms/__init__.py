"""Mechanisms and corrections: optax transformations that talk to the neighbours."""

from ._all_reduce import AllReduceState as AllReduceState
from ._all_reduce import all_reduce as all_reduce
from ._d2 import D2State as D2State
from ._d2 import d2 as d2
from ._every import EveryState as EveryState
from ._every import every as every
from ._gossip import GossipState as GossipState
from ._gossip import gossip as gossip
from ._gradient_tracking import GradientTrackingState as GradientTrackingState
from ._gradient_tracking import gradient_tracking as gradient_tracking
from ._interleave import InterleaveState as InterleaveState
from ._interleave import interleave as interleave
from ._on_updates import on_updates as on_updates
from ._push_sum import PushSumState as PushSumState
from ._push_sum import push_sum as push_sum
from ._push_sum import push_sum_eval_params as push_sum_eval_params
from ._quasi_global import QuasiGlobalAdamState as QuasiGlobalAdamState
from ._quasi_global import QuasiGlobalMomentumState as QuasiGlobalMomentumState
from ._quasi_global import quasi_global_adam as quasi_global_adam
from ._quasi_global import quasi_global_momentum as quasi_global_momentum
from ._relay import RelayState as RelayState
from ._relay import relay as relay
