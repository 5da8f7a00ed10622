"""Decentralized deep learning in JAX.

A decentralized algorithm is an optax chain whose last link talks to the neighbours.
It is written once, as what one worker does; a communicator decides where the workers
live.

* graphs: :mod:`djax.topologies` (`ring`, `torus`, `exponential`, ..., and schedules of
  graphs that change with time, such as `base_graph`),
* transports: :mod:`djax.communicators` (`simulated`, `mesh`, `mpi`, and `lossy` around
  them),
* mechanisms, which average: :func:`gossip`, :func:`relay`, :func:`push_sum`,
  :func:`all_reduce`,
* mechanisms that send little: :func:`power_gossip`, and with the lossy codes of
  :mod:`djax.compressors` :func:`choco_gossip`, :func:`deep_squeeze`, :func:`moniqua`,
  :func:`dcd`, :func:`ecd`,
* corrections, which wrap any mechanism: :func:`d2`, :func:`gradient_tracking`,
  :func:`every`, :func:`interleave`, :func:`on_updates`, :func:`only`,
* mechanisms of your own: :func:`mechanism` makes one of two functions,
  :mod:`djax.mixing` talks to the neighbours, :func:`check` finds what would silently go
  wrong, :mod:`djax.testing` compares with NumPy,
* optimizers that contain any mechanism: :func:`quasi_global_momentum`,
  :func:`quasi_global_adam`,
* whole algorithms under their papers' names: :func:`dpsgd`, :func:`relay_sgd`,
  :func:`relay_sgd_grad`, :func:`d2_sgd`, :func:`exact_diffusion`,
  :func:`gradient_tracking_sgd`, :func:`sgp`, :func:`power_gossip_sgd`,
  :func:`choco_sgd`, :func:`dcd_psgd`, :func:`ecd_psgd`, :func:`all_reduce_sgd`,
* workers that never wait: :func:`acid` (A²CiD²), :func:`adpsgd`,
  :func:`acid_constants`, and :mod:`djax.asynchronous`, which runs and simulates them,
* mistakes of composition that raise no error: :func:`check`,
* measures: :mod:`djax.metrics`, :func:`communication_cost`,
* what is known beforehand: :mod:`djax.theory`, :func:`relay_learning_rate_factor`,
* loops over many steps: :mod:`djax.simulation`,
* tests of mechanisms of your own: `djax.testing`, to be imported by itself.

Examples:
  >>> import djax, jax, jax.numpy as jnp, optax
  >>> topology = djax.topologies.ring(4)
  >>> communicator = djax.communicators.simulated(4)
  >>> optimizer = optax.chain(optax.sgd(0.1), djax.gossip(topology, communicator))
  >>> def step(params, state, target):  # what ONE worker does
  ...     updates, state = optimizer.update(params - target, state, params)
  ...     return optax.apply_updates(params, updates), state
  >>> targets = jnp.asarray([1.0, 2.0, 3.0, 4.0])
  >>> params = djax.communicators.replicate(communicator, 0.0)
  >>> state = communicator.spmd(optimizer.init)(params)
  >>> step = jax.jit(communicator.spmd(step))
  >>> for _ in range(100):
  ...     params, state = step(params, state, targets)
  >>> print(params.mean().round(3))
  2.5
"""

from . import asynchronous as asynchronous
from . import communicators as communicators
from . import compressors as compressors
from . import metrics as metrics
from . import mixing as mixing
from . import simulation as simulation
from . import theory as theory
from . import topologies as topologies
from ._checking.check import check as check
from ._interfaces import Communicator as Communicator
from ._interfaces import Compressor as Compressor
from ._mechanism.adapter import mechanism as mechanism
from ._mechanism.adapter import only as only
from ._mechanism.value import Mechanism as Mechanism
from .accounting import CommunicationCost as CommunicationCost
from .accounting import communication_cost as communication_cost
from .aliases import all_reduce_sgd as all_reduce_sgd
from .aliases import choco_sgd as choco_sgd
from .aliases import d2_sgd as d2_sgd
from .aliases import dcd_psgd as dcd_psgd
from .aliases import dpsgd as dpsgd
from .aliases import ecd_psgd as ecd_psgd
from .aliases import exact_diffusion as exact_diffusion
from .aliases import gradient_tracking_sgd as gradient_tracking_sgd
from .aliases import power_gossip_sgd as power_gossip_sgd
from .aliases import relay_sgd as relay_sgd
from .aliases import relay_sgd_grad as relay_sgd_grad
from .aliases import sgp as sgp
from .asynchronous import AcidConstants as AcidConstants
from .asynchronous import AcidState as AcidState
from .asynchronous import ADPSGDState as ADPSGDState
from .asynchronous import acid as acid
from .asynchronous import acid_constants as acid_constants
from .asynchronous import adpsgd as adpsgd
from .corrections import D2State as D2State
from .corrections import EveryState as EveryState
from .corrections import GradientTrackingState as GradientTrackingState
from .corrections import InterleaveState as InterleaveState
from .corrections import QuasiGlobalAdamState as QuasiGlobalAdamState
from .corrections import QuasiGlobalMomentumState as QuasiGlobalMomentumState
from .corrections import d2 as d2
from .corrections import every as every
from .corrections import gradient_tracking as gradient_tracking
from .corrections import interleave as interleave
from .corrections import on_updates as on_updates
from .corrections import quasi_global_adam as quasi_global_adam
from .corrections import quasi_global_momentum as quasi_global_momentum
from .mechanisms import AllReduceState as AllReduceState
from .mechanisms import ChocoState as ChocoState
from .mechanisms import DCDState as DCDState
from .mechanisms import DeepSqueezeState as DeepSqueezeState
from .mechanisms import ECDState as ECDState
from .mechanisms import GossipState as GossipState
from .mechanisms import MoniquaState as MoniquaState
from .mechanisms import PowerGossipState as PowerGossipState
from .mechanisms import PushSumState as PushSumState
from .mechanisms import RelayState as RelayState
from .mechanisms import all_reduce as all_reduce
from .mechanisms import choco_gossip as choco_gossip
from .mechanisms import dcd as dcd
from .mechanisms import deep_squeeze as deep_squeeze
from .mechanisms import ecd as ecd
from .mechanisms import gossip as gossip
from .mechanisms import moniqua as moniqua
from .mechanisms import power_gossip as power_gossip
from .mechanisms import push_sum as push_sum
from .mechanisms import push_sum_eval_params as push_sum_eval_params
from .mechanisms import relay as relay
from .theory import relay_learning_rate_factor as relay_learning_rate_factor
from .topologies import Schedule as Schedule
from .topologies import Topology as Topology
