"""Makes the paper's methods as functions of a learning rate and a communicator."""

from collections.abc import Callable
from typing import Any

import djax
from djax import topologies

from ..lib.tuning import MakeOptimizer

COLORS = {
    "RelaySGD": "tab:red",
    "RelaySum/Grad": "tab:orange",
    "D²": "tab:blue",
    "Gradient tracking": "tab:gray",
    "SGP": "tab:cyan",
    "All-reduce": "black",
    "D-PSGD": "tab:purple",
}
"""The colour of each method in all figures."""
ALIASES = {
    "RelaySGD": djax.relay_sgd,
    "RelaySum/Grad": djax.relay_sgd_grad,
    "D²": djax.d2_sgd,
    "Gradient tracking": djax.gradient_tracking_sgd,
    "SGP": djax.sgp,
    "D-PSGD": djax.dpsgd,
}
"""From the paper's name of a method to djax's, for methods that take a graph."""


def over(alias: Callable, *args, **options) -> MakeOptimizer:
    """Fixes all arguments of an alias except the learning rate and the communicator.

    `args` are the topology, or nothing for algorithms without one.
    """
    return lambda rate, communicator: alias(rate, *args, communicator, **options)


def graph(name: str, n: int, **options: Any) -> Any:
    """Builds a graph of n workers by its name in the figures, as "binary tree"."""
    build = getattr(topologies, name.replace(" ", "_").replace("-", "_"))
    return build(n, **options)
