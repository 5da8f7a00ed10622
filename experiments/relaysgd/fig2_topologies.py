r"""Figure 2: how the steps to an error of 1e-6 grow with the number of workers.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig2_topologies           # 10 seeds, n up to 96
    python -m experiments.relaysgd.fig2_topologies --smoke   # seconds

The problems are random quadratics in 10 dimensions, without noise. Workers start at a
distance of 100 from the optimum, and the heterogeneity is 0.01 or 1. Each method's
learning rate is tuned for each problem: it is the rate with which the error of the
workers' mean falls below 1e-6 in the fewest steps and never grows on the way. All
rates, seeds and heterogeneities of a method are computed in one program.

The problems are the paper's, draw by draw. In the column "ours" rates are tuned by the
paper's search; expect all numbers to agree with the paper to rounding. In the column
"finer" rates are tuned on finer grids; expect no gain for RelaySGD, and up to 29 % for
D² and all-reduce. The run takes about 10 minutes on 2 cores.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import djax

from ..lib import figures, tuning
from ..lib.quadratics import random_quadratics
from ..lib.tuning import MakeOptimizer
from .methods import ALIASES, COLORS, graph, over

DIM, PROBLEM = 10, {"distance": 100.0, "smallest": 0.5}
ZETAS = (0.01, 1.0)
SIZES, POWERS = (6, 12, 24, 48, 96), (4, 8, 16, 32, 64)
D2 = ((19.6, 42.0, 79.2, 185.7, 218.1), (19.6, 43.1, 79.3, 179.6, 218.5))
SGP = (
    (107.9, 112.6, 51.3, 39.4, 21.7, 10.1, 68.7, 53.5, 39.3, 27.6),
    (1079, 1238, 617, 540, 345, 10.1, 708, 596, 462, 377),
)


class Line(NamedTuple):
    """A line of the figure: a method on a kind of graph.

    Attributes:
      style: matplotlib's style of the line.
      paper: the paper's mean steps for each number of workers; one tuple for each
        heterogeneity, or one for both.
      sizes: numbers of workers.
    """

    method: str
    topology: str
    style: str
    paper: tuple[tuple[float, ...], ...]
    sizes: tuple[int, ...] = SIZES

    @property
    def label(self) -> str:
        """The method and its graph."""
        return f"{self.method}, {self.topology}"

    def make(self, n: int) -> MakeOptimizer:
        """Makes the optimizer of n workers."""
        if self.method == "All-reduce":
            return over(djax.all_reduce_sgd)
        options = {"rounds": 2} if self.method == "SGP" else {}
        return over(ALIASES[self.method], graph(self.topology, n), **options)

    def published(self, zeta2: float) -> dict[int, float]:
        """Returns the paper's mean steps by number of workers."""
        steps = self.paper[0 if zeta2 == ZETAS[0] else -1]
        return dict(zip(self.sizes, steps, strict=True))

    def means(
        self, records: list[figures.Record], zeta2: float, key: str = "steps"
    ) -> dict[int, float]:
        """Averages steps over the seeds, by number of workers."""
        here = {"method": self.method, "topology": self.topology, "zeta2": zeta2}
        mine = figures.select(records, **here)
        sizes = figures.distinct(mine, "n")
        return {n: float(np.mean(figures.column(mine, key, n=n))) for n in sizes}


LINES = (
    Line("RelaySGD", "chain", "-", ((20.8, 38.1, 70.1, 127.6, 242.6),)),
    Line("RelaySGD", "binary tree", "--", ((15.2, 21.0, 26.8, 32.8, 36.2),)),
    Line("D²", "ring", "-", D2),
    Line("Gradient tracking", "ring", "-", ((49.2, 199, 699, 2534, 7757),)),
    Line("Gradient tracking", "binary tree", "--", ((156, 405, 886, 1742, 3171),)),
    Line("All-reduce", "–", ":", ((8.9, 7.5, 6.8, 6.2, 5.6),)),
    Line("SGP", "one-peer exponential", "-.", SGP, SIZES + POWERS),
)


def compute(
    sizes: Sequence[int], seeds: int, max_steps: int
) -> Iterator[figures.Record]:
    """Tunes every method on every problem, by the paper's search and by the finer one.

    A line skips those of `sizes` that the paper does not show for it.
    """
    jobs = [(x, n) for x, n in itertools.product(LINES, sizes) if n in x.sizes]
    settings = list(itertools.product(ZETAS, range(seeds)))
    for line, n in tqdm(jobs, desc="figure 2", unit="line point"):
        problems = [
            random_quadratics(n, DIM, zeta2, **PROBLEM, seed=seed)
            for zeta2, seed in settings
        ]
        make = line.make(n)
        ours = tuning.tune_as_published(make, problems, max_steps=max_steps)
        finer = tuning.tune_fastest(make, problems, max_steps=max_steps)
        for i, (zeta2, seed) in enumerate(settings):
            yield {
                "method": line.method,
                "topology": line.topology,
                "n": n,
                "zeta2": zeta2,
                "seed": seed,
                "steps": ours.steps[i],
                "learning_rate": ours.learning_rates[i],
                "finer_steps": finer.steps[i],
                "finer_learning_rate": finer.learning_rates[i],
            }


def make_tables(records: list[figures.Record]):
    """Shows the paper's steps, ours, and the deviation, for both heterogeneities."""
    rows = []
    for line in LINES:
        known = line.means(records, ZETAS[0])
        for n in filter(known.__contains__, line.sizes):
            row: list[Any] = [line.label, str(n)]
            for zeta2 in ZETAS:
                paper, ours = line.published(zeta2)[n], line.means(records, zeta2)[n]
                finer = line.means(records, zeta2, "finer_steps")[n]
                row += [paper, ours, figures.deviation(ours, paper), finer]
            rows.append(row)
    columns = ["method", "n"]
    for zeta2 in ZETAS:
        columns += [f"ζ²={zeta2:g} paper", "ours", "", "finer"]
    title = "Figure 2: steps to f(x̄) − f* ≤ 1e-6, mean over the seeds"
    caption = (
        "ours: the paper's problems and search for the learning rate. finer: grids of "
        "rates in steps of 1 %.\nThe differences between the two are the search's."
    )
    return [figures.table(title, columns, rows, caption)]


def draw(records: list[figures.Record]):
    """Draws steps against workers, in a panel for each heterogeneity."""
    figure, (panels,) = figures.panels((8, 3.4), 1, 2, sharey=True)
    for axes, zeta2 in zip(panels, ZETAS, strict=True):
        for line in LINES:
            color, label = COLORS[line.method], line.label.removesuffix(", –")
            ours, paper = line.means(records, zeta2), line.published(zeta2)
            points = list(ours), list(ours.values())
            axes.plot(*points, line.style, color=color, label=label)
            points = list(paper), list(paper.values())
            axes.plot(*points, "o", color=color, mfc="none", ms=4)
        axes.set(ylim=(-10, 500), xlabel="number of workers $n$")
        axes.set_title(f"$\\zeta^2 = {zeta2:g}$")
    panels[0].set_ylabel("steps to $f(\\bar x) - f^\\star \\leq 10^{-6}$")
    handles, _ = panels[0].get_legend_handles_labels()
    handles.append(figures.circle("the paper's values"))
    figure.legend(handles=handles, loc="outside right center", fontsize=8)
    return figure


main = figures.script(
    __name__,
    full=(sorted(SIZES + POWERS), 10, 20_000),
    smoke=((4, 6), 2, 400),
    x64=True,
)

if __name__ == "__main__":
    main()
