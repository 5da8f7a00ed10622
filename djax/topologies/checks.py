"""Checks that a user passed the kind of graph that an algorithm needs.

Users easily pass something else, such as a graph of networkx, an array, the name of a
builder, or a builder that was not called. The errors name the call that was meant.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from djax import _networkx as nx
from djax._values import describe, is_array, is_communicator

from ._schedule import Schedule
from ._topology import Topology
from ._topology_checks import TOLERANCE

# For command lines: with these names, getattr(topologies, name)(size) is a Topology.
BUILDERS = (
    "ring",
    "chain",
    "star",
    "complete",
    "torus",
    "hypercube",
    "exponential",
    "binary_tree",
    "regular_tree",
    "social_network",
)

# With these names, getattr(topologies, name)(size) is a Schedule.
SCHEDULES = (
    "one_peer_exponential",
    "one_peer_hypercube",
    "base_graph",
    "simple_base_graph",
    "hyper_hypercube",
    "equi_dyn",
    "random_matchings",
)


def check_undirected(name: str, topology: Any) -> None:
    """Raises TypeError, which names the remedy, unless a value is a Topology.

    Args:
      name: name of the function that takes the topology, for the error.
      topology: what the user passed.
    """
    if not isinstance(topology, Topology):
        raise _wrong_type(name, "a Topology", topology, _to_topology(topology))


def check_tree(name: str, tree: Any) -> None:
    """Raises an error, which names the remedy, unless a value is a tree.

    Args:
      name: name of the function that takes the tree, for errors.
      tree: what the user passed.

    Raises:
      TypeError: the value is no Topology.
      ValueError: the topology has cycles.
    """
    check_undirected(name, tree)
    if not tree.is_tree:
        raise ValueError(
            f"{name} needs a tree, since on a graph with cycles models would be "
            f"counted twice; {tree!r} has {len(tree.edges)} edges, a tree has "
            f"{tree.size - 1}. Use topologies.spanning_tree(topology), or chain, star, "
            "binary_tree, regular_tree."
        )


def check_directed(name: str, schedule: Any) -> None:
    """Raises TypeError, which names the remedy, unless a value is a Schedule."""
    if not isinstance(schedule, Schedule):
        raise _wrong_type(name, "a Schedule", schedule, _to_schedule(schedule))


def check_graph_kind(
    name: str,
    graph: Any,
    *,
    fixed: bool = False,
    undirected: bool = False,
    symmetric: bool = False,
    doubly_stochastic: bool = False,
) -> None:
    """Raises an error, which names the remedy, unless a mechanism can use the graph.

    Args:
      name: name of the mechanism that takes the graph, for errors.
      graph: what the user passed.
      fixed: whether the weights have to be the same in every step.
      undirected: whether the graph has to be a Topology, which has edges and fixed
        neighbours.
      symmetric: whether every matrix has to be symmetric.
      doubly_stochastic: whether the rows of every matrix have to sum to one.

    Raises:
      TypeError: the graph is neither a Topology nor a Schedule.
      ValueError: the graph is not of the kind that the mechanism needs.

    Examples:
      >>> from djax import topologies
      >>> graph = topologies.one_peer_exponential(8)
      >>> topologies.checks.check_graph_kind("my_mechanism", graph, fixed=True)
      Traceback (most recent call last):
      ...
      ValueError: my_mechanism needs a graph that does not change with time, ...
    """
    if isinstance(graph, Topology):  # A topology is of every kind.
        return
    if not isinstance(graph, Schedule):
        raise _wrong_type(name, "a Topology or a Schedule", graph, _to_graph(graph))
    if fixed and graph.period > 1:
        raise ValueError(
            f"{name} needs a graph that does not change with time, since its copies "
            f"are sums over fixed neighbours; Schedule({graph.name}, ...) has a period "
            f"of {graph.period}."
        )
    if undirected:
        raise ValueError(
            f"{name} needs an undirected graph with fixed neighbours, a Topology such "
            f"as ring({graph.size}); Schedule({graph.name}, ...) has none."
        )
    if symmetric and not graph.symmetric:
        raise ValueError(_not_symmetric(name, graph))
    if doubly_stochastic and not graph.doubly_stochastic:
        raise ValueError(_not_doubly_stochastic(name, graph))


def _not_symmetric(name: str, schedule: Schedule) -> str:
    t, i, j = next(
        (t, *np.argwhere(apart)[0].tolist())
        for t in range(schedule.period)
        if (apart := _asymmetric(schedule.weights_at(t).toarray())).any()
    )
    weights = schedule.weights_at(t)
    return (
        f"{name} needs a symmetric schedule, since workers exchange messages in pairs, "
        f"but in step {t} worker {i} gives the weight {weights[i, j]:.6g} "
        f"to worker {j}, which gives {weights[j, i]:.6g} to worker {i}: use "
        f"a Topology, or a schedule such as base_graph({schedule.size})."
    )


def _asymmetric(matrix: np.ndarray) -> np.ndarray:
    return np.abs(matrix - matrix.T) > TOLERANCE


def _not_doubly_stochastic(name: str, schedule: Schedule) -> str:
    steps = range(schedule.period)
    total = np.array([schedule.weights_at(t).sum(axis=1) for t in steps])
    t, i = np.argwhere(np.abs(total - 1) > TOLERANCE)[0].tolist()
    return (
        f"{name} needs a schedule that is doubly stochastic in each step, but in step "
        f"{t} the row of worker {i} sums to {total[t, i].item():.6g}: use push_sum."
    )


def _wrong_type(name: str, needed: str, value: Any, remedy: str) -> TypeError:
    return TypeError(f"{name} needs {needed}, got {describe(value)}; {remedy}.")


def _to_topology(value: Any) -> str:
    """Says how to make a Topology from what was passed."""
    if isinstance(value, Schedule):
        return (
            "a Schedule has no fixed neighbours: make a Topology, such as "
            f"topologies.ring({value.size})"
        )
    return _to_graph(value, BUILDERS)


def _to_graph(value: Any, builders: Sequence[str] = (*BUILDERS, *SCHEDULES)) -> str:
    """Says how to make a Topology, or a Schedule, from what was passed."""
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
    return _by_call(value, builders)


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
    """Says how to make a Schedule from what was passed."""
    if isinstance(value, nx.DiGraph):
        return (
            "make one of the weights, topologies.from_matrices([matrix]), where "
            "matrix[i, j] is the weight of the message from j to i"
        )
    if isinstance(value, nx.Graph):
        return "make a topology of it by topologies.from_networkx(graph)"
    if is_array(value):
        call = "array" if np.ndim(value) == 3 else "[array]"
        return f"make one of it by topologies.from_matrices({call})"
    if is_communicator(value):
        return "the schedule comes before the communicator"
    return _by_call(value, SCHEDULES)


def _by_call(value: Any, builders: Sequence[str]) -> str:
    """Says which builder to call, if its name, the builder or a number was passed."""
    called = value if isinstance(value, str) else getattr(value, "__name__", None)
    builder = called if called in builders else builders[0]
    size = value if type(value) is int and value > 0 else 8
    return f"call topologies.{builder} with the number of workers: {builder}({size})"
