r"""Figure 5 (appendix): the constant of a tree in RelaySGD's rate of convergence.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig5_topology_constant           # n up to 32
    python -m experiments.relaysgd.fig5_topology_constant --smoke   # seconds

In m steps the workers' disagreement shrinks by the factor (1 - p)^m. The figure shows
the smallest rho = m / p that the search of :func:`djax.theory.relay_constant` finds.
Nothing is trained.

Expect the printed digits of the reference, which the published search has computed.
Chains have the largest constants, stars the smallest. The line of chains has a kink
because from 8 workers on the minimum is at m = 2. The run takes 10 seconds on 2 cores.
"""

from collections.abc import Sequence

from tqdm import tqdm

from djax import theory

from ..lib import figures
from .methods import COLORS, graph

SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32)
REFERENCE = {
    "chain": (9.35, 19.9, 32.9, 63.1, 91.2, 117.4, 150.9, 222.5, 296.2),
    "binary tree": (9.35, 19.9, 23.2, 39.8, 58.5, 88.4, 114.7, 165.5, 205.6),
    "star": (9.35, 19.9, 23.2, 29.8, 36.5, 49.0, 60.1, 79.3, 95.9),
}
"""Constants that the published search finds, one for each of `SIZES`."""
STYLES = {"chain": "-", "binary tree": "--", "star": ":"}


def compute(sizes: Sequence[int]) -> list[figures.Record]:
    """Finds the constants of all trees with these numbers of workers."""
    return [
        {"topology": name, "n": n, **theory.relay_constant(graph(name, n))._asdict()}
        for n in tqdm(sizes, desc="figure 5", unit="size")
        for name in REFERENCE
    ]


def make_tables(records: list[figures.Record]):
    """Shows the reference, ours, and the deviation, for each tree."""
    rows = []
    for name, references in REFERENCE.items():
        for r in figures.select(records, topology=name):
            reference, ours = references[SIZES.index(r["n"])], r["rho"]
            row = [f"{name}, {r['n']}", reference, ours]
            off = figures.deviation(ours, reference)
            rows.append([*row, off, str(r["m"]), r["p"]])
    columns = ["tree", "reference", "ours", "", "m", "p"]
    caption = "reference: the published search, evaluated without djax."
    return [figures.table("Figure 5: ρ = m / p", columns, rows, caption)]


def draw(records: list[figures.Record]):
    """Draws the constants against the number of workers."""
    figure, ((axes,),) = figures.panels((4.5, 3.4))
    color = COLORS["RelaySGD"]
    for name, references in REFERENCE.items():
        n, rho = (figures.column(records, k, topology=name) for k in ("n", "rho"))
        axes.plot(n, rho, STYLES[name], color=color, label=name)
        axes.plot(SIZES, references, "o", color=color, mfc="none", ms=4)
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*handles, figures.circle("reference")])
    axes.set(xlim=(0, 33), ylim=(0, 310))
    axes.set(xlabel="number of workers $n$", ylabel="constant $\\rho = m / p$")
    return figure


main = figures.script(__name__, full=(SIZES,), smoke=(SIZES[:4],))

if __name__ == "__main__":
    main()
