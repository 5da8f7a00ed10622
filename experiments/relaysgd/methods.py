"""The paper's methods, as functions of a learning rate and a communicator."""

from collections.abc import Callable

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


def over(alias: Callable, *args, **options) -> MakeOptimizer:
    """Fills in what comes between the learning rate and the options of an alias.

    Args:
      alias: such as `djax.relay_sgd`.
      *args: the topology, or nothing.
      **options: its keyword arguments.
    """
    return lambda rate, communicator: alias(rate, *args, communicator, **options)
