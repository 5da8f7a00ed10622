r"""Figure 5 (appendix): the constant of a tree in RelaySGD's rate of convergence.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig5_topology_constant           # n up to 32
    python -m experiments.relaysgd.fig5_topology_constant --smoke   # seconds

The figure shows the smallest rho = m / p that the search of
:func:`djax.theory.relay_constant` finds: in m steps the workers' disagreement shrinks
by (1 - p)^m. Nothing is trained.

Expect the printed digits of the reference, which is the same search. Chains have the
largest constants, stars the smallest. From 8 workers on, a chain's minimum is at m = 2,
hence the kink of its line. 10 seconds on 2 cores.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from tqdm import tqdm

from djax import Topology, theory, topologies

from ..lib import figures
from ..lib.figures import Record
from .methods import COLORS

SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32)


class Line(NamedTuple):
    """A line of the figure.

    Attributes:
      make: from a number of workers to the tree.
      style: of the line.
      reference: values of the published search, one for each of `SIZES`.
    """

    make: Callable[[int], Topology]
    style: str
    reference: tuple[float, ...]


LINES = {
    "chain": Line(
        topologies.chain,
        "-",
        (9.35, 19.9, 32.9, 63.1, 91.2, 117.4, 150.9, 222.5, 296.2),
    ),
    "binary tree": Line(
        topologies.binary_tree,
        "--",
        (9.35, 19.9, 23.2, 39.8, 58.5, 88.4, 114.7, 165.5, 205.6),
    ),
    "star": Line(
        topologies.star, ":", (9.35, 19.9, 23.2, 29.8, 36.5, 49.0, 60.1, 79.3, 95.9)
    ),
}


def compute(sizes: Sequence[int]) -> list[Record]:
    """Searches the constants of all trees with these numbers of workers."""
    return [
        {"topology": name, "n": n, **theory.relay_constant(line.make(n))._asdict()}
        for n in tqdm(sizes, desc="figure 5", unit="size")
        for name, line in LINES.items()
    ]


def make_table(records: list[Record]):
    """Reference, ours and deviation, for each kind of tree."""
    rows = []
    for name, line in LINES.items():
        for r in figures.select(records, topology=name):
            reference, ours = line.reference[SIZES.index(r["n"])], r["rho"]
            off = figures.deviation(ours, reference)
            rows.append(
                [f"{name}, {r['n']}", reference, ours, off, str(r["m"]), r["p"]]
            )
    return figures.table(
        "Figure 5: ρ = m / p",
        ["tree", "reference", "ours", "", "m", "p"],
        rows,
        "reference: the published search, evaluated without djax.",
    )


def draw(records: list[Record]) -> Figure:
    """The constants against the number of workers."""
    figure, ((axes,),) = figures.panels((4.5, 3.4))
    color = COLORS["RelaySGD"]
    for name, line in LINES.items():
        mine = figures.select(records, topology=name)
        n, rho = (figures.column(mine, key) for key in ("n", "rho"))
        axes.plot(n, rho, line.style, color=color, label=name)
        axes.plot(SIZES, line.reference, "o", color=color, mfc="none", ms=4)
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*handles, figures.circle("reference")])
    axes.set(xlim=(0, 33), ylim=(0, 310), xlabel="number of workers $n$")
    axes.set_ylabel("constant $\\rho = m / p$")
    return figure


@figures.script(__file__, __doc__)
def main(smoke: bool) -> figures.Made:
    """Makes the figure."""
    records = compute(SIZES[:4] if smoke else SIZES)
    return figures.Made(records, [make_table(records)], draw(records))


if __name__ == "__main__":
    main()
