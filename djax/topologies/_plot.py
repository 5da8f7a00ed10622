"""Pictures of topologies and schedules."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from ._checks import TOLERANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDEST_EDGE = 2.0  # points
# More graphs side by side are too small to be read, and the page ends.
_MOST_STEPS = 12
_STEP_WIDTH = 1.6  # inches


def plot_graph(
    graph: nx.Graph, weights: np.ndarray, title: str, ax: "Axes | None"
) -> "Axes":
    """Draws trees outwards from their center, and other graphs on a circle.

    Args:
      graph: on the nodes `0, ..., n - 1`.
      weights: `float64[n, n]`; edges are as wide as theirs.
      title: of the picture.
      ax: where to draw; by default new axes.
    """
    if ax is None:
        # Only pictures need matplotlib, so that the library does not depend on it.
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    edges = list(graph.edges)
    widths = np.abs([weights[edge] for edge in edges])
    layout = _tree_layout if nx.is_tree(graph) else _circle_layout
    nx.draw_networkx(
        graph,
        layout(graph),
        ax=ax,
        edgelist=edges,
        width=_WIDEST_EDGE * widths / widths.max(initial=1e-12),
        node_color="white",
        edgecolors="black",
        edge_color="gray",
        font_size=8,
    )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def plot_steps(
    matrices: np.ndarray, axes: "Sequence[Axes] | np.ndarray | None"
) -> np.ndarray:
    """Draws the steps of a period side by side.

    Args:
      matrices: `float64[period, n, n]`, the weights of the messages.
      axes: where to draw, one for each step that is shown; by default new ones.
    """
    if axes is None:
        import matplotlib.pyplot as plt  # See above.

        count = min(len(matrices), _MOST_STEPS)
        size = (_STEP_WIDTH * count, 1.2 * _STEP_WIDTH)
        _, axes = plt.subplots(1, count, figsize=size, squeeze=False)
    shown = np.ravel(np.asarray(axes, object))[: len(matrices)]
    for t, ax in enumerate(shown):
        _draw_step(matrices[t], ax)
        ax.set_title(f"step {t}", fontsize=8)
    if more := len(matrices) - len(shown):
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
