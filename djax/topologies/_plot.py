"""Pictures of topologies and schedules.

Only pictures need matplotlib, so that it is imported when one is drawn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from djax import _networkx as nx

from ._topology_checks import TOLERANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDEST_EDGE = 2.0  # points
# If more graphs stood side by side, they would be too small to be read.
_MOST_STEPS = 12
_STEP_WIDTH = 1.6  # inches

Layout = dict[int, tuple[float, float]]


def plot_graph(
    graph: "nx.Graph", widths: np.ndarray, title: str, ax: "Axes | None"
) -> "Axes":
    """Draws trees outwards from their center, and other graphs on a circle.

    Args:
      graph: a graph on the nodes `0, ..., n - 1`.
      widths: `float64[edges]`, to which the widths of the edges are proportional.
      title: the title of the picture.
      ax: where to draw; by default new axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    edges = list(graph.edges)
    widths = _WIDEST_EDGE * widths / widths.max(initial=1e-12)
    layout = _tree_layout if nx.is_tree(graph) else _circle_layout
    _draw(graph, layout(graph), ax, edgelist=edges, width=widths, font_size=8)
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
        import matplotlib.pyplot as plt

        count = min(len(matrices), _MOST_STEPS)
        size = (_STEP_WIDTH * count, 1.2 * _STEP_WIDTH)
        _, axes = plt.subplots(1, count, figsize=size, squeeze=False)
    shown = np.ravel(np.asarray(axes, object))[: len(matrices)]
    for t, ax in enumerate(shown):
        graph = _graph_of_step(matrices[t])
        _draw(graph, _circle_layout(graph), ax, node_size=80, font_size=6)
        ax.set_title(f"step {t}", fontsize=8)
    if more := len(matrices) - len(shown):
        place = {"xy": (1.0, 0.0), "xycoords": "axes fraction", "fontsize": 8}
        shown[-1].annotate(f"and {more} more", ha="right", va="top", **place)
    return shown


def _graph_of_step(matrix: np.ndarray) -> "nx.Graph":
    """Exchanges as edges, and the messages of a directed step as directed edges."""
    is_symmetric = np.abs(matrix - matrix.T).max() <= TOLERANCE
    messages = (matrix != 0) & ~np.eye(len(matrix), dtype=bool)
    kind = nx.Graph if is_symmetric else nx.DiGraph
    return nx.from_numpy_array(messages.T, create_using=kind)


def _draw(graph: "nx.Graph", layout: Layout, ax: "Axes", **options: Any) -> None:
    style = {"node_color": "white", "edgecolors": "black", "edge_color": "gray"}
    nx.draw_networkx(graph, layout, ax=ax, **style, **options)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()


def _circle_layout(graph: "nx.Graph") -> Layout:
    """Places the nodes clockwise on a circle, the first one at the top."""
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(graph)) / len(graph)
    return {i: (np.cos(angle), np.sin(angle)) for i, angle in enumerate(angles)}


def _tree_layout(graph: "nx.Graph") -> Layout:
    """Places leaves at equal angles, and a parent amid its children.

    The distance from the center of the picture is the depth of a node.
    """
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
