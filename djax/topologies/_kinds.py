"""What is given where workers' communication is wanted, and what was meant by it."""

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np

from ._checks import describe, is_array, is_communicator
from ._schedule import Schedule
from ._topology import Topology


def check_undirected(name: str, topology: Any) -> None:
    """Raises TypeError, which names the remedy, unless it is a Topology.

    Args:
      name: who takes the topology, for errors.
      topology: what the user passed.
    """
    if not isinstance(topology, Topology):
        remedy = _to_topology(topology)
        raise TypeError(f"{name} needs a Topology, got {describe(topology)}; {remedy}.")


def check_directed(name: str, schedule: Any) -> None:
    """Raises TypeError, which names the remedy, unless it is a Schedule.

    Args:
      name: who takes the schedule, for errors.
      schedule: what the user passed.
    """
    if not isinstance(schedule, Schedule):
        remedy = _to_schedule(schedule)
        raise TypeError(f"{name} needs a Schedule, got {describe(schedule)}; {remedy}.")


def _to_topology(value: Any) -> str:
    """How a Topology is made of what was passed."""
    if isinstance(value, Schedule):
        return "a Schedule is directed: use it with push_sum and sgp"
    if isinstance(value, nx.Graph):
        if value.is_directed():
            return (
                "directed communication is a Schedule (topologies.from_matrices), an "
                "undirected graph is topologies.from_networkx(graph.to_undirected())"
            )
        return "make one of it by topologies.from_networkx(graph)"
    if is_array(value):
        return _array_to_topology(np.asarray(value))
    if is_communicator(value):
        return "the topology comes before the communicator"
    if isinstance(value, Sequence) and any(isinstance(v, Topology) for v in value):
        return "pass one of them at a time (djax.interleave joins their mechanisms)"
    from . import BUILDERS  # They need this module.

    return _by_call(value, BUILDERS)


def _array_to_topology(array: np.ndarray) -> str:
    if array.ndim == 3:
        return "weights [period, n, n] are a Schedule: topologies.from_matrices(array)"
    if array.shape == array.T.shape and not np.array_equal(array, array.T):
        return "directed weights are a Schedule: topologies.from_matrices([array])"
    return (
        "make one of its edges, topologies.from_networkx(networkx.from_numpy_array("
        "array * (1 - numpy.eye(len(array))))), with weights=array if it is a mixing "
        "matrix"
    )


def _to_schedule(value: Any) -> str:
    """How a Schedule is made of what was passed."""
    if isinstance(value, Topology):
        return (
            "of a topology make one by "
            "topologies.from_matrices([topology.mixing_matrix])"
        )
    if isinstance(value, nx.Graph):
        return (
            "make one of the weights, topologies.from_matrices([matrix]), where "
            "matrix[i, j] is the weight of the message from j to i"
        )
    if is_array(value):
        call = "array" if np.ndim(value) == 3 else "[array]"
        return f"make one of it by topologies.from_matrices({call})"
    if is_communicator(value):
        return "the schedule comes before the communicator"
    return _by_call(value, ("one_peer_exponential",))


def _by_call(value: Any, builders: Sequence[str]) -> str:
    """What to call, for builders that were not called, their names, and numbers."""
    called = value if isinstance(value, str) else getattr(value, "__name__", None)
    builder = called if called in builders else builders[0]
    return f"call topologies.{builder} with the number of workers: {builder}(8)"
