"""Mechanisms: how workers average with their neighbours. Each paper has a file."""

# Names that are imported with `as` are for other packages of djax, not for users.
from ._all_reduce import AllReduceState, all_reduce
from ._choco import ChocoState, choco_gossip
from ._dcd import DCDState, dcd
from ._deep_squeeze import DeepSqueezeState, deep_squeeze
from ._ecd import ECDState, ecd
from ._gossip import GossipState, gossip
from ._moniqua import MoniquaState, moniqua
from ._power_gossip.mechanism import PowerGossipState, power_gossip
from ._push_sum import PushSumState, push_sum, push_sum_eval_params
from ._relay import Missing as Missing
from ._relay import RelayState, relay

__all__ = [
    "AllReduceState",
    "ChocoState",
    "DCDState",
    "DeepSqueezeState",
    "ECDState",
    "GossipState",
    "MoniquaState",
    "PowerGossipState",
    "PushSumState",
    "RelayState",
    "all_reduce",
    "choco_gossip",
    "dcd",
    "deep_squeeze",
    "ecd",
    "gossip",
    "moniqua",
    "power_gossip",
    "push_sum",
    "push_sum_eval_params",
    "relay",
]
__dir__ = __all__.copy  # For dir() and completion.
