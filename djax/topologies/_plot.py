"""Pictures of topologies."""

from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ._topology import Topology

_WIDEST_EDGE = 2.0  # points


def plot(topology: "Topology", ax: "Axes | None") -> "Axes":
    """Draws trees outwards from their center, and other graphs on a circle."""
    if ax is None:
        # Only pictures need matplotlib, so that the library does not depend on it.
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    weights = np.array([topology.mixing_matrix[edge] for edge in topology.edges])
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
