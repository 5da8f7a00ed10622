"""Mechanisms and corrections: optax transformations that talk to the neighbours."""

from ._all_reduce import AllReduceState as AllReduceState
from ._all_reduce import all_reduce as all_reduce
from ._every import EveryState as EveryState
from ._every import every as every
from ._gossip import GossipState as GossipState
from ._gossip import gossip as gossip
from ._interleave import InterleaveState as InterleaveState
from ._interleave import interleave as interleave
from ._on_updates import on_updates as on_updates
