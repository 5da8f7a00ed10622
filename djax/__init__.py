"""Decentralized deep learning in JAX.

Workers train a model together without a server: each of them makes steps on its own
data, and averages its model with those of its neighbours in a graph. Such a
decentralized algorithm is an optax chain whose last link, the mechanism, exchanges
messages with the neighbours. The chain is written once, as what one worker does. A
communicator decides where the workers live: on one device, on one device each, or in
processes of MPI.

* graphs: :mod:`djax.topologies` (`ring`, `torus`, `exponential`, ..., and schedules of
  graphs that change with time, such as `base_graph`),
* communicators: :mod:`djax.communicators` (`simulated`, `mesh`, `mpi`, and `lossy`
  around them),
* mechanisms, which average: :func:`gossip`, :func:`relay`, :func:`push_sum`,
  :func:`all_reduce`,
* mechanisms that send little: :func:`power_gossip`, and with the lossy codes of
  :mod:`djax.compressors` :func:`choco_gossip`, :func:`deep_squeeze`, :func:`moniqua`,
  :func:`dcd`, :func:`ecd`,
* corrections, which wrap any mechanism: :func:`d2`, :func:`gradient_tracking`,
  :func:`every`, :func:`sparse`, :func:`interleave`, :func:`on_updates`, :func:`only`,
  :func:`per_shard`, and :func:`sharded` between groups of workers;
  for the local steps between two averagings :func:`led`, :func:`k_gt`,
  :func:`prox_skip`,
* outer optimizers, which average rarely, over any mechanism: :func:`outer`, and by
  their papers' names :func:`diloco`, :func:`streaming_diloco`, :func:`slowmo`,
  :func:`noloco`,
* mechanisms of your own: :func:`mechanism` makes a mechanism out of two functions,
  :mod:`djax.mixing` exchanges messages with the neighbours, and `djax.testing` compares
  the mechanism with NumPy (`import djax` does not import it),
* optimizers that contain any mechanism: :func:`quasi_global_momentum`,
  :func:`quasi_global_adam`; :func:`decentralized` can average their state, too,
* optimizers that send more than models, or average between their parts:
  :func:`momentum_tracking`, :func:`beer`, :func:`gut`, :func:`demo`,
* whole algorithms under their papers' names: :func:`dpsgd`, :func:`relay_sgd`,
  :func:`relay_sgd_grad`, :func:`d2_sgd`, :func:`exact_diffusion`,
  :func:`gradient_tracking_sgd`, :func:`sgp`, :func:`power_gossip_sgd`,
  :func:`choco_sgd`, :func:`dcd_psgd`, :func:`ecd_psgd`, :func:`all_reduce_sgd`,
* workers that never wait: :func:`acid` (A²CiD²), :func:`adpsgd`,
  :func:`acid_constants`, and :mod:`djax.asynchronous`, which runs and simulates them,
* mistakes of composition that would raise no error: :func:`check` finds them,
* data: :mod:`djax.data` splits samples among workers, and makes their batches,
* measurements: :mod:`djax.metrics` says how far the workers are from each other, and
  how good their models are, :func:`communication_cost` how much they send,
* predictions for RelaySGD: :mod:`djax.theory`, :func:`relay_learning_rate_factor`,
* loops over many steps, and checkpoints: :mod:`djax.training`. Its loops are also in
  :mod:`djax.simulation`.

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

import importlib
from typing import TYPE_CHECKING, Any

from . import (
    accounting,
    aliases,
    communicators,
    compressors,
    corrections,
    data,
    mechanisms,
    metrics,
    mixing,
    optimizers,
    simulation,
    theory,
    topologies,
    training,
)
from ._checking.check import check
from ._interfaces import Communicator, Compressor
from ._mechanism.public import mechanism, only
from ._mechanism.value import Mechanism
from .accounting import CommunicationCost, communication_cost
from .aliases import *  # noqa: F403
from .corrections import *  # noqa: F403
from .mechanisms import *  # noqa: F403
from .optimizers import *  # noqa: F403
from .theory import relay_learning_rate_factor
from .topologies import Schedule, Topology

if TYPE_CHECKING:
    from . import asynchronous
    from .asynchronous import (
        AcidConstants,
        AcidState,
        ADPSGDState,
        acid,
        acid_constants,
        adpsgd,
    )

__all__ = [
    "ADPSGDState",
    "AcidConstants",
    "AcidState",
    "CommunicationCost",
    "Communicator",
    "Compressor",
    "Mechanism",
    "Schedule",
    "Topology",
    "accounting",
    "acid",
    "acid_constants",
    "adpsgd",
    "aliases",
    "asynchronous",
    "check",
    "communication_cost",
    "communicators",
    "compressors",
    "corrections",
    "data",
    "mechanism",
    "mechanisms",
    "metrics",
    "mixing",
    "only",
    "optimizers",
    "relay_learning_rate_factor",
    "simulation",
    "theory",
    "topologies",
    "training",
]
__all__ += aliases.__all__
__all__ += corrections.__all__
__all__ += mechanisms.__all__
__all__ += optimizers.__all__
__dir__ = __all__.copy  # For dir() and completion.


def __getattr__(name: str) -> Any:
    """Imports `djax.asynchronous` when it, or one of its names here, is first used.

    The package is a quarter of djax's code, and most programs have no use for it.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    asynchronous = importlib.import_module(".asynchronous", __name__)
    value = asynchronous if name == "asynchronous" else getattr(asynchronous, name)
    return globals().setdefault(name, value)
