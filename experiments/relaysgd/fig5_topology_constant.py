r"""Figure 5 (appendix): the constant of a tree in RelaySGD's rate of convergence.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig5_topology_constant           # n up to 32
    python -m experiments.relaysgd.fig5_topology_constant --smoke   # seconds

The smallest rho = m / p that the search of :func:`djax.theory.relay_constant` finds: in
m steps the workers' disagreement shrinks by (1 - p)^m. Nothing is trained.

Expect the reference to its printed digits: it is the same search. Chains have the
largest constants, stars the smallest. From 8 workers on a chain's minimum is at m = 2,
hence the kink of its line. 10 seconds on 2 cores.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

from djax import (
    Topology,
    theory,
    topologies,
)

from ..lib import figures
from .methods import COLORS

SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32)


class Line(NamedTuple):
    """A line of the figure.

    Attributes:
      topology: its name.
      make: from a number of workers to the tree.
      style: of the line.
      reference: values of the published search, one for each of `SIZES`.
    """

    topology: str
    make: Callable[[int], Topology]
    style: str
    reference: tuple[float, ...]


LINES = (
    Line(
        "chain",
        topologies.chain,
        "-",
        (9.35, 19.9, 32.9, 63.1, 91.2, 117.4, 150.9, 222.5, 296.2),
    ),
    Line(
        "binary tree",
        topologies.binary_tree,
        "--",
        (9.35, 19.9, 23.2, 39.8, 58.5, 88.4, 114.7, 165.5, 205.6),
    ),
    Line(
        "star",
        topologies.star,
        ":",
        (9.35, 19.9, 23.2, 29.8, 36.5, 49.0, 60.1, 79.3, 95.9),
    ),
)


def compute(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Searches the constants.

    Args:
      sizes: numbers of workers.

    Returns:
      A record for each size and tree.
    """
    records = []
    for n in tqdm(sizes, desc="figure 5", unit="size"):
        for line in LINES:
            constant = theory.relay_constant(line.make(n))
            record = {"topology": line.topology, "n": n, **constant._asdict()}
            records.append(record)
    return records


def _of(records: list[dict], line: Line) -> list[dict]:
    return [r for r in records if r["topology"] == line.topology]


def make_table(records: list[dict]):
    """Reference, ours and deviation, for each kind of tree."""
    rows = []
    for line in LINES:
        for r in _of(records, line):
            reference, ours = line.reference[SIZES.index(r["n"])], r["rho"]
            row = [f"{line.topology}, {r['n']}", reference, ours]
            rows.append([*row, figures.deviation(ours, reference), str(r["m"]), r["p"]])
    return figures.table(
        "Figure 5: ρ = m / p",
        ["tree", "reference", "ours", "", "m", "p"],
        rows,
        "reference: the published search, evaluated without djax.",
    )


def draw(records: list[dict]) -> Figure:
    """The constants against the number of workers."""
    figure = Figure(figsize=(4.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for line in LINES:
        points = [(r["n"], r["rho"]) for r in _of(records, line)]
        style = {"color": COLORS["RelaySGD"], "label": line.topology}
        axes.plot(*zip(*points, strict=True), line.style, **style)
        axes.plot(SIZES, line.reference, "o", color=style["color"], mfc="none", ms=4)
    handles, _ = axes.get_legend_handles_labels()
    circle = Line2D([], [], marker="o", ls="", mfc="none", color="gray", ms=4)
    circle.set_label("reference")
    axes.legend(handles=[*handles, circle])
    axes.set(xlim=(0, 33), ylim=(0, 310), xlabel="number of workers $n$")
    axes.set_ylabel("constant $\\rho = m / p$")
    axes.grid(alpha=0.3)
    return figure


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.

    Returns:
      The records.
    """
    config = figures.configure(__file__, __doc__, arguments)
    records = compute(SIZES[:4] if config.smoke else SIZES)
    figures.publish(__file__, config, records, [make_table(records)], draw(records))
    return records


if __name__ == "__main__":
    main()
