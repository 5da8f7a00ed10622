r"""Constants of A²CiD² on seven graphs, and how much its momentum helps on each.

Nabli, Belilovsky and Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.constants           # n up to 64
    python -m experiments.acid.constants --smoke   # n up to 8

:func:`djax.acid_constants` computes the constants for workers that average once per
gradient; on stars and at the ends of chains they average less often. The time to
consensus is proportional to chi1 without the momentum, and to sqrt(chi1 chi2) with the
momentum, which is sqrt(chi1 / chi2) = 2 alpha_tilde times shorter. Nothing is trained.

Expect chi1 and chi2 of the published code on rings and exponential graphs; the copies
here are rounded to four decimals. Rings and chains gain most, 15 and 29 times at
n = 64, since their time grows with n in place of n². Exponential graphs and hypercubes
gain 1.7 times at n = 64, stars sqrt(2) times for any n, and complete graphs nothing.
The run takes 5 seconds.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import djax
from djax import topologies

from ..lib import figures

SIZES = (4, 8, 16, 32, 64)
GRAPHS = {
    topologies.chain: "s-",
    topologies.ring: "o-",
    topologies.star: "*-",
    topologies.torus: "D-",
    topologies.exponential: "^-",
    topologies.hypercube: "v--",
    topologies.complete: "p-",
}
"""From the function that builds a graph to the style of its line."""
REFERENCE = {
    "ring": {
        "chi1": (1.0, 3.4142, 13.1371, 52.0434, 207.6725),
        "chi2": (0.75, 0.875, 0.9375, 0.9688, 0.9844),
    },
    "exponential": {
        "chi1": (1.0, 1.5, 2.0, 2.5, 3.0),
        "chi2": (0.8333, 0.9637, 1.0097, 1.0229, 1.0241),
    },
}
"""Constants that the published code computes, one value for each of `SIZES`."""


def compute(sizes: Sequence[int]) -> Iterator[figures.Record]:
    """Computes the constants of all graphs with these numbers of workers."""
    for make, n in itertools.product(GRAPHS, sizes):
        topology = make(n)
        constants = djax.acid_constants(topology)
        published = REFERENCE.get(topology.name, {})
        yield {
            "topology": topology.name,
            "n": n,
            **constants._asdict(),
            "accelerated": math.sqrt(constants.chi1 * constants.chi2),
            "gain": math.sqrt(constants.chi1 / constants.chi2),
            "reference": {k: x[SIZES.index(n)] for k, x in published.items()},
        }


def make_tables(records: list[figures.Record]):
    """Shows all constants, with the published chi1 and chi2 beside ours."""
    rows = []
    for r in records:
        row = [f"{r['topology']}, {r['n']}"]
        for key in ("chi1", "chi2"):
            reference = r["reference"].get(key)
            row += [reference and f"{reference:.4f}", f"{r[key]:.4f}"]
        row += [f"{r[key]:.4f}" for key in ("accelerated", "eta", "alpha_tilde")]
        rows.append([*row, f"{r['gain']:.2f}"])
    errors = [abs(r[k] - x) for r in records for k, x in r["reference"].items()]
    caption = (
        "reference: the published code, rounded to four decimals; largest deviation "
        f"{max(errors):.1e}."
    )
    columns = "graph reference χ1 reference χ2 √(χ1χ2) η α̃ √(χ1/χ2)".split()
    return [figures.table("Constants of A²CiD² at rate 1", columns, rows, caption)]


def draw(records: list[figures.Record]):
    """Draws the time to consensus, up to a factor, without and with the momentum."""
    figure, ((left, right),) = figures.panels((8, 3.4), 1, 2, sharex=True, sharey=True)
    for axes, key, title in (
        (left, "chi1", r"without momentum: $\chi_1$"),
        (right, "accelerated", r"with momentum: $\sqrt{\chi_1 \chi_2}$"),
    ):
        for make, style in GRAPHS.items():
            name = make.__name__
            n, values = (figures.column(records, k, topology=name) for k in ("n", key))
            axes.plot(n, values, style, lw=1, ms=5, mfc="none", label=name)
        axes.set(xscale="log", yscale="log", title=title, xlabel="number of workers")
        axes.set_xticks(SIZES, map(str, SIZES), minor=False)
        axes.set_xticks([], minor=True)
    left.set_ylabel("time, in gradients of a worker")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    return figure


main = figures.script(__name__, full=(SIZES,), smoke=(SIZES[:2],))

if __name__ == "__main__":
    main()
