"""The paper's methods, as functions of a learning rate and a communicator."""

from collections.abc import Callable
from typing import Any

import djax
from djax import topologies

from ..lib.sweep import MakeOptimizer

COLORS = {
    "RelaySGD": "tab:red",
    "RelaySum/Grad": "tab:orange",
    "D²": "tab:blue",
    "Gradient tracking": "tab:gray",
    "SGP": "tab:cyan",
    "All-reduce": "black",
    "D-PSGD": "tab:purple",
}
"""One colour a method in all figures."""
ALIASES = {
    "RelaySGD": djax.relay_sgd,
    "RelaySum/Grad": djax.relay_sgd_grad,
    "D²": djax.d2_sgd,
    "Gradient tracking": djax.gradient_tracking_sgd,
    "SGP": djax.sgp,
    "D-PSGD": djax.dpsgd,
}
"""What a method is called in djax, for those that have a graph."""


def over(alias: Callable, *args, **options) -> MakeOptimizer:
    """Fills in what comes between the learning rate and the options of an alias.

    Args:
      alias: such as `djax.relay_sgd`.
      *args: the topology, or nothing.
      **options: its keyword arguments.
    """
    return lambda rate, communicator: alias(rate, *args, communicator, **options)


def graph(name: str, n: int, **options: Any) -> Any:
    """The graph of a name in the figures, such as "binary tree", with n workers."""
    build = getattr(topologies, name.replace(" ", "_").replace("-", "_"))
    return build(n, **options)
