"""Pictures of topologies and schedules."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from ._checks import TOLERANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ._schedule import Schedule
    from ._topology import Topology

_WIDEST_EDGE = 2.0  # points
# More graphs side by side are too small to be read, and the page ends.
_MOST_STEPS = 12
_STEP_WIDTH = 1.6  # inches


def plot(topology: "Topology", ax: "Axes | None") -> "Axes":
    """Draws trees outwards from their center, and other graphs on a circle."""
    if ax is None:
        # Only pictures need matplotlib, so that the library does not depend on it.
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    weights = np.abs([topology.mixing_matrix[edge] for edge in topology.edges])
    layout = _tree_layout if topology.is_tree else _circle_layout
    nx.draw_networkx(
        topology.graph,
        layout(topology.graph),
        ax=ax,
        edgelist=topology.edges,
        width=_WIDEST_EDGE * weights / weights.max(initial=1e-12),
        node_color="white",
        edgecolors="black",
        edge_color="gray",
        font_size=8,
    )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()
    ax.set_title(f"{topology.name}, {topology.size} workers")
    return ax


def plot_schedule(
    schedule: "Schedule", axes: "Sequence[Axes] | np.ndarray | None"
) -> np.ndarray:
    """Draws the steps of a period side by side."""
    if axes is None:
        import matplotlib.pyplot as plt  # See above.

        count = min(schedule.period, _MOST_STEPS)
        size = (_STEP_WIDTH * count, 1.2 * _STEP_WIDTH)
        _, axes = plt.subplots(1, count, figsize=size, squeeze=False)
    shown = np.ravel(np.asarray(axes, object))[: schedule.period]
    for t, ax in enumerate(shown):
        _draw_step(schedule.matrices[t], ax)
        ax.set_title(f"step {t}", fontsize=8)
    if more := schedule.period - len(shown):
        shown[-1].annotate(
            f"and {more} more",
            xy=(1.0, 0.0),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=8,
        )
    return shown


def _draw_step(matrix: np.ndarray, ax: "Axes") -> None:
    """Draws exchanges as lines, and the messages of a directed step as arrows."""
    is_symmetric = np.abs(matrix - matrix.T).max() <= TOLERANCE
    graph = nx.Graph() if is_symmetric else nx.DiGraph()
    graph.add_nodes_from(range(len(matrix)))
    messages = np.argwhere(matrix * (1 - np.eye(len(matrix)))).tolist()
    graph.add_edges_from((sender, receiver) for receiver, sender in messages)
    nx.draw_networkx(
        graph,
        _circle_layout(graph),
        ax=ax,
        node_color="white",
        edgecolors="black",
        edge_color="gray",
        node_size=80,
        font_size=6,
    )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()


def _circle_layout(graph: nx.Graph) -> dict[int, tuple[float, float]]:
    """Clockwise from the top."""
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(graph)) / len(graph)
    return {i: (np.cos(angle), np.sin(angle)) for i, angle in enumerate(angles)}


def _tree_layout(graph: nx.Graph) -> dict[int, tuple[float, float]]:
    """Leaves at equal angles; a parent amid its children; the radius is the depth."""
    root = nx.center(graph)[0]
    depth = nx.single_source_shortest_path_length(graph, root)
    leaves = max(1, sum(degree == 1 for node, degree in graph.degree if node != root))
    angle: dict[int, float] = {}
    next_leaf = 0
    for node in nx.dfs_postorder_nodes(graph, root):
        children = [angle[other] for other in graph[node] if depth[other] > depth[node]]
        if children:
            angle[node] = sum(children) / len(children)
        else:
            angle[node] = np.pi * (1 - 2 * next_leaf / leaves)
            next_leaf += 1
    return {
        node: (depth[node] * np.cos(angle[node]), depth[node] * np.sin(angle[node]))
        for node in graph
    }
