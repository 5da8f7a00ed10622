"""Mechanisms: how workers average with their neighbours; a file a paper."""

from djax.mechanisms._all_reduce import AllReduceState as AllReduceState
from djax.mechanisms._all_reduce import all_reduce as all_reduce
from djax.mechanisms._choco import ChocoState as ChocoState
from djax.mechanisms._choco import choco_gossip as choco_gossip
from djax.mechanisms._dcd import DCDState as DCDState
from djax.mechanisms._dcd import dcd as dcd
from djax.mechanisms._deep_squeeze import DeepSqueezeState as DeepSqueezeState
from djax.mechanisms._deep_squeeze import deep_squeeze as deep_squeeze
from djax.mechanisms._ecd import ECDState as ECDState
from djax.mechanisms._ecd import ecd as ecd
from djax.mechanisms._gossip import GossipState as GossipState
from djax.mechanisms._gossip import gossip as gossip
from djax.mechanisms._moniqua import MoniquaState as MoniquaState
from djax.mechanisms._moniqua import moniqua as moniqua
from djax.mechanisms._power_gossip.mechanism import PowerGossipState as PowerGossipState
from djax.mechanisms._power_gossip.mechanism import power_gossip as power_gossip
from djax.mechanisms._push_sum import PushSumState as PushSumState
from djax.mechanisms._push_sum import push_sum as push_sum
from djax.mechanisms._push_sum import push_sum_eval_params as push_sum_eval_params
from djax.mechanisms._relay import RelayState as RelayState
from djax.mechanisms._relay import relay as relay
