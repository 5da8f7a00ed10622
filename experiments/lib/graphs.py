"""Graphs as the command line names them: who talks to whom, and when."""

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
    *topologies.BUILDERS,
    "double_binary_trees",
    "equi_static",
    *topologies.SCHEDULES,
    "matcha",
)
"""What `--topology` may be."""

FIXED = "ring, torus, exponential or complete"
"""Some that suit all algorithms but relays, and take all --weights."""


def make_graphs(
    name: str, size: int, options: Mapping[str, Any], weights: str = "metropolis"
) -> tuple[Graph, ...]:
    """Builds the graph of a name, or its pair of trees.

    Args:
      name: one of `NAMES`.
      size: number of workers.
      options: arguments of its builder.
      weights: a rule, or a number.

    Raises:
      UsageError: if a name or an option is unknown, or there is no such graph.
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
    """Uses the edges of another graph in some of the steps only.

    Args:
      size: number of workers.
      base: name of the other graph.
      budget: see :func:`djax.topologies.matcha`, like all that follow.
      period: how many steps are drawn.
      seed: of the draws.
    """
    lookup("--topology-options of matcha, base", base, topologies.BUILDERS)
    (graph,) = make_graphs(base, size, {})
    assert isinstance(graph, djax.Topology)
    return topologies.matcha(graph, budget, period=period, seed=seed)


def take_any(algorithm: str, graphs: Sequence[Graph]) -> Sequence[Graph]:
    """Returns the graphs, whatever they are."""
    del algorithm
    return graphs


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
        if fixed and graph.is_tree:
            continue
        problem = "has cycles" if fixed else "is directed or changes with time"
        raise UsageError(
            f"--algorithm {algorithm} needs a tree, but --topology {graph.name} "
            f"{problem}; choose --topology chain, star, binary_tree, regular_tree or "
            "double_binary_trees."
        )
    return graphs


def take_changing(algorithm: str, graphs: Sequence[Graph]) -> Sequence[Graph]:
    """Returns the graph if it changes with time, else the one-peer exponential one."""
    del algorithm
    if isinstance(graphs[0], djax.Schedule):
        return graphs
    return (topologies.one_peer_exponential(graphs[0].size),)


def take_one_with_both_ways(algorithm: str, graphs: Sequence[Graph]) -> Sequence[Graph]:
    """Returns the graph, or raises UsageError for several, or messages of one way."""
    check_whole(f"--algorithm {algorithm}", graphs)
    if not graphs[0].symmetric:
        raise UsageError(
            f"--algorithm {algorithm} needs messages that go both ways, which "
            f"those of --topology {graphs[0].name} do not here; choose one such as "
            f"--topology base_graph, random_matchings, {FIXED}."
        )
    return graphs


def check_whole(what: str, graphs: Sequence[Graph]) -> None:
    """Raises UsageError for several graphs, which deal out single coordinates."""
    if len(graphs) > 1:
        raise UsageError(f"{what} needs whole matrices: choose one --topology.")


def digest(graph: Graph) -> str:
    """A name of a graph with its weights, to what is more than rounding."""
    edges = []
    if isinstance(graph, djax.Topology):
        edges = [(i, j, graph.multiplicity(i, j)) for i, j in graph.edges]
    weights = np.round(graph.matrices, 9) + 0.0  # No -0.0, whose bytes are others.
    of = repr((edges, weights.shape)).encode() + weights.tobytes()
    return f"{zlib.crc32(of):08x}"
