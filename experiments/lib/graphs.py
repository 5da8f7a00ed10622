"""Builds graphs by their names on the command line, and checks what algorithms need."""

import contextlib
import inspect
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

import djax
from djax import topologies
from djax.topologies import Graph

from .errors import UsageError, lookup
from .options import check_options, write_options

NAMES = (
    *(*topologies.BUILDERS, *topologies.SCHEDULES),
    *("double_binary_trees", "equi_static", "matcha"),
)
"""The names that `--topology` accepts."""

FIXED = "ring, torus, exponential or complete"
"""Suggestions for errors: graphs for all algorithms but relays, with any --weights."""


def make_graphs(
    name: str, size: int, options: Mapping[str, Any], weights: str = "metropolis"
) -> tuple[Graph, ...]:
    """Builds the graph with a name, or the two trees of `double_binary_trees`.

    The mixing weights are given by the name of a rule, or by a number.
    """
    lookup("--topology", name, NAMES)
    if name == "social_network" and size != 32:
        raise UsageError(
            f"--topology social_network has 32 workers, not {size}: use --workers 32, "
            "or mpirun -n 32 where there is mpirun."
        )
    build = matcha if name == "matcha" else getattr(topologies, name)
    what = f"--topology-options of {name}"
    arguments = check_options(what, build, options, without={"weights"})
    given = ["--topology-options", *write_options(options)] if options else []
    if "weights" in inspect.signature(build).parameters:
        arguments["weights"] = weights
        with contextlib.suppress(ValueError):
            arguments["weights"] = float(weights)
            given += ["--weights", weights]
    elif weights != "metropolis":
        raise UsageError(
            f"--weights {weights}: --topology {name} has weights of its own. Leave "
            f"--weights away, or choose a graph such as --topology {FIXED}."
        )
    try:
        built = build(size, **arguments)
    except ValueError as error:
        if given:
            raise UsageError(f"{' '.join(given)}: {error}") from error
        raise
    return built if isinstance(built, tuple) else (built,)


def matcha(
    size: int,
    base: str = "ring",
    budget: float = 0.5,
    period: int = 1000,
    seed: int = 0,
) -> djax.Schedule:
    """Makes :func:`djax.topologies.matcha` of the graph with the name `base`."""
    lookup("--topology-options of matcha, base", base, topologies.BUILDERS)
    (graph,) = make_graphs(base, size, {})
    assert isinstance(graph, djax.Topology)
    return topologies.matcha(graph, budget, period=period, seed=seed)


def take_fixed(algorithm: str, graphs: Sequence[Graph]) -> Sequence[djax.Topology]:
    """Returns the graphs, or raises UsageError for directed and changing ones."""
    for graph in graphs:
        if not isinstance(graph, djax.Topology):
            raise UsageError(
                f"--algorithm {algorithm} needs an undirected graph that does "
                f"not change with time, which --topology {graph.name} is not here: "
                f"choose one such as --topology {FIXED}."
            )
    return cast(Sequence[djax.Topology], graphs)


def take_trees(algorithm: str, graphs: Sequence[Graph]) -> Sequence[Graph]:
    """Returns the graphs, or raises UsageError for those that are no trees."""
    for graph in graphs:
        fixed = isinstance(graph, djax.Topology)
        if not (fixed and graph.is_tree):
            problem = "has cycles" if fixed else "is directed or changes with time"
            raise UsageError(
                f"--algorithm {algorithm} needs a tree, but --topology {graph.name} "
                f"{problem}; choose --topology chain, star, binary_tree, regular_tree "
                "or double_binary_trees."
            )
    return graphs


def take_changing(algorithm: str, graphs: Sequence[Graph]) -> Sequence[Graph]:
    """Returns the graph if it changes with time, else the one-peer exponential one."""
    del algorithm
    if isinstance(graphs[0], djax.Schedule):
        return graphs
    return (topologies.one_peer_exponential(graphs[0].size),)


def take_one_with_both_ways(algorithm: str, graphs: Sequence[Graph]) -> Sequence[Graph]:
    """Returns the graph, or raises UsageError for two graphs or one-way messages."""
    check_whole(f"--algorithm {algorithm}", graphs)
    if not graphs[0].symmetric:
        raise UsageError(
            f"--algorithm {algorithm} needs messages that go both ways, which "
            f"those of --topology {graphs[0].name} do not here; choose one such as "
            f"--topology base_graph, random_matchings, {FIXED}."
        )
    return graphs


def check_whole(what: str, graphs: Sequence[Graph]) -> None:
    """Raises UsageError for two graphs, since each averages only some coordinates."""
    if len(graphs) > 1:
        raise UsageError(f"{what} needs whole matrices: choose one --topology.")


def digest(graph: Graph) -> str:
    """Makes a short name from a graph and its weights, equal for equal graphs.

    Weights are rounded first, so that rounding errors do not change the name.
    """
    edges = []
    if isinstance(graph, djax.Topology):
        edges = [(i, j, graph.multiplicity(i, j)) for i, j in graph.edges]
    weights = np.round(graph.matrices, 9) + 0.0  # Gives -0.0 the bytes of 0.0.
    of = repr((edges, weights.shape)).encode() + weights.tobytes()
    return f"{zlib.crc32(of):08x}"
