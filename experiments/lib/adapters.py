"""Adapts functions of djax to the options of the command line.

:data:`experiments.lib.algorithms.ALGORITHMS` calls a function with those options that
have the names of its arguments. The functions here have other arguments than djax's
own, or fewer.
"""

import functools
from collections.abc import Callable

import jax

import djax
from djax.topologies import Graph

from .errors import UsageError


def gossip_for_d2(
    graph: Graph,
    communicator: djax.Communicator,
    consensus_rate: float = 1.0,
    check: bool = True,
) -> djax.Mechanism:
    """Makes gossip for D², and refuses a fixed graph on which D² diverges.

    The check is that of :func:`djax.d2_sgd`, whose error names weights that work.
    """
    if check and isinstance(graph, djax.Topology):
        djax.d2_sgd(1.0, graph, communicator, consensus_rate=consensus_rate)
    return djax.gossip(graph, communicator, consensus_rate=consensus_rate)


def quasi_global_momentum(mechanism: djax.Mechanism, overlap: bool) -> Callable:
    """Makes a function that stands for `optax.sgd`, with a quasi-global momentum."""

    def make(learning_rate, momentum=0.9, nesterov=False):
        if momentum is None:
            raise UsageError(
                "--algorithm quasi_global_momentum needs a momentum, as in "
                "--optimizer-options momentum 0.9."
            )
        return djax.quasi_global_momentum(
            learning_rate,
            mechanism,
            momentum=momentum,
            form="nesterov" if nesterov else "heavy_ball",
            overlap=overlap,
        )

    return make


def quasi_global_adam(mechanism: djax.Mechanism) -> Callable:
    """Makes a function that stands for `optax.adam`, with quasi-global moments."""

    def make(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
        return djax.quasi_global_adam(learning_rate, mechanism, b1=b1, b2=b2, eps=eps)

    return make


gossip = functools.partial(djax.gossip, overlap=False)
"""Gossip without overlap; corrections and quasi-global optimizers set it themselves."""


def lazy_gossip(
    graph: Graph, communicator: djax.Communicator, consensus_rate: float = 0.5
) -> djax.Mechanism:
    """Makes gossip at half the consensus rate, over which LED is exact diffusion."""
    return djax.gossip(graph, communicator, consensus_rate=consensus_rate)


def led(
    mechanism: djax.Mechanism,
    local_steps: int,
    dual_rate: float | None = None,
    check: bool = True,
) -> djax.Mechanism:
    """Makes LED, by default with the dual rate that is stable with `lazy_gossip`."""
    rate = 1 / local_steps if dual_rate is None else dual_rate
    return djax.led(local_steps, mechanism, rate, check=check)


def k_gt(
    mechanism: djax.Mechanism, local_steps: int, k_gt_rate: float
) -> djax.Mechanism:
    """Makes K-GT; its rate has another name, since asynchronous workers have one."""
    return djax.k_gt(local_steps, mechanism, k_gt_rate)


def prox_skip(
    mechanism: djax.Mechanism,
    probability: float,
    dual_rate: float | None,
    chi: float,
    coin_seed: int,
    check: bool = True,
) -> djax.Mechanism:
    """Makes ProxSkip, by default with the dual rate that is stable with all gossip."""
    rate, key = dual_rate or probability, jax.random.key(coin_seed)
    return djax.prox_skip(probability, mechanism, rate, chi, key, check=check)
