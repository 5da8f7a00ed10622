"""Draws the pictures of the README and of the site: `python docs/pictures.py`.

It writes into `docs/_static`: `idea.svg`, the idea of decentralized training in one
picture; `social.png`, the card that other sites show beside a link to this one; and
`logo.svg`.
"""

import math
import pathlib
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Wedge

import djax

Place = tuple[float, float]
FOLDER = pathlib.Path(__file__).parent / "_static"
WORKERS, CLASSES = 8, 5
CLASS_COLORS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2"]
INK, FAINT, ACCENT = "#2b2f36", "#c9ced6", "#1f6feb"


def places(size: int) -> list[Place]:
    """Returns where on a circle the workers stand, the first one at the top."""
    angles = [2 * math.pi * i / size for i in range(size)]
    return [(math.sin(angle), math.cos(angle)) for angle in angles]


def draw_shares(axes: Axes, place: Place, counts: np.ndarray, radius: float) -> None:
    """Draws a worker as a pie of the classes of its samples, `int[classes]`."""
    ends = np.concatenate([[0], np.cumsum(counts)]) * 360 / counts.sum()
    for color, start, end in zip(CLASS_COLORS, ends[:-1], ends[1:], strict=True):
        if end > start:
            axes.add_patch(Wedge(place, radius, start, end, facecolor=color))
    axes.add_patch(Circle(place, radius, fill=False, edgecolor=INK, linewidth=1.2))


def draw_workers(axes: Axes) -> None:
    """Draws workers on a ring, with the classes that each of them has."""
    labels = np.arange(2000) % CLASSES
    shares = djax.data.dirichlet(labels, WORKERS, 0.3, seed=1)
    where = places(WORKERS)
    for i, j in djax.topologies.ring(WORKERS).edges:
        line = zip(where[i], where[j], strict=True)
        axes.plot(*line, color=FAINT, linewidth=2.5, zorder=0)
    for place, counts in zip(
        where, djax.data.count_classes(labels, shares), strict=True
    ):
        draw_shares(axes, place, counts, 0.24)


def draw_step(axes: Axes) -> None:
    """Draws what one worker does in a step."""
    where = [(-1.15, 0.45), (0.0, 0.45), (1.15, 0.45)]
    names = ["$x_{i-1}$", "$x_i$", "$x_{i+1}$"]
    for place, name in zip(where, names, strict=True):
        own = name == "$x_i$"
        color, width = (ACCENT, 2.2) if own else (FAINT, 1.6)
        axes.add_patch(Circle(place, 0.3, facecolor="white", edgecolor=color, lw=width))
        axes.text(
            place[0], place[1], name, ha="center", va="center", size=14, color=INK
        )
    arrow = {
        "arrowstyle": "<->",
        "color": ACCENT,
        "lw": 1.8,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    for side in (-1, 1):
        axes.annotate("", (side * 0.35, 0.45), (side * 0.8, 0.45), arrowprops=arrow)
    loop = {
        "arrowstyle": "->",
        "color": INK,
        "lw": 1.5,
        "connectionstyle": "arc3,rad=-1.6",
    }
    axes.annotate("", (0.14, 0.74), (-0.14, 0.74), arrowprops=loop)
    text = {"ha": "center", "va": "center", "color": INK}
    axes.text(0, 1.12, "gradient on its own data", size=9, **text)
    axes.text(0, -0.2, r"$y_i = x_i - \gamma\, \nabla f_i(x_i)$", size=13, **text)
    axes.text(0, -0.66, r"$x_i \leftarrow \sum_j\, w_{ij}\, y_j$", size=13, **text)
    axes.text(
        0,
        -1.12,
        "optax.chain(optax.sgd(γ), djax.gossip(…))",
        size=8.5,
        family="monospace",
        **text,
    )


def draw_box(axes: Axes, left: float, bottom: float, width: float, height: float):
    """Draws a device, a process or a host."""
    style = "round,pad=0,rounding_size=0.05"
    box = FancyBboxPatch((left, bottom), width, height, boxstyle=style)
    box.set(facecolor="white", edgecolor=INK, linewidth=1.1)
    axes.add_patch(box)


def draw_places(axes: Axes) -> None:
    """Draws where the same workers live under each of the communicators."""
    rows = [
        (0.85, "simulated(8)", "one device, vmap", 1),
        (0.0, "mesh(8)", "devices, shard_map", WORKERS),
        (-0.85, "mpi()", "processes on two hosts", 2),
    ]
    for middle, name, text, boxes in rows:
        left, width, gap = -0.25, 1.9 / boxes, 0.03
        for box in range(boxes):
            start = left + box * width + gap / 2
            draw_box(axes, start, middle - 0.17, width - gap, 0.34)
        for worker in range(WORKERS):
            place = (left + (worker + 0.5) * 1.9 / WORKERS, middle)
            axes.add_patch(Circle(place, 0.07, facecolor=ACCENT))
        label = {"ha": "left", "va": "center", "color": INK}
        axes.text(-1.75, middle + 0.1, name, size=10, family="monospace", **label)
        axes.text(-1.75, middle - 0.12, text, size=8, **label)


def fill(axes: Axes, draw: Callable[[Axes], None], limits: tuple[float, float]):
    """Draws into axes without frame; `limits` are the largest x and y."""
    draw(axes)
    x, y = limits
    axes.set(xlim=(-x, x), ylim=(-y, y), aspect="equal")
    axes.axis("off")


def make_idea() -> Figure:
    """Draws the idea: data of one's own, a step with neighbours, where it runs."""
    figure = Figure(figsize=(11.4, 3.7))
    panels = [
        ("Each worker has data of its own", draw_workers),
        ("It makes a step and averages with neighbours", draw_step),
        ("The same code runs in three places", draw_places),
    ]
    for i, (title, draw) in enumerate(panels):
        fill(figure.add_axes((i / 3, 0.0, 1 / 3, 0.9)), draw, (1.75, 1.3))
        text = {"ha": "center", "va": "center", "color": INK, "size": 12}
        figure.text((i + 0.5) / 3, 0.93, title, **text)
    return figure


def make_social() -> Figure:
    """Draws the card: name, sentence, and a ring of workers; 1280 × 640 pixels."""
    figure = Figure(figsize=(12.8, 6.4))
    fill(figure.add_axes((0.0, 0.0, 0.5, 1.0)), draw_workers, (1.4, 1.4))
    text = {"color": INK, "va": "center"}
    figure.text(0.52, 0.62, "djax", size=84, weight="bold", **text)
    figure.text(0.52, 0.44, "Decentralized deep learning in JAX", size=24, **text)
    lines = "Workers train one model together,\nand talk only to their neighbours."
    figure.text(0.52, 0.29, lines, size=19, **text)
    return figure


def make_logo() -> Figure:
    """Draws a ring of workers, the logo."""
    figure = Figure(figsize=(2, 2))
    fill(figure.add_axes((0, 0, 1, 1)), draw_workers, (1.3, 1.3))
    return figure


def main(folder: pathlib.Path = FOLDER) -> None:
    """Writes all pictures, which are the same bytes each time."""
    with matplotlib.rc_context({"svg.hashsalt": "djax"}):
        for name, figure in (("idea", make_idea()), ("logo", make_logo())):
            path = folder / f"{name}.svg"
            transparent = name == "logo"
            figure.savefig(path, metadata={"Date": None}, transparent=transparent)
    make_social().savefig(folder / "social.png", dpi=100)


if __name__ == "__main__":
    main()
